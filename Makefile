# One command per job. Everything runs in .venv, which is made on first use from a plain Python 3.11 or newer.

PYTHON ?= $(shell command -v python3.11 2>/dev/null || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# One more than the cores of a small machine: half of what the tests take is waiting.
JOBS ?= 3

.DEFAULT_GOAL := help
.PHONY: help install demo test check format crash faults scale conversations concurrency server bench clean

help: ## List what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed and none was found: install it, or make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than Python 3.11: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[all]" --group dev
	@touch $@

install: $(STAMP) ## Make .venv with the package, its extras and the tools of development

demo: $(STAMP) ## Evaluate 200 invented candidates, from export to report, on a real engine; no GPU needed
	$(BIN)/ollama-batch demo

test: $(STAMP) ## Run the tests
	$(BIN)/python -m pytest -q -n $(JOBS)

check: $(STAMP) ## Lint, formatting, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(STAMP) ## Put the code in form
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

crash: $(STAMP) ## 1,000 kills at random moments and at every named point; 120 of the engine
	$(BIN)/python benchmarks/crash.py
	$(BIN)/python benchmarks/crash_engine.py --every 0.5 --every 2 --every 10

faults: $(STAMP) ## 20 times 10,000 rows through resets, errors, cut bodies, hangs and garbage
	$(BIN)/python benchmarks/fault_mix.py

scale: $(STAMP) ## 170,000 rows: memory, the time to resume, and an analysis of them
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/aris_convert.py
	$(BIN)/python benchmarks/round_trip.py
	$(BIN)/python benchmarks/analysis.py

conversations: $(STAMP) ## What trimming costs, what several conversations gain, limits that nobody tells
	$(BIN)/python benchmarks/conversation.py
	$(BIN)/python benchmarks/lanes.py
	$(BIN)/python benchmarks/hidden_limit.py

concurrency: $(STAMP) ## The concurrency that runs find against the best fixed number, an hour and a half
	$(BIN)/python benchmarks/concurrency.py

server: $(STAMP) ## The batch server: killed in every state, under load
	$(BIN)/python benchmarks/server_crash.py
	$(BIN)/python benchmarks/server_load.py

bench: $(STAMP) ## The benchmarks, then their figures into docs/benchmarks.md
	$(BIN)/python benchmarks/import_time.py
	$(BIN)/python benchmarks/client_cpu.py
	$(BIN)/python benchmarks/durability.py
	$(BIN)/python benchmarks/guard_cost.py
	$(BIN)/python benchmarks/engine_bound.py
	$(BIN)/python benchmarks/trimming.py
	$(BIN)/python benchmarks/prefix.py
	$(BIN)/python benchmarks/concurrency.py --part simulated
	$(BIN)/python benchmarks/calibration.py
	$(BIN)/python benchmarks/near_limit.py
	$(BIN)/python benchmarks/counting.py || test $$? -eq 2
	$(BIN)/python benchmarks/report.py

clean: ## Remove the environment and everything that was made
	rm -rf $(VENV) build dist demo-out benchmarks/out .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
