"""What the documents say exists, and what they show works."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import re
import runpy
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ollama_batch
import ollama_batch.analysis
import ollama_batch.aris
import ollama_batch.doctor
import ollama_batch.memory
import ollama_batch.tokens
import ollama_batch.trim
from ollama_batch import BatchRunner, Run, errors
from ollama_batch._arguments import make_parser
from ollama_batch._options import RunArguments
from ollama_batch._portal import portal
from ollama_batch.cli import exit_code
from ollama_batch.testing import FakeModel, FakeOllama, Fault
from supervisor_support import stand_in_ollama

REPOSITORY = Path(__file__).parents[2]
DOCUMENTS = sorted(
    [
        *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *(REPOSITORY / "docs").rglob("*.md"),
    ]
)
RUNS = ("run", "arun", "stream", "iter_results", "start")


def name_of(file: Path) -> str:
    return file.relative_to(REPOSITORY).as_posix()


def blocks(file: Path, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```$", file.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


PYTHON = [
    pytest.param(block, id=f"{name_of(file)}-{number}")
    for file in DOCUMENTS
    for number, block in enumerate(blocks(file, "python"))
]


def shell_lines() -> Iterator[tuple[str, str]]:
    """Every line of a document that is a command of ours, indented or in a fence."""
    for file in DOCUMENTS:
        for line in file.read_text(encoding="utf-8").splitlines():
            found = re.match(r"^(?: {4,}|\$ )?((?:ollama-batch|make|python(?: -m)?) .*)", line)
            if found is not None and (line.startswith((" ", "$"))):
                yield name_of(file), found[1]


@pytest.mark.parametrize("block", PYTHON)
def test_every_name_in_a_python_block_exists(block: str) -> None:
    tree = ast.parse(block)
    known: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.module is not None
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module}.{alias.name}"
                known[alias.asname or alias.name] = getattr(module, alias.name)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        named = {keyword.arg for keyword in node.keywords if keyword.arg is not None}
        if isinstance(node.func, ast.Name) and node.func.id in known:
            assert named <= set(inspect.signature(known[node.func.id]).parameters), ast.unparse(node)
        elif isinstance(node.func, ast.Attribute) and node.func.attr in RUNS:
            assert named <= set(RunArguments.__annotations__), ast.unparse(node)
        elif isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) in known:
            assert hasattr(known[ast.unparse(node.func.value)], node.func.attr), ast.unparse(node)


def example(file: str, number: int) -> str:
    return blocks(REPOSITORY / file, "python")[number]


@pytest.fixture
def here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_ollama_factory: Callable[..., FakeOllama]
) -> FakeOllama:
    """An empty folder with the documents' input, and a server at OLLAMA_HOST that has their model."""
    fake = fake_ollama_factory(models=(FakeModel("gemma3:12b"),))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OLLAMA_HOST", fake.url)
    Path("requests.jsonl").write_text(blocks(REPOSITORY / "docs" / "quickstart.md", "json")[0])
    return fake


