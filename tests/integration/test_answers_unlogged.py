"""An engine that fails with an answer in its reply: no log has the answer, and the wait can be set."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from ollama_batch import _outage
from ollama_batch.cli import main
from ollama_batch.testing import FakeOllama, FakeReply

PROMPT, ANSWER = "canary-of-the-prompt", "canary-of-the-answer"


@pytest.mark.parametrize("api", ["ollama", "openai"])
def test_a_failed_reply_that_holds_an_answer_is_told_without_it(
    api: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_outage, "FIRST_S", 0.05)
    requests, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    body = {"messages": [{"role": "user", "content": PROMPT}]}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    requests.write_text(json.dumps(line) + "\n")
    began = time.monotonic()
    with FakeOllama(reply=FakeReply(ANSWER, status=500)) as fake:
        place = fake.url if api == "ollama" else f"{fake.url}/v1"
        options = ["--api", api, "--base-url", place, "--model", "toy:1b", "--recover-timeout", "1.5"]
        code = main(["run", str(requests), "-o", str(output), "--progress", "none", *options])
    told = "".join((*capfd.readouterr(), caplog.text))
    assert code == 3
    assert time.monotonic() - began < 60
    assert "canary" not in told
    assert "the server answered HTTP 500, with" in told
    assert "bytes that are no error message" in told
    assert "no row has been answered for" in told
    assert "did not come back within 1.5 s" in told
