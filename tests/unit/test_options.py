"""A wrong option is refused where it is given, by its name, with its rule."""

from __future__ import annotations

import datetime as dt
import math
from pathlib import Path
from typing import Any

import pytest

from ollama_batch import BatchRunner, JsonSchema, OllamaBatchError, OllamaEngine, OpenAIEngine, RetryPolicy
from ollama_batch._options import RunArguments, RunnerOptions, RunOptions
from ollama_batch.errors import ConfigError, InputError
from ollama_batch.trim import AggressiveTrim, HybridTrim, SlidingWindowTrim, TrimStrategy

NOWHERE = "http://127.0.0.1:9"

RUNNER_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"model": ""}, "model=''"),
    ({"model": "  "}, "model='  '"),
    ({"model": None}, "model=None"),
    ({"model": 12}, "model=12"),
    ({"allow_models": "toy:2b"}, "allow_models='toy:2b'"),
    ({"allow_models": 3}, "allow_models=3"),
    ({"allow_models": [""]}, "model=''"),
    ({"allow_models": [["a"]]}, "allow_models="),
    ({"defaults": ["temperature"]}, "defaults="),
    ({"defaults": {"temperature": "hot"}}, "defaults['temperature']: must be a number"),
    ({"defaults": {"temperature": math.nan}}, "cannot be written as JSON"),
    ({"defaults": {"temperature": -1}}, "defaults['temperature']"),
    ({"defaults": {"temperatur": 1}}, "defaults['temperatur']: is no field that OllamaEngine knows"),
    ({"defaults": {"n": 2}}, "defaults['n']"),
    ({"defaults": {"logit_bias": {}}}, "defaults['logit_bias']"),
    ({"defaults": {"num_ctx": 4096}}, "defaults['num_ctx']"),
    ({"defaults": {"user": 1j}}, "cannot be written as JSON"),
    ({"defaults": {"messages": []}}, "no default for all rows; leave it out"),
    ({"defaults": {"max_tokens": 5}}, "use BatchRunner(max_tokens=)"),
    ({"defaults": {"max_completion_tokens": 5}}, "use BatchRunner(max_tokens=)"),
    ({"defaults": {"model": "x"}}, "use BatchRunner(model=)"),
    ({"defaults": {"stream": True}}, "leave it out"),
    ({"num_ctx": 0}, "num_ctx=0"),
    ({"num_ctx": "4096"}, "num_ctx='4096'"),
    ({"num_ctx": "big"}, """num_ctx='big': must be "auto" or a whole number from 16"""),
    ({"row_models": "any"}, """row_models='any': must be "check" or "ignore\""""),
    ({"row_models": "ignore", "allow_models": ["n"]}, "leave it or allow_models= out"),
    ({"num_ctx": 4096.0}, "num_ctx=4096.0"),
    ({"num_ctx": True}, "num_ctx=True"),
    ({"num_ctx": 2**40}, "num_ctx="),
    ({"max_tokens": 0}, "max_tokens=0: must be a whole number from 1"),
    ({"max_tokens": None}, "max_tokens=None"),
    ({"num_ctx": 1024}, "num_ctx=1024, max_tokens=1024: the context holds prompt and answer"),
    ({"num_ctx": 8192, "max_tokens": 9000}, "num_ctx must be larger than max_tokens"),
    ({"think": "hard"}, "think='hard'"),
    ({"think": 1}, "think=1"),
    ({"think": None}, "think=None"),
    ({"concurrency": 0}, "concurrency=0"),
    ({"concurrency": "many"}, "concurrency='many'"),
    ({"concurrency": 10**9}, 'concurrency=1000000000: must be "auto" or a whole number from 1 to 4,096'),
    ({"timeout": 0}, "timeout=0"),
    ({"timeout": math.inf}, "timeout=inf"),
    ({"timeout": math.nan}, "timeout=nan"),
    ({"timeout": "60"}, "timeout='60'"),
    ({"load_timeout": -1}, "load_timeout=-1"),
    ({"recover_timeout": True}, "recover_timeout=True"),
    ({"on_length": "cut"}, "on_length='cut'"),
    ({"unload_after": "no"}, "unload_after='no'"),
    ({"keep_alive": 0}, "keep_alive=0"),
    ({"keep_alive": None}, "keep_alive"),
    ({"retry": 3}, "retry=3: must be a RetryPolicy"),
    ({"supervisor": "systemctl"}, "must be a Supervisor"),
    ({"supervisor": True}, "supervisor=True"),
    ({"hooks": [print]}, "has no on_event"),
    ({"hooks": [object]}, "has no on_event"),
    ({"progress": "loud"}, "progress must be"),
    ({"progress": 1}, "progress must be"),
    ({"engine": NOWHERE, "base_url": None}, f"engine='{NOWHERE}': must be an engine"),
    ({"engine": OllamaEngine, "base_url": None}, "must be an engine"),
    ({"engine": OllamaEngine(NOWHERE)}, "base_url= and keep_alive= are for the default engine"),
    ({"engine": OllamaEngine(NOWHERE), "base_url": None, "keep_alive": "5m"}, "keep_alive="),
    ({"engine": OpenAIEngine(NOWHERE), "base_url": None, "defaults": {"seed": "x"}}, "defaults['seed']"),
    ({"base_url": "ftp://here"}, "ftp"),
]

