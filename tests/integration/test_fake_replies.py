"""A reply function that raises is told to the test it belongs to, whatever else becomes of the test."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from typing import Any

import httpx
import pytest

from ollama_batch.errors import EngineDownError
from ollama_batch.testing import FakeOllama, FakeReply, FakeServer
from trouble_support import quick_runner, rows

pytest_plugins = ["pytester"]


def ask(fake: FakeServer, *, stream: bool = False, route: str = "/api/chat") -> httpx.Response:
    body = {"model": "toy:1b", "messages": [{"role": "user", "content": "row-1"}], "stream": stream}
    return httpx.post(fake.url + route, json=body, trust_env=False, timeout=10)


def clumsy(body: Any) -> str:
    return str(body["no such field"])


def wrong(body: Any) -> str:
    assert body["options"]["num_ctx"] == 4096, "the context was not sent"
    return "fine"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ["/api/chat", "/v1/chat/completions"])
def test_the_request_is_answered_with_500_and_the_name_of_what_was_raised(route: str, stream: bool) -> None:
    fake = FakeOllama(reply=clumsy).start()
    try:
        answer = ask(fake, stream=stream, route=route)
        assert answer.status_code == 500
        assert "the reply function of FakeOllama raised KeyError: 'no such field'" in answer.text
        assert [each.outcome for each in fake.ledger.completions()] == ["error"]
        assert ask(fake).status_code == 500, "its place in the model was given back"
    finally:
        with pytest.raises(KeyError):
            fake.close()


def test_the_exception_itself_comes_out_of_the_block_with_the_line_that_raised_it() -> None:
    def use() -> None:
        with FakeOllama(reply=clumsy) as fake:
            for _ in range(3):
                ask(fake)

    with pytest.raises(KeyError) as raised:
        use()
    frames = traceback.extract_tb(raised.value.__traceback__)
    assert frames[-1].name == "clumsy"
    assert frames[-1].line == 'return str(body["no such field"])'
    assert raised.value.__notes__ == ["the first of 3 times that the reply function of FakeOllama raised"]


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (wrong, (KeyError, "options")),
        (lambda _: pytest.fail("not like this"), (pytest.fail.Exception, "not like this")),
        (lambda _: sys.exit(3), (SystemExit, "3")),
        (lambda _: {"text": "fine"}, (TypeError, "reply gave a dict: must be a str, a FakeReply or None")),
        (lambda _: FakeReply("x", tool_calls=[{"nameless": 1}]), (ValueError, "tool")),
    ],
)
def test_whatever_it_raises_is_told(reply: Any, told: tuple[type[BaseException], str]) -> None:
    with pytest.raises(told[0], match=told[1]), FakeOllama(reply=reply) as fake:
        assert ask(fake).status_code == 500


def test_another_exception_goes_on_and_has_it_in_its_notes() -> None:
    def use() -> None:
        with FakeOllama(reply=clumsy) as fake:
            ask(fake)
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError) as raised:
        use()
    (note,) = raised.value.__notes__
    assert note.startswith("before that the reply function of the fake server raised:\nTraceback ")
    assert 'return str(body["no such field"])' in note
    assert "KeyError: 'no such field'" in note


def test_it_is_raised_once_and_may_be_asked_for() -> None:
    with FakeOllama(reply=clumsy) as fake:
        fake.check()
        ask(fake)
        with pytest.raises(KeyError, match="no such field"):
            fake.check()
        fake.check()
        fake.stop()
        fake.restart()
        ask(fake)
        with pytest.raises(KeyError):
            fake.close()
        fake.close()


def test_a_run_against_it_ends_at_once_and_names_it() -> None:
    with FakeOllama(reply=clumsy) as fake:
        with pytest.raises(EngineDownError, match="raised KeyError: 'no such field'"):
            quick_runner(fake, recover_timeout=600.0).run(rows(20))
        with pytest.raises(KeyError):
            fake.check()


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A reply function that another process can import, too."""
    (tmp_path / "clumsy_replies.py").write_text('def clumsy(body):\n    return body["no such field"]\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return importlib.import_module("clumsy_replies").clumsy


def test_a_server_in_a_process_of_its_own_tells_it_with_the_traceback(importable: Any) -> None:
    fake = FakeOllama.spawn(reply=importable)
    assert ask(fake).status_code == 500
    with pytest.raises(RuntimeError, match="KeyError: 'no such field'"):
        fake.check()
    fake.check()
    ask(fake)
    with pytest.raises(RuntimeError) as raised:
        fake.close()
    assert "raised in the server's process:\nTraceback" in str(raised.value)
    assert 'return body["no such field"]' in str(raised.value)
    fake.close()


def test_a_server_that_was_killed_has_nothing_to_tell(importable: Any) -> None:
    with FakeOllama.spawn(reply=importable) as fake:
        ask(fake)
        fake.kill()


TESTS = """
import httpx

def clumsy(body):
    return body["no such field"]

def ask(fake):
    body = {"model": "toy:1b", "messages": [{"role": "user", "content": "a"}], "stream": False}
    return httpx.post(fake.url + "/api/chat", json=body, trust_env=False)

def test_it_did_not_look(fake_ollama_factory):
    ask(fake_ollama_factory(reply=clumsy))

def test_two(fake_ollama_factory):
    ask(fake_ollama_factory(reply=clumsy))
    ask(fake_ollama_factory(reply=lambda body: 1 / 0))

def test_it_looked(fake_ollama_factory):
    assert ask(fake_ollama_factory(reply=clumsy)).status_code == 200

def test_well(fake_ollama_factory):
    assert ask(fake_ollama_factory(reply=lambda body: "fine")).status_code == 200
"""


def test_the_fixtures_fail_the_test_whose_reply_function_raised(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:asyncio")
    result.assert_outcomes(passed=3, failed=1, errors=3)
    told = result.stdout.str()
    assert told.count('return body["no such field"]') >= 3
    assert "ZeroDivisionError" in told
