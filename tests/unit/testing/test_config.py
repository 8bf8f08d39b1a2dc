from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ollama_batch.testing import CostModel, FakeModel, FakeOllama, FakeReply, Fault, Ledger
from ollama_batch.testing._answers import words
from ollama_batch.testing.config import FakeConfig
from ollama_batch.tokens import user_state_dir


def test_settings_survive_the_way_into_another_process() -> None:
    config = FakeConfig(
        models=(FakeModel("a"), FakeModel("b:2", digest="d", thinking=True, context_length=8192)),
        speed=CostModel(prefill_tps=100.0, load_s=1.0),
        faults=(Fault("busy", when=(1, 3)),),
        reply=FakeReply("x", tool_calls=({"name": "f", "arguments": {"a": 1}},)),
    )
    assert FakeConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_a_reply_function_travels_by_name_or_not_at_all() -> None:
    config = FakeConfig(reply=words)
    assert FakeConfig.from_json(json.loads(json.dumps(config.to_json()))).reply is words

    def local(body: Mapping[str, Any]) -> str:
        return ""

    with pytest.raises(TypeError, match="cannot be imported"):
        FakeConfig(reply=local).to_json()


def test_names_without_a_tag_are_latest_and_digests_differ() -> None:
    one, two = FakeModel("toy"), FakeModel("toy:1b")
    assert one.name == "toy:latest"
    assert len({one.digest, two.digest}) == 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: FakeModel(""),
        lambda: FakeModel("m", sliding_window=-1),
        lambda: FakeModel("m", global_every=0),
        lambda: FakeConfig(slots=0),
        lambda: FakeConfig(models=(FakeModel("a"), FakeModel("a:latest"))),
        lambda: CostModel(prefill_tps=0),
        lambda: CostModel(latency_s=-1),
    ],
)
def test_settings_that_make_no_sense_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match=r"Fake|CostModel"):
        make()


@pytest.mark.parametrize(
    ("calls", "where"),
    [
        ({"name": "f", "arguments": {}}, "tool_calls is"),
        ("f()", "tool_calls is"),
        (["f()"], "tool_calls[0] is"),
        ([{"name": "f", "arguments": {}}, {"arguments": {}}], "tool_calls[1]['name'] is None"),
        ([{"name": ""}], "tool_calls[0]['name']"),
        ([{"name": "f", "arguments": [1]}], "tool_calls[0]['arguments']"),
        ([{"name": "f", "arguments": "{"}], "tool_calls[0]['arguments']"),
        ([{"function": "f"}], "tool_calls[0]['function']"),
        ([{"function": {"name": "f", "arguments": "[]"}}], "tool_calls[0]['function']['arguments']"),
        ([{"id": 7, "function": {"name": "f"}}], "tool_calls[0]['id']"),
        ([{"type": "custom", "custom": {"name": "f"}}], "tool_calls[0]['type']"),
    ],
)
def test_what_is_no_tool_call_is_refused_where_it_is_made(calls: Any, where: str) -> None:
    with pytest.raises(ValueError, match=r"FakeReply\.") as refused:
        FakeReply(tool_calls=calls)
    assert where in str(refused.value)
    assert "body=" in str(refused.value)


def test_importing_the_testing_package_loads_no_http_library() -> None:
    heavy = ("aiohttp", "httpx", "pytest")
    code = f"import sys, ollama_batch.testing; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_server_that_was_not_started_says_so() -> None:
    fake = FakeOllama()
    for use in (lambda: fake.url, fake.stop, lambda: fake.inject(Fault("busy"))):
        with pytest.raises(RuntimeError, match="with"):
            use()
    fake.close()


def test_waiting_for_what_does_not_come_ends() -> None:
    with pytest.raises(TimeoutError), FakeOllama() as fake:
        fake.wait_until(lambda ledger: ledger.count() == 1, timeout=0.02)
    assert isinstance(fake.ledger, Ledger)


def test_what_runs_learn_beside_a_fake_stays_in_the_test(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    request.getfixturevalue("fake_ollama_factory")
    assert tmp_path not in user_state_dir().parents