RUN_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"outptu": "x"}, "outptu= is no option of a run; those are deadline, errors, journal, limit"),
    ({"concurrency": 4}, "concurrency= is no option of a run"),
    ({"response_format": {}}, "BatchRunner(defaults={'response_format': ...}) for all rows, or to"),
    ({"on_invalid": "ignore"}, "on_invalid='ignore'"),
    ({"on_invalid": None}, "on_invalid=None"),
    ({"retry_failed": "request_timeout"}, "retry_failed='request_timeout'"),
    ({"retry_failed": None}, "retry_failed=None"),
    ({"retry_failed": [408]}, "retry_failed=[408]"),
    ({"retry_failed": 1}, "retry_failed=1"),
    ({"max_failures": -1}, "max_failures=-1"),
    ({"max_failures": math.nan}, "max_failures=nan"),
    ({"max_failures": "10%"}, "max_failures='10%'"),
    ({"max_failures": True}, "max_failures=True"),
    ({"deadline": 0}, "deadline=0"),
    ({"deadline": "tomorrow"}, "deadline='tomorrow'"),
    ({"deadline": dt.datetime(2030, 1, 1)}, "a time with a time zone"),  # noqa: DTZ001 - wrong on purpose
    ({"deadline": dt.timedelta(hours=1)}, "deadline="),
    ({"limit": 0}, "limit=0"),
    ({"limit": 2.5}, "limit=2.5"),
    ({"overwrite": "no"}, "overwrite='no'"),
    ({"partial": None}, "partial=None"),
    ({"output": ""}, "output='': must be the path of a file"),
    ({"output": 7}, "output=7: must be a path"),
    ({"output": b"out.jsonl"}, "output=b'out.jsonl'"),
    ({"output": "a\x00b"}, "output="),
    ({"output": []}, "output= names 0 files for 1 inputs"),
    ({"output": ["a", "b"]}, "output= names 2 files for 1 inputs"),
    ({"output": [None]}, "output=None"),
    ({"output": "a", "errors": ""}, "errors=''"),
    ({"output": "a", "errors": 1.5}, "errors=1.5"),
    ({"errors": "e"}, "errors= needs output="),
    ({"output": "a", "errors": "a"}, "same file twice"),
    ({"output": "a", "journal": ""}, "journal=''"),
    ({"output": "a", "journal": True}, "journal=True"),
    ({"output": "a", "journal": "a"}, "same file twice"),
    ({"output": "a", "journal": "a.partial.jsonl"}, "same file twice"),
]

REQUESTS: list[tuple[Any, type[OllamaBatchError], str]] = [
    (None, ConfigError, "NoneType"),
    (3, ConfigError, "int"),
    (b"prompt", ConfigError, "bytes"),
    ({"messages": []}, ConfigError, "put one request in a list"),
    ("", InputError, "is not the path of a file"),
    ("nowhere.jsonl", InputError, "does not exist"),
    ("no*where.jsonl", InputError, "no file matches"),
    (Path("nowhere.jsonl"), InputError, "does not exist"),
    (["nowhere.jsonl"], InputError, "does not exist"),
    (".", InputError, "is a directory"),
]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("wrong", "said"), RUNNER_OPTIONS, ids=lambda value: str(value)[:60])
def test_a_wrong_option_of_a_runner_is_refused_when_it_is_made(wrong: dict[str, Any], said: str) -> None:
    options = {"model": "toy:1b", "base_url": NOWHERE, **wrong}
    with pytest.raises(ConfigError) as caught:
        BatchRunner(**{name: value for name, value in options.items() if (name, value) != ("base_url", None)})
    assert said in str(caught.value)