@pytest.mark.parametrize("where", [("README.md", 0), ("docs/quickstart.md", 0)], ids=str)
def test_the_first_example_runs_as_it_stands(
    here: FakeOllama, where: tuple[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    exec(compile(example(*where), where[0], "exec"), {})
    assert "completed: 1 of 1 rows ok" in capsys.readouterr().out
    assert json.loads(Path("results.jsonl").read_text())["custom_id"] == "a-1"
    assert here.ledger.count() == 1


def test_the_quickstarts_requests_from_python_run(
    here: FakeOllama, capsys: pytest.CaptureFixture[str]
) -> None:
    exec(example("docs/quickstart.md", 1), {})
    assert here.ledger.counts() == {"Ann has built compilers for ...": 1, "Bob sells ...": 1}
    assert capsys.readouterr().out.startswith("ann ")


def test_the_quickstarts_test_of_ones_own_code_passes() -> None:
    exec(example("docs/quickstart.md", 11), {})


@pytest.mark.parametrize(
    ("number", "asked", "printed"),
    [
        (2, 1, ""),
        (3, 1, "1 ['invalid_request']"),
        (4, 1, ""),
        (5, 3, ""),
        (6, 2, ""),
        (7, 1, ""),
        (8, 1, ""),
        (9, 1, ""),
    ],
    ids=["defaults", "on_invalid", "start", "async", "pandas", "hooks", "conversation", "stopped"],
)
def test_an_example_of_the_quickstart_runs(
    here: FakeOllama, number: int, asked: int, printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if number == 6:
        pytest.importorskip("pandas")
    scope: dict[str, Any] = {"__name__": "example"}
    exec(compile(example("docs/quickstart.md", number), "quickstart", "exec"), scope)
    assert here.ledger.count() == asked
    assert printed in capsys.readouterr().out
    if "report" in scope:
        assert scope["report"].ok == (number != 3)
    if number == 6:
        assert scope["people"]["answer"].notna().all()


def test_the_quickstarts_pytest_example_passes(fake_ollama_factory: Callable[..., FakeOllama]) -> None:
    scope: dict[str, Any] = {}
    exec(example("docs/quickstart.md", 12), scope)
    scope["test_a_busy_server_and_a_bad_row"](fake_ollama_factory)


def test_the_page_on_damage_reads_a_journal(here: FakeOllama) -> None:
    scope: dict[str, Any] = {}
    exec(example("docs/on-disk.md", 0), scope)
    assert here.ledger.counts() == {"Hello": 1}
    assert [json.loads(line)["custom_id"] for line in scope["intact"]] == ["0"]


def test_the_page_on_restarts_starts_an_ollama(
    here: FakeOllama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    stand_in_ollama(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("STAND_IN", str(tmp_path / "bin"))
    monkeypatch.setenv("STAND_IN_MODEL", "gemma3:12b")
    scope: dict[str, Any] = {}
    exec(example("docs/recovery.md", 0), scope)
    portal().call(scope["engine"].aclose())
    assert scope["report"].ok
    assert here.ledger.count() == 0, "the run went to the other server"


def test_the_page_on_restarts_allows_a_unit(here: FakeOllama) -> None:
    scope: dict[str, Any] = {}
    exec(example("docs/recovery.md", 1), scope)
    assert scope["report"].ok


def test_the_page_on_restarts_allows_a_callable(
    here: FakeOllama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scope: dict[str, Any] = {}
    exec(example("docs/recovery.md", 2), scope)
    assert scope["runner"].run(["Hello"]).ok
    docker = tmp_path / "docker"
    docker.write_text('#!/bin/sh\necho "$@" > told\n')
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    scope["restart"]()
    assert (tmp_path / "told").read_text() == "restart ollama\n"


@pytest.mark.parametrize(("file", "line"), sorted(set(shell_lines())), ids=lambda value: value)
def test_every_command_in_a_document_can_be_given(file: str, line: str) -> None:
    words = shlex.split(line.removesuffix("\\"), comments=True)
    if words[0] == "make":
        targets = re.findall(r"^([a-z]+):.*##", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in targets
    elif words[0] == "ollama-batch":
        names = ("run", "status", "watch", "export", "export-failed", "verify", "doctor", "aris", "demo")
        names += ("analyze", "compare")
        names += ("serve", "submit", "aris-back")
        make_parser(dict.fromkeys(names, lambda _: 0)).parse_args(words[1:])
    elif words[1] == "-m":
        assert words[2] == "venv" or importlib.util.find_spec(words[2]) is not None
    else:
        assert (REPOSITORY / words[1]).is_file()


def test_every_option_of_the_command_line_stands_in_a_document() -> None:
    names = ("run", "status", "watch", "export", "verify", "aris", "demo", "analyze", "compare")
    names += ("serve", "submit", "aris-back")
    commands = make_parser(dict.fromkeys(names, lambda _: 0))._subparsers._group_actions[0].choices  # type: ignore[union-attr]  # argparse has no other way
    text = "".join(file.read_text(encoding="utf-8") for file in DOCUMENTS)
    for command in commands.values():
        for action in command._actions:
            said = [o for o in action.option_strings if re.search(rf"(?<![\w-]){o}(?![\w-])", text)]
            assert said or not action.option_strings or action.dest == "help", action.option_strings


def test_the_documents_show_commands() -> None:
    assert len({line for _, line in shell_lines() if line.startswith("ollama-batch")}) >= 5


@pytest.mark.parametrize("file", DOCUMENTS, ids=name_of)
def test_every_link_of_a_document_leads_somewhere(file: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", file.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (file.parent / target).exists(), target


def anchors_of(file: Path) -> set[str]:
    """What a heading is called in links, as GitHub makes it."""
    headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("file", DOCUMENTS, ids=name_of)
def test_every_link_to_a_heading_leads_to_one(file: Path) -> None:
    for target, heading in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", file.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert heading in anchors_of(file.parent / target if target else file), f"{target}#{heading}"


def test_every_document_can_be_found_from_the_index() -> None:
    index = (REPOSITORY / "docs" / "index.md").read_text(encoding="utf-8")
    for file in (REPOSITORY / "docs").rglob("*.md"):
        name = file.relative_to(REPOSITORY / "docs").as_posix()
        assert name == "index.md" or f"({name})" in index, name


def reference() -> str:
    return (REPOSITORY / "docs" / "reference.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    found = re.search(rf"^#+ {title}\n(.*?)(?=^#+ )", reference(), re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def test_the_reference_has_every_argument_of_a_run_and_its_option() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(-[^`]+)`", section("Arguments of a run"), re.MULTILINE)
    assert {name for name, _ in rows} == set(RunArguments.__annotations__)
    help_text = make_parser({"run": lambda _: 0})._subparsers._group_actions[0].choices["run"].format_help()  # type: ignore[union-attr,index,call-overload]  # argparse has no other way
    assert all(option in help_text for _, option in rows)


def test_the_reference_has_every_error_code_and_whether_it_is_sent_again() -> None:
    told: dict[str, str] = {}
    for names, again in re.findall(
        r"^\| (`.*?) \| .* \| (.*) \|$", section("Codes of failed rows"), re.MULTILINE
    ):
        told.update(dict.fromkeys(re.findall(r"`(\w+)`", names), again))
    real = {
        error.code: ("yes" if error.budget not in ("none", "busy") else "as long as it takes")
        if error.retryable
        else "no"
        for error in vars(errors).values()
        if inspect.isclass(error)
        and issubclass(error, errors.EngineError)
        and error not in (errors.EngineError, errors.OutcomeError)
    }
    assert told == real


def codes_of_lines() -> set[str]:
    """The codes that the source gives to lines and items that are no valid requests."""
    package = Path(ollama_batch.__file__).parent
    found: set[str] = set()
    for name in ("_chat_line", "_items", "_intake", "jsonl", "sources", "_stream_source"):
        for node in ast.walk(ast.parse((package / f"{name}.py").read_text(encoding="utf-8"))):
            values: list[ast.expr | None] = []
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "LineError":
                values = [node.args[0]]
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "InvalidRow":
                values = [node.args[2]]
            elif isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
                values = [node.value.elts[0]] if name == "_chat_line" else []
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("code", "OTHER_MODEL"):
                values = [node.value]
            for value in values:
                for each in ast.walk(value) if isinstance(value, ast.IfExp | ast.Constant) else ():
                    if isinstance(each, ast.Constant) and re.fullmatch(r"[a-z]+(_[a-z]+)+", str(each.value)):
                        found.add(str(each.value))
    return found - {"tool_call_id", "image_url"}  # keys that are looked for, in the condition beside a code


def test_the_reference_has_every_code_of_a_line_that_is_no_request() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", section("Codes of lines that are no valid requests"), re.MULTILINE)
    assert set(rows) == codes_of_lines()
    assert len(rows) == len(set(rows)) > 10


def test_the_tables_of_the_reference_are_those_of_the_code() -> None:
    """Made again with: python docs/make_reference.py"""
    made = runpy.run_path(str(REPOSITORY / "docs" / "make_reference.py"))
    assert made["rendered"](reference()) == reference()


def test_the_reference_has_every_name_of_these_packages() -> None:
    packages = (ollama_batch.tokens, ollama_batch.trim, ollama_batch.memory, ollama_batch.doctor)
    for package in (*packages, ollama_batch.aris, ollama_batch.analysis):
        names = getattr(package, "__all__", None) or [n for n in vars(package) if n[0].isupper()]
        for name in names:
            assert f"`{name}`" in reference() or f"# {name}" in reference(), name


def test_the_reference_has_every_way_to_run_and_to_steer_a_run() -> None:
    for thing in (BatchRunner, Run):
        row = re.search(rf"^\| `{thing.__name__}` \| (.*) \|$", reference(), re.MULTILINE)
        assert row is not None
        public = {
            name
            for name, value in vars(thing).items()
            if name[0] != "_" and (callable(value) or isinstance(value, property))
        }
        assert public <= set(re.findall(r"`(\w+)`", row[1])), thing.__name__


@pytest.mark.parametrize("thing", [FakeOllama, Fault], ids=lambda thing: thing.__name__)
def test_the_reference_has_every_argument_of_a_fake_and_of_a_fault(thing: type[object]) -> None:
    told: dict[str, str] = {}
    for names, default in re.findall(r"^\| (`.*?`) \| (.*?) \| .*\|$", section(thing.__name__), re.MULTILINE):
        told.update(dict.fromkeys(re.findall(r"`(\w+)`", names), default.strip("`")))
    real = inspect.signature(thing).parameters
    assert told.keys() == real.keys()
    for name, default in told.items():
        simple = real[name].default is None or isinstance(real[name].default, int | float | str)
        if name not in ("status", "text", "body", "headers") and simple:
            assert default == repr(real[name].default), name


def test_the_page_on_trimming_has_every_key_of_a_result() -> None:
    text = (REPOSITORY / "docs" / "trim.md").read_text(encoding="utf-8")
    told = re.findall(
        r"`(\w+)`",
        " ".join(re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", text.split("## In a result")[1], re.MULTILINE)),
    )
    messages = [{"role": "user", "content": "a"}]
    counter = ollama_batch.tokens.EstimateCounter()
    figures = ollama_batch.trim.HybridTrim().trim(messages, budget=100, counter=counter).to_dict()
    assert told == [*figures, "why"]


def test_the_page_on_context_has_every_reason_of_a_cut_and_the_marks_that_the_policy_makes() -> None:
    text = (REPOSITORY / "docs" / "context.md").read_text(encoding="utf-8")
    cuts = text.split("## When a conversation is cut")[1].split("## What each costs")[0]
    lanes = (Path(ollama_batch.__file__).parent / "_lanes.py").read_text(encoding="utf-8")
    reasons = re.findall(r"^\| `(\w+)` \|", cuts, re.MULTILINE)
    assert reasons == ["high", "every", "asked", "refused", "head"]
    assert all(f'"{reason}"' in lanes for reason in reasons)
    limit, high, low, asked = (int(number.replace(",", "")) for number in re.findall(r"\d+,\d{3}", cuts)[1:5])
    assert ollama_batch.ConversationPolicy().marks(limit) == (high, low)
    assert (limit, asked) == (32_768 - 768, high // 4)


def test_what_a_conversation_costs_is_what_the_formula_of_its_page_gives() -> None:
    text = (REPOSITORY / "docs" / "context.md").read_text(encoding="utf-8")
    head, request, answer, high = 2_400, 600, 300, 28_000
    exchange = request + answer
    told = {
        int(kept.replace(",", "")): int(cost.replace(",", ""))
        for cost, kept in re.findall(r"\| ([\d,]+) for K = ([\d,]+),", text)
    }
    original = re.search(r"`ConversationPolicy.original\(\)` \|.*\| ([\d,]+) \|", text)
    assert original is not None
    told[head + 20 * exchange] = int(original[1].replace(",", ""))
    assert len(told) == 3
    for kept, cost in told.items():
        assert cost == round(request + (kept - head) * exchange / (high - kept))
        # Exchange by exchange: less, by what whole exchanges leave of K.
        exchanges, evaluated = 0, 0
        for _ in range(20_000):
            evaluated += request
            if head + exchanges * exchange + request > high:
                exchanges = (kept - head) // exchange
                evaluated += exchanges * exchange
            exchanges += 1
        assert cost == pytest.approx(evaluated / 20_000, rel=0.1), kept


def test_the_reference_has_the_exit_codes() -> None:
    told = {int(code) for code in re.findall(r"^\| (\d+) \|", reference(), re.MULTILINE)}
    assert told == {0, 1, 2, 3, 130}
    assert {exit_code(errors.ConfigError("x")), exit_code(errors.EngineDownError("x"))} <= told


def test_the_glossary_has_one_entry_a_word_in_order() -> None:
    text = (REPOSITORY / "docs" / "glossary.md").read_text(encoding="utf-8")
    words = [word.lower() for word in re.findall(r"^\| \*\*(.+?)\*\*", text, re.MULTILINE)]
    assert words == sorted(words)
    assert len(set(words)) == len(words)


def test_what_a_public_name_of_the_testing_package_is_called_stands_in_the_reference() -> None:
    for name in ("FakeOllama", "FakeModel", "FakeReply", "CostModel", "Fault", "FAULT_KINDS", "Ledger"):
        assert name in ollama_batch.testing.__all__
        assert f"`{name}`" in reference()
