"""The command line: what it passes on, how it ends, and what it says beside a running writer."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from analysis_support import Row, write_journal
from ollama_batch import (
    AggressiveTrim,
    BatchRunner,
    Concurrency,
    ConversationPolicy,
    HybridTrim,
    ImportanceTrim,
    SlidingWindowTrim,
    cli,
    errors,
)
from ollama_batch._arguments import make_parser
from ollama_batch.cli import main
from ollama_batch.engines import OllamaEngine, OpenAIEngine
from ollama_batch.testing import FakeModel, FakeOllama, Fault
from runner_support import write_lines

Cli = Callable[..., tuple[int, str, str]]


def line(custom_id: str, text: str | None = None, **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": custom_id if text is None else text}]
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"messages": messages, **body},
    }


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return path


def rows(count: int, **body: Any) -> list[dict[str, Any]]:
    return [line(f"r{n}", **body) for n in range(count)]


def ids(path: Path) -> list[str | None]:
    return [json.loads(text)["custom_id"] for text in path.read_text().splitlines()]


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs a command in this process: exit code, standard output, standard error."""

    def ask(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as ended:
            code = int(ended.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return ask


def process(*words: object, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ollama_batch.cli", *map(str, words)],
        stdin=options.pop("stdin", subprocess.DEVNULL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@contextmanager
def running(fake: FakeOllama, source: Path, output: Path) -> Iterator[subprocess.Popen[str]]:
    """A run in another process with three answered rows, and requests of which none is answered any more."""
    fake.inject(Fault("hang", match="wait"))
    settings = ("--base-url", fake.url, "--model", "toy:1b", "--concurrency", 2, "--progress", "none")
    child = process("run", source, "-o", output, *settings)
    with child:
        try:
            fake.wait_until(lambda ledger: ledger.count() == 5)
            yield child
        finally:
            child.kill()


# What is passed on

OPTIONS: list[tuple[list[str], str, str, Any]] = [
    (["--model", "m"], "made", "model", "m"),
    (["--num-ctx", "2048"], "made", "num_ctx", 2048),
    (["--num-ctx", "auto"], "made", "num_ctx", "auto"),
    (["--max-tokens", "9"], "made", "max_tokens", 9),
    (["--temperature", "0"], "made", "defaults", {"temperature": 0.0}),
    (["--think", "on"], "made", "think", True),
    (["--think", "off"], "made", "think", False),
    (["--think", "high"], "made", "think", "high"),
    (["--concurrency", "7"], "made", "concurrency", 7),
    (["--concurrency", "auto"], "made", "concurrency", "auto"),
    (["--concurrency", "2-16"], "made", "concurrency", Concurrency(min=2, max=16)),
    (["--timeout", "2.5"], "made", "timeout", 2.5),
    (["--load-timeout", "70"], "made", "load_timeout", 70.0),
    (["--recover-timeout", "60"], "made", "recover_timeout", 60.0),
    (["--on-length", "keep"], "made", "on_length", "keep"),
    (["--progress", "none"], "made", "progress", "none"),
    (["-o", "x.jsonl"], "ran", "output", "x.jsonl"),
    (["--output", "y.jsonl"], "ran", "output", "y.jsonl"),
    (["--errors", "e.jsonl"], "ran", "errors", "e.jsonl"),
    (["--journal", "j.db"], "ran", "journal", "j.db"),
    (["--no-partial"], "ran", "partial", False),
    (["--on-invalid", "skip"], "ran", "on_invalid", "skip"),
    (["--retry-failed"], "ran", "retry_failed", True),
    (["--max-failures", "0.25"], "ran", "max_failures", 0.25),
    (["--deadline", "60"], "ran", "deadline", 60.0),
    (["--limit", "3"], "ran", "limit", 3),
    (["--overwrite"], "ran", "overwrite", True),
    (["--allow-model", "n", "--allow-model", "o"], "made", "allow_models", ["n", "o"]),
    (["--ignore-row-models"], "made", "row_models", "ignore"),
    (["--order", "input"], "made", "order", "input"),
    (["--mode", "conversation"], "made", "mode", "conversation"),
    (["--mode", "conversation", "--lanes", "2"], "made", "conversation", ConversationPolicy(lanes=2)),
    (["--mode", "conversation", "--trim-every", "9"], "made", "conversation", ConversationPolicy(every=9)),
    (["--mode", "conversation", "--high", "0.8"], "made", "conversation", ConversationPolicy(high=0.8)),
    (["--mode", "conversation", "--low", "0.25"], "made", "conversation", ConversationPolicy(low=0.25)),
    (
        ["--mode", "conversation", "--keep-messages", "6"],
        "made",
        "conversation",
        ConversationPolicy(keep_messages=6),
    ),
    (
        ["--mode", "conversation", "--conversation-limit", "999"],
        "made",
        "conversation",
        ConversationPolicy(limit=999),
    ),
    (["--trim", "sliding"], "made", "trim", SlidingWindowTrim()),
    (["--trim", "importance"], "made", "trim", ImportanceTrim()),
    (["--trim", "hybrid"], "made", "trim", HybridTrim()),
    (["--trim", "aggressive"], "made", "trim", AggressiveTrim()),
]
ELSEWHERE = {"--help", "--base-url", "--api", "--api-key-env", "--embedded", "--gguf", "--toy", "--schema"}
ELSEWHERE |= {"--metrics-port", "--notify"}  # in test_monitoring.py, test_notices.py
ELSEWHERE |= {"--managed", "--slots", "--kv-cache-type", "--restart"}  # in test_night_options.py, as these:
ELSEWHERE |= {"--vram-limit", "--vram-warn", "--ram-limit", "--ram-warn"}


class Seen:
    """Takes the place of BatchRunner and keeps what it is told."""

    made: dict[str, Any]
    ran: dict[str, Any]
    ok = True

    def __init__(self, **made: Any) -> None:
        Seen.made = made

    def run(self, requests: Any, **ran: Any) -> Seen:
        Seen.ran = {**ran, "requests": requests}
        return self


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> type[Seen]:
    monkeypatch.setattr("ollama_batch.runner.BatchRunner", Seen)
    return Seen


def test_every_option_of_run_is_in_the_tables_of_these_tests() -> None:
    parser = make_parser({"run": lambda _: 0})
    group = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    words = {words for action in group.choices["run"]._actions for words in action.option_strings[-1:]}
    tried = {word for option, *_ in OPTIONS for word in option if word.startswith("--")}
    assert words == tried | ELSEWHERE


@pytest.mark.parametrize(("words", "where", "name", "value"), OPTIONS, ids=lambda value: str(value))
def test_an_option_reaches_the_library(
    ask: Cli, seen: type[Seen], tmp_path: Path, words: list[str], where: str, name: str, value: Any
) -> None:
    source = write(tmp_path / "in.jsonl", rows(1))
    given = [] if name == "output" else ["-o", "out.jsonl"]
    model = [] if name == "model" else ["--model", "m"]
    assert ask("run", source, *given, *model, *words)[0] == 0
    assert getattr(seen, where)[name] == value


def test_without_options_the_library_gets_its_own_defaults(
    ask: Cli, seen: type[Seen], tmp_path: Path
) -> None:
    ask("run", write(tmp_path / "in.jsonl", rows(1)), "-o", "out.jsonl", "--model", "m")
    parser_made = {name: value for name, value in seen.made.items() if name != "engine"}
    own = BatchRunner(model="m")
    assert parser_made == {
        "model": "m",
        "defaults": own.options.defaults,
        "num_ctx": own.options.num_ctx,
        "max_tokens": own.options.max_tokens,
        "think": own.options.think,
        "response_model": own.options.form,
        "mode": own.options.mode,
        "conversation": own.options.conversation,
        "trim": own.options.trim,
        "allow_models": list(own.options.allow_models),
        "row_models": own.options.row_models,
        "order": own.options.order,
        "concurrency": own.options.concurrency,
        "guards": own.options.guards,
        "timeout": own.options.timeout,
        "load_timeout": own.options.load_timeout,
        "recover_timeout": own.options.recover_timeout,
        "supervisor": None,
        "on_length": own.options.on_length,
        "hooks": (),
        "progress": "auto",
    }


def test_the_engine_is_the_one_that_was_asked_for(
    ask: Cli, seen: type[Seen], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "in.jsonl", rows(1))
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:1234")
    ask("run", source, "-o", "out.jsonl", "--model", "m")
    assert isinstance(seen.made["engine"], OllamaEngine)
    assert seen.made["engine"].address == "http://127.0.0.1:1234"
    ask("run", source, "-o", "out.jsonl", "--model", "m", "--base-url", "http://127.0.0.1:77")
    assert seen.made["engine"].address == "http://127.0.0.1:77"
    ask(
        "run",
        source,
        "-o",
        "o.jsonl",
        "--model",
        "m",
        "--api",
        "openai",
        "--base-url",
        "http://127.0.0.1:78/v1",
    )
    assert isinstance(seen.made["engine"], OpenAIEngine)


def test_a_toy_answers_to_any_model_name_and_with_the_context_asked_for(
    ask: Cli, seen: type[Seen], tmp_path: Path
) -> None:
    named = write(tmp_path / "in.jsonl", rows(1, model="gemma3:12b"))
    assert ask("run", named, "-o", "out.jsonl", "--toy", "--num-ctx", 16384)[0] == 0
    engine = seen.made["engine"]
    assert (seen.made["model"], engine.model) == ("gemma3:12b", "gemma3:12b")
    assert engine._settings["num_ctx"] == 16384
    unnamed = write(tmp_path / "in2.jsonl", rows(1))
    ask("run", unnamed, "-o", "out.jsonl", "--embedded", "--toy")
    assert (seen.made["model"], seen.made["engine"].model) == ("toy", "toy")


def test_a_gguf_file_is_called_by_its_name_or_as_told(ask: Cli, seen: type[Seen], tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", rows(1))
    gguf = tmp_path / "some-model.gguf"
    gguf.write_bytes(b"GGUF")
    ask("run", source, "-o", "out.jsonl", "--embedded", "--gguf", gguf)
    assert (seen.made["model"], seen.made["engine"].model) == ("some-model", "some-model")
    ask("run", source, "-o", "out.jsonl", "--gguf", gguf, "--model", "mine")
    assert (seen.made["model"], seen.made["engine"].model) == ("mine", "mine")


def test_several_inputs_are_files_whatever_they_are_called(
    ask: Cli, seen: type[Seen], tmp_path: Path
) -> None:
    one, two = (write(tmp_path / name, rows(1)) for name in ("a question", "b.txt"))
    ask("run", one, two, "-o", tmp_path, "--model", "m")
    assert seen.ran["requests"] == [one, two]


# Wrong usage


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "COMMAND"),
        (["runn"], "invalid choice"),
        (["run", "IN"], "-o/--output"),
        (["run", "IN", "-o", "OUT", "--num-ctx", "much"], "'much' is neither a whole number nor auto"),
        (
            ["run", "IN", "-o", "OUT", "--concurrency", "1.5"],
            "'1.5' is neither a whole number, nor auto, nor MIN-MAX, as in 2-16",
        ),
        (["run", "IN", "-o", "OUT", "--concurrency", "x"], "'x' is neither a whole number, nor auto"),
        (["run", "IN", "-o", "OUT", "--concurrency", "2-"], "'2-' is neither a whole number, nor auto"),
        (["run", "IN", "-o", "OUT", "--concurrency", "8-2"], "'8-2': MIN is above MAX; 2-8 is a range"),
        (["run", "IN", "-o", "OUT", "--concurrency", "0-4"], "MIN and MAX must be from 1 to 4,096"),
        (["run", "IN", "-o", "OUT", "--concurrency", "1-9999"], "MIN and MAX must be from 1 to 4,096"),
        (["run", "IN", "-o", "OUT", "--concurrency", "0"], "--concurrency 0: must be"),
        (["run", "IN", "-o", "OUT", "--timeout", "-1"], "--timeout -1.0: must be"),
        (["run", "IN", "-o", "OUT", "--load-timeout", "0"], "--load-timeout 0.0: must be"),
        (["run", "IN", "-o", "OUT", "--deadline", "nan"], "--deadline nan: must be"),
        (["run", "IN", "-o", "OUT", "--recover-timeout", "-1"], "--recover-timeout -1.0: must be"),
        (["run", "IN", "-o", "OUT", "--limit", "0"], "--limit 0: must be"),
        (["run", "IN", "-o", "OUT", "--max-failures", "-2"], "--max-failures -2.0: must be"),
        (["run", "IN", "-o", "OUT", "--think", "hard"], "invalid choice: 'hard'"),
        (["run", "IN", "-o", "IN"], "is an input of this run"),
        (["run", "IN", "-o", "no/such/folder/out.jsonl"], "does not exist"),
        (["run", "absent.jsonl", "-o", "OUT"], "'absent.jsonl' does not exist"),
        (["run", "IN", "-", "-o", "OUT"], "standard input"),
        (["run", "no-*.jsonl", "-o", "OUT"], "no file matches"),
        (["run", "IN", "-o", "OUT", "--schema", "absent.json"], "--schema absent.json: cannot be read"),
        (["run", "IN", "-o", "OUT", "--schema", "IN2"], "is not JSON"),
        (["run", "IN", "-o", "OUT", "--schema", "LIST"], "a JSON schema is an object, not a list"),
        (
            ["run", "IN", "-o", "OUT", "--schema", "ODD"],
            "--schema ODD: type is not right: 'objekt' is not valid",
        ),
        (["run", "IN", "-o", "OUT", "--api-key-env", "NO_SUCH_KEY"], "NO_SUCH_KEY is not set"),
        (["run", "IN", "-o", "OUT", "--api", "openai"], "--api openai needs --base-url"),
        (["run", "IN", "-o", "OUT", "--base-url", "ftp://x"], "ftp"),
        (["run", "IN", "-o", "OUT", "--embedded"], "--embedded needs --gguf FILE"),
        (["run", "IN", "-o", "OUT", "--gguf", "absent.gguf"], "no such file"),
        (["run", "IN", "-o", "OUT", "--toy", "--gguf", "x.gguf"], "leave --gguf or --toy out"),
        (["run", "IN", "-o", "OUT", "--toy", "--base-url", "http://x"], "--base-url is for servers"),
        (["run", "IN", "-o", "OUT", "--toy", "--api", "openai"], "--api is for servers"),
        (["run", "UNNAMED", "-o", "OUT"], "--model gemma3:12b"),
        (["run", "-", "-o", "OUT"], "--model gemma3:12b"),
        (["run", "IN", "-o", "OUT", "--lanes", "2"], "--lanes is for --mode conversation"),
        (["run", "absent", "-o", "OUT", "--low", "0.2"], "--low is for --mode conversation"),
        (
            ["run", "IN", "-o", "OUT", "--high", "0.9", "--conversation-limit", "900"],
            "--high and --conversation-limit are for --mode conversation",
        ),
        (["run", "IN", "-o", "OUT", "--num-ctx", "512"], "--num-ctx 512"),
        (["run", "IN", "IN2", "-o", "OUT"], "2 inputs need a folder"),
        (["status", "absent.db"], "absent.db"),
        (["watch", "IN"], "not a journal"),
        (["export", "absent.db"], "there is no journal"),
        (["verify", "IN", "absent.jsonl"], "absent.jsonl cannot be read"),
        (["verify", "absent.jsonl", "OUT"], "does not exist"),
        (["demo", "--rows", "0"], "'0' is no whole number above 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_exits_2_and_says_what_is_wrong(
    ask: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("IN"), rows(2, model="toy:1b"))
    write(Path("IN2"), rows(2))
    write(Path("UNNAMED"), rows(2))
    Path("LIST").write_text("[]")
    Path("ODD").write_text('{"type": "objekt"}')
    before = sorted(tmp_path.iterdir())
    code, out, err = ask(*words)
    assert (code, out) == (2, "")
    assert said in err
    assert "Traceback" not in err
    assert len(err.splitlines()) <= 18, "an error is short; only wrong options are answered with the usage"
    assert sorted(tmp_path.iterdir()) == before, "nothing is left behind"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("x"), 2),
        (errors.MissingExtraError("x"), 2),
        (errors.InputError("x"), 2),
        (errors.OutputError("x"), 2),
        (errors.JournalLockedError("x"), 2),
        (errors.JournalMismatchError("x"), 2),
        (errors.JournalCorruptError("x"), 2),
        (errors.ModelNotFoundError("x"), 2),
        (errors.EngineAuthError("x"), 2),
        (errors.UnsupportedParamError("x"), 2),
        (errors.InputChangedError("x"), 3),
        (errors.DiskFullError("x"), 3),
        (errors.EngineUnreachableError("x"), 3),
        (errors.EngineStoppedError("x"), 3),
        (errors.EngineDownError("x"), 3),
        (errors.TooManyFailuresError("x"), 3),
        (errors.DeadlineReachedError("x"), 3),
        (errors.RunCancelledError("x"), 3),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_exit_code_tells_what_may_go_on_from_what_must_be_changed(
    error: errors.OllamaBatchError, code: int
) -> None:
    assert cli.exit_code(error) == code


def test_a_fault_of_the_program_is_no_row_that_failed(
    ask: Cli, seen: type[Seen], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Seen, requests: Any, **ran: Any) -> Seen:
        raise TypeError("a bug")

    monkeypatch.setattr(Seen, "run", broken)
    code, _, err = ask("run", write(tmp_path / "in.jsonl", rows(1)), "-o", "out.jsonl", "--model", "m")
    assert code == 70
    assert "TypeError: a bug" in err


# Runs


def test_every_row_ok_exits_0_and_the_report_is_printed(
    ask: Cli, fake_ollama: FakeOllama, tmp_path: Path
) -> None:
    source, output = write(tmp_path / "in.jsonl", rows(20, model="toy:1b")), tmp_path / "out.jsonl"
    schema = tmp_path / "my verdict.json"
    schema.write_text('{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}')
    words = ("run", source, "-o", output, "--base-url", fake_ollama.url, "--progress", "none")
    asking = ("--temperature", 0.5, "--max-tokens", 200, "--num-ctx", 2048, "--schema", schema)
    code, out, err = ask(*words, *asking)
    assert (code, err) == (0, "")
    assert "20 of 20 rows ok" in out
    assert ids(output) == [f"r{n}" for n in range(20)]
    sent = fake_ollama.ledger.completions()[0].sent
    assert sent["options"]["temperature"] == 0.5
    assert (sent["options"]["num_predict"], sent["options"]["num_ctx"]) == (200, 2048)
    assert sent["format"]["required"] == ["n"]
    code, out, _ = ask(*words, *asking)
    assert code == 0
    assert "0 sent, 20 from the journal" in out
    assert fake_ollama.ledger.count() == 20


def test_answers_that_do_not_fit_the_schema_are_asked_for_once_more_and_then_fail(
    ask: Cli, fake_ollama_factory: Callable[..., FakeOllama], tmp_path: Path
) -> None:
    fake = fake_ollama_factory(reply='{"n": "many"}')
    source, schema = write(tmp_path / "in.jsonl", rows(2, model="toy:1b")), tmp_path / "count.json"
    schema.write_text('{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}')
    words = ("run", source, "-o", tmp_path / "out.jsonl", "--base-url", fake.url, "--progress", "none")
    code, out, _ = ask(*words, "--schema", schema)
    assert code == 1
    assert "2 output_unparsed" in out
    assert 'the answer does not fit count: n: breaks type "integer"' in out
    assert fake.ledger.count() == 4
    code, _, err = ask(*words)
    assert code == 2
    assert "response_model was JsonSchema, is not set" in err


def test_an_openai_server_is_asked_with_the_key_of_the_environment(
    ask: Cli, fake_ollama_factory: Callable[..., FakeOllama], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = fake_ollama_factory(api_key="sesame")
    source, output = write(tmp_path / "in.jsonl", rows(3)), tmp_path / "out.jsonl"
    words = (
        "run",
        source,
        "-o",
        output,
        "--api",
        "openai",
        "--base-url",
        f"{fake.url}/v1",
        "--model",
        "toy:1b",
    )
    code, _, err = ask(*words, "--progress", "none")
    assert (code, fake.ledger.count()) == (2, 0), err
    monkeypatch.setenv("MY_KEY", "sesame")
    code, out, err = ask(*words, "--progress", "none", "--api-key-env", "MY_KEY")
    assert code == 0, err
    assert "sesame" not in out + err
    assert {record.route for record in fake.ledger.completions()} == {"/v1/chat/completions"}


def test_failed_rows_exit_1_and_are_sent_again_when_asked_for(
    ask: Cli, fake_ollama_factory: Callable[..., FakeOllama], tmp_path: Path
) -> None:
    fake = fake_ollama_factory(faults=(Fault("status", status=400, match="bad", first=1),))
    lines = [line("r0"), line("r1", "bad one"), line("r2")]
    source, output = write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    words = ("run", source, "-o", output, "--base-url", fake.url, "--model", "toy:1b", "--progress", "none")
    code, out, _ = ask(*words)
    assert code == 1
    assert "request_rejected" in out
    assert ids(tmp_path / "out.errors.jsonl") == ["r1"]
    assert ask("verify", source, output)[0] == 0
    code, out, _ = ask("status", f"{output}.run.db")
    assert code == 0
    assert "finished: 3 of 3 rows done, 2 ok, 1 failed, 0 left" in out
    assert "1  request_rejected" in out
    assert "\n  mode independent\n" in out
    assert ask(*words)[0] == 1
    assert fake.ledger.count() == 3
    assert ask(*words, "--retry-failed")[0] == 0
    assert fake.ledger.counts() == {"r0": 1, "bad one": 2, "r2": 1}
    assert ids(output) == ["r0", "r1", "r2"]
    assert not (tmp_path / "out.errors.jsonl").exists()


def test_several_inputs_have_one_output_each_and_are_verified_together(
    ask: Cli, fake_ollama: FakeOllama, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        write(tmp_path / f"{name}.jsonl", rows(3))
    folder, elsewhere = tmp_path / "out", tmp_path / "again"
    folder.mkdir()
    elsewhere.mkdir()
    words = ("--base-url", fake_ollama.url, "--model", "toy:1b", "--progress", "none")
    assert ask("run", tmp_path / "?.jsonl", "-o", folder, *words)[0] == 0
    assert fake_ollama.ledger.count() == 6
    assert ask("verify", tmp_path / "a.jsonl", tmp_path / "b.jsonl", folder)[0] == 0
    code, _, err = ask("export", folder / "batch.run.db", "-o", tmp_path / "one.jsonl")
    assert code == 2
    assert "2 outputs" in err
    assert ask("export", folder / "batch.run.db", "-o", elsewhere)[0] == 0
    for name in ("a.results.jsonl", "b.results.jsonl"):
        assert (elsewhere / name).read_bytes() == (folder / name).read_bytes()
    (folder / "b.results.jsonl").write_text("")
    code, out, _ = ask("verify", tmp_path / "?.jsonl", folder)
    assert code == 1
    assert "missing: 3 (r0, r1, r2)" in out


def test_a_missing_model_exits_2_with_the_line_that_gets_it(
    ask: Cli, fake_ollama: FakeOllama, tmp_path: Path
) -> None:
    source = write(tmp_path / "in.jsonl", rows(2, model="gemma3:12b"))
    code, _, err = ask("run", source, "-o", tmp_path / "out.jsonl", "--base-url", fake_ollama.url)
    assert code == 2
    assert "ollama pull gemma3:12b" in err
    assert f"'gemma3:12b' is what line 1 of {source} names: another model is given with --model M" in err
    assert fake_ollama.ledger.count() == 0
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_rows_that_all_name_another_model_are_one_mistake_with_two_ways_out(
    ask: Cli, fake_ollama: FakeOllama, tmp_path: Path
) -> None:
    source, output = write(tmp_path / "in.jsonl", rows(50, model="gpt-4o-mini")), tmp_path / "out.jsonl"
    words = ("run", source, "-o", output, "--base-url", fake_ollama.url, "--model", "toy:1b")
    code, _, err = ask(*words, "--progress", "none")
    assert code == 2
    assert "all 50 rows name 'gpt-4o-mini', the run is for 'toy:1b'; nothing was sent" in err
    assert "--ignore-row-models" in err
    assert "--allow-model" in err
    assert len(err.splitlines()) == 1
    assert ask(*words, "--progress", "none", "--ignore-row-models")[0] == 0
    assert {record.model for record in fake_ollama.ledger.completions()} == {"toy:1b"}
    code, _, err = ask(*words, "--progress", "none")
    assert code == 2, "whose answers these are is part of what the run is"
    assert "row_models" in err


def test_every_command_states_its_own_exit_codes(ask: Cli) -> None:
    said = {name: ask(name, "--help")[1].partition("exit codes: ")[2] for name in ("status", "watch")}
    assert all(text.startswith("0 told, however the run stands; 2") for text in said.values())
    assert "0 written" in ask("export", "--help")[1]
    assert "1 lines are missing" in ask("verify", "--help")[1]
    assert "3 stopped, resumable" in ask("run", "--help")[1]


def test_invalid_rows_are_refused_or_skipped_and_verify_knows_them(
    ask: Cli, fake_ollama: FakeOllama, tmp_path: Path
) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    good = "".join(json.dumps(each) + "\n" for each in [*rows(3), line("r1")])
    source.write_text(good + "{\n" + '{"custom_id": "odd", "method": "POST"}\n' + "[]\n")
    words = (
        "run",
        source,
        "-o",
        output,
        "--base-url",
        fake_ollama.url,
        "--model",
        "toy:1b",
        "--progress",
        "none",
    )
    code, _, err = ask(*words)
    assert code == 2
    assert "4 of 7 rows are invalid; nothing was sent" in err
    assert fake_ollama.ledger.count() == 0
    code, out, _ = ask(*words, "--on-invalid", "skip")
    assert code == 1
    assert "1 invalid_json_line (line 5): " in out
    assert "1 invalid_json_line (line 7): " in out
    assert "4 rows are no valid requests" in out
    assert "--retry-failed" not in out
    assert fake_ollama.ledger.count() == 3
    assert ids(tmp_path / "out.errors.jsonl") == ["r1", None, "odd", None]
    code, out, _ = ask("verify", source, output)
    assert (code, out) == (0, "7 rows, 7 lines (3 ok, 4 failed): every row has exactly one\n")


def test_status_tells_what_memory_was_in_use_and_what_trouble_there_was(ask: Cli, tmp_path: Path) -> None:
    row = Row(custom_id="a", text="x", at=1.0, latency_s=0.5)
    journal = write_journal(tmp_path / "run.db", [row], memory=False)
    out = ask("status", journal)[1]
    assert not [word for word in ("VRAM", "RAM", "recover", "restart") if word in out]
    gib = 2**30
    far = {"vram_used_bytes": 5 * gib, "vram_total_bytes": None, "ram_used_bytes": None}
    near = {"vram_used_bytes": 13 * gib, "vram_total_bytes": 16 * gib, "ram_used_bytes": 9 * gib}
    ok, con = {"outcome": "ok"}, sqlite3.connect(journal)
    for notes, said in (
        ([("memory", near), ("memory", far)], "5.0 GiB of VRAM in use"),
        ([("memory", near)], "13.0 of 16.0 GiB of VRAM, 9.0 GiB of RAM in use"),
        (
            [("recovery", {"do": "pause"}), ("recovery", {"do": "fail"})],
            "1 recovery of the engine, 0 restarts",
        ),
        ([("recovery", {"do": "pause"}), ("restart", ok)], "2 recoveries of the engine, 1 restart"),
    ):
        values = [(time.time() - 90, kind, json.dumps(data)) for kind, data in notes]
        con.executemany("INSERT INTO notes (at, kind, data) VALUES (?, ?, ?)", values)
        con.commit()
        out = ask("status", journal)[1]
        ago = r" 1m3\ds ago" if "in use" in said else ""
        assert re.search(rf"^  {said}{ago}$", out, re.MULTILINE)
    con.close()


def test_verify_finds_what_is_missing_extra_doubled_or_no_result(ask: Cli, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", rows(50))
    answer = {"response": {"status_code": 200, "request_id": "", "body": {}}, "error": None}
    lost = {"response": None, "error": {"code": "connection_lost", "message": "gone"}}
    kept = [{"custom_id": f"r{n}", **answer} for n in range(50) if n not in (7, 31)]
    more = [{"custom_id": "r3", **answer}, {"custom_id": "stranger", **answer}]
    output = write(tmp_path / "out.jsonl", [*kept, *more])
    failed = write(tmp_path / "failed.jsonl", [{"custom_id": "r4", **lost}])
    with output.open("a") as file:
        file.write('{\n{"custom_id": "r7"}\n')
    code, out, _ = ask("verify", source, output, "--errors", failed)
    assert code == 1
    assert "missing: 2 (r31, r7)" in out
    assert "extra: 1 (stranger)" in out
    assert "doubled: 2 (r3, r4)" in out
    assert f"unreadable: 1 ({output}:51)" in out
    assert f"no result: 1 ({output}:52 r7)" in out


def test_verify_takes_no_requests_for_results(ask: Cli, fake_ollama: FakeOllama, tmp_path: Path) -> None:
    source, output = write(tmp_path / "in.jsonl", rows(3)), tmp_path / "out.jsonl"
    words = ("--base-url", fake_ollama.url, "--model", "toy:1b", "--progress", "none")
    assert ask("run", source, "-o", output, *words)[0] == 0
    for given in (source, output):  # the input twice, and the two the wrong way round
        code, out, _ = ask("verify", given, source)
        assert code == 1
        assert "3 lines (0 ok, 0 failed)" in out
        assert f"no result: 3 ({source}:1 r0, {source}:2 r1, {source}:3 r2)" in out


# Beside a writer in another process


def test_a_run_is_seen_from_outside_while_it_goes_and_can_be_exported_when_it_was_killed(
    ask: Cli, fake_ollama: FakeOllama, tmp_path: Path
) -> None:
    lines = [*rows(3), *(line(f"w{n}", f"wait {n}") for n in range(4))]
    source, output = write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    journal, so_far = f"{output}.run.db", tmp_path / "so-far.jsonl"
    with running(fake_ollama, source, output) as child:
        code, out, _ = ask("status", journal)
        assert (code, out.split(" (run")[0]) == (
            0,
            "running: 3 of 7 rows done, 3 ok, 0 failed, 4 left",
        )
        assert re.search(r"^  last result [\d.]+m?s ago, 3 in the last minute$", out, re.MULTILINE)
        assert set(ids(tmp_path / "out.jsonl.partial.jsonl")) == {"r0", "r1", "r2"}
        code, _, err = ask("export", journal)
        assert code == 2
        assert "say where to with -o" in err
        assert ask("export", journal, "-o", so_far)[0] == 0
        assert ids(so_far) == ["r0", "r1", "r2"]
        assert ask("verify", source, so_far)[0] == 1
        code, _, err = ask("export", journal, "-o", output)
        assert code == 2
        assert f"the run has not finished (running), and {output} is where it writes its own output" in err
        assert err.endswith("Give another name as -o\n")
        assert not output.exists()
        code, _, err = ask("run", source, "-o", output, "--base-url", fake_ollama.url, "--model", "toy:1b")
        assert code == 2, "a second runner is refused"
        assert f"{journal} is in use by another runner (process {child.pid})" in err
        threading.Timer(0.3, child.kill).start()
        code, out, _ = ask("watch", journal)
        assert code == 0
        assert out.splitlines()[0].startswith("running: 3 of 7")
        *_, last, why, then = out.splitlines()
        assert last.startswith("stopped: 3 of 7")
        assert "ended without saying why" in why
        assert then.startswith("  next: run the same command again: it sends the 4 rows left")
    fake_ollama.clear_faults()
    words = ("--base-url", fake_ollama.url, "--model", "toy:1b", "--progress", "none")
    assert ask("run", source, "-o", output, *words)[0] == 0, "an export in between is not in its way"
    counts = fake_ollama.ledger.counts()
    assert [counts[f"r{n}"] for n in range(3)] == [1, 1, 1]
    assert ids(output) == [each["custom_id"] for each in lines]
    output.unlink()
    assert ask("export", journal)[0] == 0, "a finished run writes its own output again"
    assert ids(output) == [each["custom_id"] for each in lines]


def test_an_export_of_a_run_that_has_not_finished_does_not_take_the_place_of_its_own_files(
    ask: Cli, fake_ollama_factory: Callable[..., FakeOllama], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = fake_ollama_factory(faults=(Fault("status", status=400, match="r1", first=1),))
    folder, elsewhere, by_link = tmp_path / "out", tmp_path / "elsewhere", tmp_path / "link"
    folder.mkdir()
    elsewhere.mkdir()
    by_link.symlink_to(folder)
    source, output = write(tmp_path / "in.jsonl", rows(3)), folder / "out.jsonl"
    failed, journal = folder / "out.errors.jsonl", folder / "out.jsonl.run.db"
    words = ("run", source, "-o", output, "--base-url", fake.url, "--model", "toy:1b", "--progress", "none")
    assert ask(*words, "--max-failures", 0, "--concurrency", 1)[0] == 3
    monkeypatch.chdir(folder)
    for places, file in (
        (["-o", output], output),
        (["-o", "out.jsonl"], output),
        (["-o", "out.jsonl", "--overwrite"], output),
        (["-o", folder], output),
        (["-o", by_link / "out.jsonl"], by_link / "out.jsonl"),
        (["-o", elsewhere / "out.jsonl", "--errors", failed], failed),
        (["-o", elsewhere / "out.jsonl", "--errors", by_link / failed.name], by_link / failed.name),
    ):
        code, _, err = ask("export", journal, *places)
        assert code == 2
        assert f"the run has not finished (stopped), and {file} is where it writes its own" in err
        assert err.endswith(f"Give another name as {'--errors' if '--errors' in places else '-o'}\n")
        assert not output.exists()
        assert not failed.exists()
        assert not list(elsewhere.iterdir())
    assert ask("export", journal, "-o", elsewhere)[0] == 0, "of the same name, in another folder"
    folder.rename(tmp_path / "moved")
    assert ask("export", tmp_path / "moved/out.jsonl.run.db", "-o", tmp_path / "moved/out.jsonl")[0] == 2
    (tmp_path / "moved").rename(folder)
    assert ask(*words, "--retry-failed")[0] == 0, "nothing is in its way"
    assert ids(output) == ["r0", "r1", "r2"]
    for places in (["-o", by_link / journal.name], ["-o", elsewhere / "x", "--errors", journal]):
        code, _, err = ask("export", journal, *places, "--overwrite")
        assert code == 2
        assert f"{journal} is the journal of the run: give another name as -o" in err
    assert ask("status", journal)[0] == 0


def test_an_export_does_not_replace_what_a_run_wrote_before_it_began_to_send_failed_rows_again(
    ask: Cli, fake_ollama_factory: Callable[..., FakeOllama], tmp_path: Path
) -> None:
    once = Fault("status", status=400, match="r1", first=1)
    fake = fake_ollama_factory(faults=(once, Fault("status", status=400, match="r2")))
    source, output = write(tmp_path / "in.jsonl", rows(3)), tmp_path / "out.jsonl"
    words = ("run", source, "-o", output, "--base-url", fake.url, "--model", "toy:1b", "--progress", "none")
    assert ask(*words)[0] == 1
    assert ids(output) == ["r0"]
    assert ask(*words, "--retry-failed", "--max-failures", 0, "--concurrency", 1)[0] == 3
    code, _, err = ask("export", f"{output}.run.db")
    assert code == 2
    assert f"the run has not finished sending rows again, and {output} is where it writes" in err
    assert ids(output) == ["r0"]
    assert ask("export", f"{output}.run.db", "-o", tmp_path / "so-far.jsonl")[0] == 0
    assert ids(tmp_path / "so-far.jsonl") == ["r0", "r1"]
    assert ask(*words)[0] == 1, "nothing is in its way"
    assert ids(output) == ["r0", "r1"]
    assert ask("export", f"{output}.run.db")[0] == 0


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 3)], ids=["SIGINT", "SIGTERM"]
)
def test_a_signal_ends_the_process_with_its_code_and_the_run_goes_on_later(
    ask: Cli, fake_ollama: FakeOllama, tmp_path: Path, number: int, code: int
) -> None:
    source, output = write(tmp_path / "in.jsonl", rows(6)), tmp_path / "out.jsonl"
    words = ("--base-url", fake_ollama.url, "--model", "toy:1b", "--concurrency", 2, "--progress", "plain")
    fake_ollama.hold()
    with process("run", source, "-o", output, *words) as child:
        assert child.stderr is not None
        fake_ollama.wait_until(lambda ledger: ledger.count() == 2)
        child.send_signal(number)
        ending = next(line for line in child.stderr if "state=ending" in line)
        fake_ollama.release()
        out, err = child.communicate(timeout=30)
    assert child.returncode == code, err
    assert "in_flight=2" in ending
    assert "waiting for the requests that are out" in ending
    assert ("interrupt once more" in ending) == (number == signal.SIGINT)
    assert "WARNING" not in err, "the progress has said it"
    assert "2 of 6 rows ok, 4 left" in out
    assert "run again to go on" in err
    assert "Traceback" not in err
    assert ask("run", source, "-o", output, *words)[0] == 0
    assert fake_ollama.ledger.counts() == {f"r{n}": 1 for n in range(6)}


def test_requests_come_from_standard_input(fake_ollama: FakeOllama, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    words = ("--base-url", fake_ollama.url, "--model", "toy:1b", "--progress", "plain")
    with process("run", "-", "-o", output, *words, stdin=subprocess.PIPE) as child:
        out, err = child.communicate("".join(json.dumps(each) + "\n" for each in rows(5)), timeout=30)
    assert child.returncode == 0, err
    assert "5 of 5 rows ok" in out
    assert err.splitlines()[0].startswith("ollama-batch state=running done=0 total=5")
    assert err.splitlines()[-1].startswith("ollama-batch state=completed done=5 total=5")
    assert ids(output) == [f"r{n}" for n in range(5)]


def test_ctrl_c_ends_a_run_that_waits_for_standard_input(fake_ollama: FakeOllama, tmp_path: Path) -> None:
    words = ("--base-url", fake_ollama.url, "--model", "toy:1b", "--progress", "none")
    with process("run", "-", "-o", tmp_path / "out.jsonl", *words, stdin=subprocess.PIPE) as child:
        assert child.stdin is not None
        child.stdin.write(json.dumps(line("r0")) + "\n")
        child.stdin.flush()
        fake_ollama.wait_until(lambda ledger: ledger.answered("r0") == 1)
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=20) == 130


def test_no_engine_exits_3_and_names_the_address(tmp_path: Path) -> None:
    with FakeOllama() as fake:
        address = fake.url
    source = write(tmp_path / "in.jsonl", rows(2))
    with process(
        "run",
        source,
        "-o",
        tmp_path / "out.jsonl",
        "--model",
        "m",
        env={**os.environ, "OLLAMA_HOST": address},
    ) as child:
        _, err = child.communicate(timeout=30)
    assert child.returncode == 3, err
    assert err.count(f"nothing answers at {address}") == 1, "not in a line of progress as well"
    assert "ollama serve" in err
    assert "Traceback" not in err


def test_a_reader_that_leaves_does_not_break_a_command(
    ask: Cli, fake_ollama: FakeOllama, tmp_path: Path
) -> None:
    source, output = write(tmp_path / "in.jsonl", rows(1)), tmp_path / "out.jsonl"
    words = (
        "run",
        source,
        "-o",
        output,
        "--base-url",
        fake_ollama.url,
        "--model",
        "toy:1b",
        "--progress",
        "none",
    )
    for command in (words, ("status", f"{output}.run.db")):
        read, write_end = os.pipe()
        os.close(read)
        child = subprocess.run(
            [sys.executable, "-m", "ollama_batch.cli", *map(str, command)],
            stdout=write_end,
            stderr=subprocess.PIPE,
            text=True,
            timeout=30,
            check=False,
        )
        os.close(write_end)
        assert (child.returncode, child.stderr) == (0, "")
    assert ids(output) == ["r0"]


@pytest.mark.slow
def test_the_toy_engine_runs_anybodys_file(ask: Cli, tmp_path: Path) -> None:
    source, output = write(tmp_path / "in.jsonl", rows(4, model="gemma3:12b")), tmp_path / "out.jsonl"
    code, out, err = ask("run", source, "-o", output, "--toy", "--progress", "none")
    assert code == 0, out + err
    assert "random weights: the answers mean nothing" in out
    assert ids(output) == ["r0", "r1", "r2", "r3"]


def test_a_toy_answers_standard_input_whatever_model_its_lines_name(
    ask: Cli, seen: type[Seen], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask("run", "-", "-o", "out.jsonl", "--toy")[0] == 0
    assert (seen.made["model"], seen.made["row_models"]) == ("toy", "ignore")
    seen.ran["requests"].close()
    ask("run", "-", "-o", "out.jsonl", "--toy", "--model", "m", "--allow-model", "n")
    assert (seen.made["model"], seen.made["row_models"]) == ("m", "check"), "listed models are meant"
    seen.ran["requests"].close()
    ask("run", write(tmp_path / "in.jsonl", rows(1)), "-o", "out.jsonl", "--model", "m")
    assert seen.made["row_models"] == "check", "a model that means something is not answered for by another"


@pytest.mark.slow
def test_lines_from_standard_input_that_name_models_get_answers_from_a_toy(tmp_path: Path) -> None:
    lines = [line("r0", model="gemma3:12b"), line("r1", model="gpt-4o-mini"), line("r2")]
    output = tmp_path / "out.jsonl"
    with process("run", "-", "-o", output, "--toy", "--progress", "none", stdin=subprocess.PIPE) as child:
        _, err = child.communicate("".join(json.dumps(each) + "\n" for each in lines), timeout=60)
    assert child.returncode == 0, err
    assert ids(output) == ["r0", "r1", "r2"]


def test_a_row_for_another_model_is_refused_with_the_options_that_help(
    fake_ollama: FakeOllama, tmp_path: Path
) -> None:
    words = ("--base-url", fake_ollama.url, "--model", "toy:1b", "--progress", "none")
    with process("run", "-", "-o", tmp_path / "out.jsonl", *words, stdin=subprocess.PIPE) as child:
        _, err = child.communicate(json.dumps(line("r0", model="other")) + "\n", timeout=30)
    assert child.returncode == 2, err
    assert "(--ignore-row-models sends it there, --allow-model takes more)" in err
    assert "--on-invalid skip" in err
    assert not re.search(r"\w=", err), "no word of it is Python"


@pytest.mark.slow
def test_the_demo_runs_and_runs_again(ask: Cli, tmp_path: Path) -> None:
    for _ in range(2):
        code, out, err = ask("demo", "--folder", tmp_path / "demo", "--rows", 12)
        assert code == 0, out + err
        assert "9 requests; 3 profiles" in out
        assert "9 of 9 rows ok" in out
        assert "9 sent, 0 from the journal" in out
        assert "TOY MODEL" in out
        assert "9 of 12 candidates evaluated" in out
    assert ask("verify", tmp_path / "demo/requests.jsonl", tmp_path / "demo/evaluations.jsonl")[0] == 0
    made = {"export.json", "evaluated.json", "ranking.csv", "report.html", "schema.json"}
    assert made <= {path.name for path in (tmp_path / "demo").iterdir()}


def test_the_demo_writes_over_nobodys_files(ask: Cli, tmp_path: Path) -> None:
    mine = tmp_path / "export.json"
    mine.write_text("mine")
    code, _, err = ask("demo", "--folder", tmp_path, "--rows", 8)
    assert code == 2
    assert "holds export.json, which is no demonstration's" in err
    assert "is a file" in ask("demo", "--folder", mine)[2]
    assert ask("demo", "--folder", tmp_path / "new", "--rows", 1)[0] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["export.json"]
    assert mine.read_text() == "mine"


def test_the_installed_command_is_this_one() -> None:
    script = shutil.which("ollama-batch", path=str(Path(sys.executable).parent))
    assert script is not None
    told = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=30, check=True)
    from ollama_batch import __version__

    assert told.stdout == f"ollama-batch {__version__}\n"


def test_thinking_is_asked_of_models_that_can(
    ask: Cli, fake_ollama_factory: Callable[..., FakeOllama], tmp_path: Path
) -> None:
    fake = fake_ollama_factory(models=(FakeModel("thinker", thinking=True),))
    source = write(tmp_path / "in.jsonl", rows(1))
    words = ("--base-url", fake.url, "--model", "thinker", "--think", "high", "--progress", "none")
    assert ask("run", source, "-o", tmp_path / "out.jsonl", *words)[0] == 0
    assert fake.ledger.completions()[0].sent["think"] == "high"


def test_a_conversation_is_held_from_the_command_line(
    ask: Cli, fake_ollama: FakeOllama, tmp_path: Path
) -> None:
    source = write_lines(tmp_path / "in.jsonl", rows(6))
    words = ("--base-url", fake_ollama.url, "--model", "toy:1b", "--progress", "none")
    talk = ("--mode", "conversation", "--lanes", "2", "--trim", "sliding", "--trim-every", "5")
    code, out, err = ask("run", source, "-o", tmp_path / "out.jsonl", *words, *talk)
    assert code == 0, err
    assert "lanes 2" in out
    refused = ask("run", source, "-o", tmp_path / "other.jsonl", *words, "--lanes", "2")
    assert refused[0] == 2
    assert "--lanes is for --mode conversation: add that, or leave it out" in refused[2]
    code, told, _ = ask("status", tmp_path / "out.jsonl.run.db")
    assert code == 0
    assert "  mode conversation, 2 lanes; 0 rows trimmed, 0 tokens left out\n" in told
    shares = ("--mode", "conversation", "--low", "0.9", "--high", "0.8")
    refused = ask("run", source, "-o", tmp_path / "other.jsonl", *words, *shares)
    assert refused[0] == 2
    assert "--low 0.9, --high 0.8: low is above high" in refused[2]


def test_a_strategy_shortens_what_does_not_fit(ask: Cli, fake_ollama: FakeOllama, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "w " * 300}, {"role": "assistant", "content": "a " * 300}]
    long = rows(1)[0]
    long["body"]["messages"] = [*turns * 3, *long["body"]["messages"]]
    source = write_lines(tmp_path / "in.jsonl", [long])
    words = ("--base-url", fake_ollama.url, "--model", "toy:1b", "--progress", "none")
    small = ("--num-ctx", "512", "--max-tokens", "64")
    code, out, _ = ask("run", source, "-o", tmp_path / "out.jsonl", *words, *small)
    assert code == 1
    assert "context_length_exceeded" in out
    code, out, _ = ask("run", source, "-o", tmp_path / "cut.jsonl", *words, *small, "--trim", "hybrid")
    assert code == 0
    assert "; 1 trim saved" in out