@pytest.mark.parametrize(("wrong", "said"), RUN_OPTIONS, ids=lambda value: str(value)[:60])
def test_a_wrong_option_of_a_run_is_refused_before_it_begins(
    wrong: dict[str, Any], said: str, tmp_path: Path
) -> None:
    runner = BatchRunner(model="toy:1b", base_url=NOWHERE, progress="none")
    with pytest.raises(ConfigError) as caught:
        runner.start(["x"], **wrong)
    assert said in str(caught.value)
    assert list(runner._under_way) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("wrong", "error", "said"), REQUESTS, ids=lambda value: str(value)[:40])
def test_requests_of_a_wrong_kind_are_refused_before_a_run_begins(
    wrong: Any, error: type[OllamaBatchError], said: str
) -> None:
    with pytest.raises(error) as caught:
        BatchRunner(model="toy:1b", base_url=NOWHERE).start(wrong)
    assert said in str(caught.value)


def test_there_are_enough_wrong_options() -> None:
    assert len(RUNNER_OPTIONS) + len(RUN_OPTIONS) + len(REQUESTS) >= 100


def test_good_options_are_taken() -> None:
    runner = BatchRunner(
        model="toy:1b",
        base_url=NOWHERE,
        defaults={"temperature": 0, "stop": ["a"], "response_format": {"type": "json_object"}},
        num_ctx=16,
        max_tokens=15,
        think="max",
        allow_models=("a", "b"),
        concurrency=4096,
        timeout=0.5,
        retry=RetryPolicy(server=0),
        keep_alive="10m",
    )
    assert runner.options.allow_models == {"a", "b"}
    RunOptions.of({"deadline": dt.datetime.now(dt.UTC), "max_failures": 0, "retry_failed": ["a"], "limit": 1})


def test_the_defaults_are_a_copy_made_of_json() -> None:
    defaults: dict[str, Any] = {"stop": ("a", "b"), "response_format": {"type": "json_object"}}
    runner = BatchRunner(model="toy:1b", base_url=NOWHERE, defaults=defaults)
    defaults["response_format"]["type"] = "text"
    assert runner.options.defaults == {"stop": ["a", "b"], "response_format": {"type": "json_object"}}


def test_every_setting_that_changes_answers_is_in_the_identity() -> None:
    usual = set(RunnerOptions(model="m").identity())
    assert set(RunnerOptions(model="m", row_models="ignore").identity()) - usual == {"row_models"}
    assert set(RunnerOptions(model="m", trim=HybridTrim()).identity()) - usual == {"trim"}
    conversation = set(RunnerOptions(model="m", mode="conversation").identity())
    assert conversation - usual == {"conversation", "trim"}
    schema = RunnerOptions(model="m", form=JsonSchema({})).identity()
    assert set(schema) - usual == {"response_model"}
    kept = usual | conversation | {"row_models", "form"}
    free = {
        "num_ctx",
        "allow_models",
        "order",
        "concurrency",
        "timeout",
        "load_timeout",
        "recover_timeout",
        "unload_after",
        "counter",
        "state_dir",
        "guards",
        "output_retries",
    }
    # num_ctx is pinned once it is chosen; how tokens are counted changes which rows are sent, not answers.
    assert kept | free == {*RunnerOptions.__dataclass_fields__}
    assert kept & free == set()


def test_another_strategy_or_another_setting_of_it_is_another_run() -> None:
    def told(trim: TrimStrategy | None) -> dict[str, Any]:
        return RunnerOptions(model="m", trim=trim).identity()

    several = [None, HybridTrim(), SlidingWindowTrim(), AggressiveTrim(limit=100), AggressiveTrim(limit=200)]
    for one in several:
        assert [told(one) == told(other) for other in several].count(True) == 1
    assert told(HybridTrim()) == told(HybridTrim())


def test_the_options_of_a_run_are_those_documented() -> None:
    said = RunArguments.__doc__ or ""
    assert all(f"`{name}`" in said for name in RunArguments.__annotations__)
    assert {*RunOptions.__dataclass_fields__} < {*RunArguments.__annotations__}


def test_a_deadline_is_seconds_from_now_or_a_time() -> None:
    assert RunOptions().seconds_left() is None
    assert RunOptions(deadline=5).seconds_left() == 5
    assert RunOptions(deadline=dt.datetime(2020, 1, 1, tzinfo=dt.UTC)).seconds_left() == 0
    left = RunOptions(deadline=dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)).seconds_left()
    assert left is not None
    assert 3590 < left <= 3600


def test_which_failed_rows_are_sent_again() -> None:
    assert RunOptions().retry is None
    assert RunOptions(retry_failed=True).retry is True
    assert RunOptions(retry_failed={"a", "b"}).retry == {"a", "b"}
    assert RunOptions(retry_failed=()).retry == frozenset()
