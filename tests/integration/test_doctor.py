"""The doctor at servers with one fault each: what it finds, what mends it, and that it does no harm."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from doctor_support import FakeMachine, card
from engines_support import OLLAMA_ANSWER, Canned, raw_server
from memory_support import GIB, host, known, sample
from ollama_batch import BatchRunner
from ollama_batch.cli import main
from ollama_batch.doctor import Diagnosis, Finding, diagnose, examine
from ollama_batch.doctor.place import Place
from ollama_batch.engines import OllamaEngine
from ollama_batch.errors import ConfigError, EngineUnreachableError, InputError
from ollama_batch.memory import GpuProcess, MemorySample, ModelShape, Reading, plan_memory
from ollama_batch.testing import CostModel, FakeModel, FakeOllama, FakeReply, Fault
from runner_support import rows_file

FAST = CostModel(decode_tps=400)
"""An answer of 16 tokens takes 40 ms."""

LLAMA = FakeModel("llama:8b", size=5 * GIB, layers=32, kv_heads=8, head_dim=128, family="llama")
GEMMA = FakeModel("gemma3:12b", size=8_100_000_000, layers=48, kv_heads=8, head_dim=256, family="gemma3")


@pytest.fixture(autouse=True)
def nothing_learned_before(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of these tests have the same names, and differ in what they take."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))


def one(found: Diagnosis, check: str) -> Finding:
    """The only finding of a check."""
    findings = found.on(check)
    assert len(findings) == 1, findings
    return findings[0]


async def at(fake: FakeOllama, model: str | None = "toy:1b", **options: Any) -> Diagnosis:
    options.setdefault("machine", FakeMachine())
    return await diagnose(model, base_url=fake.url, **options)


def requests_file(path: Path, rows: int, **body: Any) -> Path:
    return rows_file(path, rows, "row-", **body)


# The server


async def test_a_good_server_on_a_good_machine_has_no_problem_and_no_warning() -> None:
    with FakeOllama(slots=8, speed=FAST) as fake:
        machine = FakeMachine()
        found = await at(fake, num_ctx=4096, machine=machine)
        assert {each.level for each in found.findings} == {"ok"}, found.findings
        assert [each.check for each in found.findings] == [
            *(
                "server",
                "version",
                "model",
                "others",
                "load",
                "context",
                "slots",
                "idle",
                "card",
                "ram",
                "disk",
            )
        ]
        assert not machine.closed  # whose machine it is closes it
        assert fake.ledger.load_settings() == [{"model": "toy:1b", "num_ctx": 4096, "shift": False}]
        # For the 5 minutes that Ollama keeps a model by itself.
        assert all(each.sent["keep_alive"] == "5m" for each in fake.ledger.completions())
        assert fake.ledger.count() == 10


async def test_a_port_where_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    place = Place(address, None, "linux", unit=True)
    found = await diagnose("toy:1b", base_url=address, machine=FakeMachine(), place=place)
    server = one(found, "server")
    assert server.level == "problem"
    assert "nothing answers" in server.seen
    assert server.mend == ("sudo systemctl start ollama",)
    bare = Place(address, None, "linux")
    found_bare = await diagnose("toy:1b", base_url=address, machine=FakeMachine(), place=bare)
    assert "installed" not in one(found_bare, "server").seen
    (start,) = one(found_bare, "server").mend
    absent = replace(bare, installed=False)
    found_absent = one(await diagnose("m", base_url=address, machine=FakeMachine(), place=absent), "server")
    assert "no program ollama is installed on this machine" in found_absent.seen
    assert found_absent.mend[-1] == start
    engine = OllamaEngine(address)
    with pytest.raises(EngineUnreachableError) as refused:  # a run says the same
        await engine.describe("m")
    await engine.aclose()
    assert f"Start Ollama with:\n{start}\n" in str(refused.value)
    assert start == f"OLLAMA_HOST={address.removeprefix('http://')} ollama serve"
    # What does not need the server is looked at all the same.
    assert {"card", "ram", "disk"} <= {each.check for each in found.findings}
    assert not found.ok


async def test_a_server_that_takes_connections_and_never_answers() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with raw_server(silent) as url:
        found = await diagnose("m", base_url=url, patience_s=0.2, machine=FakeMachine())
    server = one(found, "server")
    assert server.level == "problem"
    assert "does not answer within 0.2 s" in server.seen


async def test_a_slow_server_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ollama_batch.doctor.server_checks.SLOW_S", 0.05)

    class Late(Canned):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            await asyncio.sleep(0.06)
            return await super().handle_async_request(request)

    late = Late(paths=canned().paths)
    found = await diagnose(None, base_url="http://x", transport=late, machine=FakeMachine())
    server = one(found, "server")
    assert server.level == "warning"
    assert server.numbers is not None
    assert server.numbers["took_s"] > 0.05


@pytest.mark.parametrize(
    ("version", "level", "missing"),
    [
        ("0.33.0", "ok", None),
        ("0.30.0-rc2", "ok", None),
        ("0.29.9", "note", "figures of memory"),
        ("0.12.3", "warning", "cut in silence"),
        ("0.8.1", "warning", "reasoning"),
        ("0.4.7", "warning", "JSON schemas"),
        ("0.0.0", "unknown", None),
        ("", "unknown", None),
    ],
)
async def test_what_an_old_version_is_too_old_for(version: str, level: str, missing: str | None) -> None:
    with FakeOllama(version=version) as fake:
        found = one(await at(fake, None, load=False), "version")
    assert found.level == level
    assert missing is None or missing in str(found.costs)
    assert bool(found.mend) == (level in ("note", "warning"))


async def test_what_answers_is_no_ollama() -> None:
    nobody = Canned(None)
    found = await diagnose("m", base_url="http://x", transport=nobody, machine=FakeMachine())
    assert "no Ollama" in one(found, "server").seen
    openai = Canned(None, paths={"/v1/models": {"object": "list", "data": []}})
    found = await diagnose("m", base_url="http://x", transport=openai, machine=FakeMachine())
    assert one(found, "server").mend == ("ollama-batch run IN -o OUT --api openai --base-url http://x/v1",)


async def test_a_server_that_does_not_tell_of_its_models_is_a_problem() -> None:
    server = canned()
    server.paths["/api/ps"] = (500, {"error": "internal server error"})
    found = await diagnose("m:1b", base_url="http://x", transport=server, machine=FakeMachine())
    assert one(found, "model").level == "problem"
    assert "internal server error" in one(found, "model").seen


# Models


async def test_a_model_that_is_not_there_is_to_be_pulled() -> None:
    with FakeOllama() as fake:
        found = one(await at(fake, "gemma3:12b"), "model")
        assert found.level == "problem"
        assert found.mend == (f"OLLAMA_HOST={fake.url} ollama pull gemma3:12b",)
        assert fake.ledger.count() == 0


async def test_without_a_model_the_ones_there_are_named_and_nothing_is_loaded() -> None:
    with FakeOllama(models=(FakeModel("a:1b"), FakeModel("b:1b"))) as fake:
        found = await at(fake, None)
        assert "there are a:1b, b:1b" in one(found, "model").seen
        assert found.ok
        assert fake.ledger.loads == 0


async def test_a_model_that_was_left_loaded_is_named_with_what_it_takes() -> None:
    with FakeOllama(models=(FakeModel("toy:1b"), LLAMA), speed=FAST) as fake:
        load(fake, "llama:8b", keep_alive=-1)
        found = one(await at(fake, load=False), "others")
    assert found.level == "warning"
    assert "llama:8b is loaded until it is unloaded and takes" in found.seen
    assert found.mend == (f"OLLAMA_HOST={fake.url} ollama stop llama:8b",)


def load(fake: FakeOllama, model: str, **settings: Any) -> None:
    body = {"model": model, "messages": [], "stream": False, "shift": False, **settings}
    assert httpx.post(f"{fake.url}/api/chat", json=body, timeout=30).status_code == 200


def canned(*loaded: Mapping[str, Any], **answer: Any) -> Canned:
    """A server with the model m:1b, of which `/api/ps` tells what is `loaded`."""
    tag = {"name": "m:1b", "size": GIB, "digest": "d" * 64, "details": {}}
    return Canned(
        paths={
            "/api/version": {"version": "0.33.0"},
            "/api/tags": {"models": [tag]},
            "/api/show": {"capabilities": ["completion"], "details": {}, "model_info": {}},
            "/api/ps": {"models": list(loaded)},
            "/api/chat": {**OLLAMA_ANSWER, **answer},
        }
    )


def entry(name: str, left_s: float, **other: Any) -> dict[str, Any]:
    at = datetime.now(UTC) + timedelta(seconds=left_s)
    told = {"name": name, "size": GIB, "size_vram": GIB, "context_length": 4096}
    return {**told, "expires_at": at.isoformat(), **other}


async def test_a_model_that_should_be_gone_and_is_not_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examine, "STUCK_S", 0.0)
    server = canned(entry("m:1b", -300.0))
    found = await diagnose("m:1b", base_url="http://gpu-box:11434", transport=server, machine=FakeMachine())
    stuck = one(found, "stuck")
    assert stuck.level == "problem"
    assert "5m0" in stuck.seen
    assert stuck.mend == ("sudo systemctl restart ollama",)
    assert stuck.on == "gpu-box"
    # Nothing is sent to it: that might be waited for until morning.
    assert not [each for each in server.requests if each.url.path == "/api/chat"]


async def test_a_model_that_is_just_being_unloaded_is_not_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examine, "STUCK_S", 0.0)
    server = canned()
    server.paths["/api/ps"] = [{"models": [entry("old:7b", -1.0)]}, {"models": []}]
    found = await diagnose(
        "m:1b", base_url="http://127.0.0.1", transport=server, load=False, machine=FakeMachine()
    )
    assert found.on("stuck") == ()


# The load


async def test_layers_that_did_not_fit_are_a_problem_with_the_settings_that_fit() -> None:
    model = FakeModel("llama:8b", size=5 * GIB, layers=32, kv_heads=8, head_dim=128, gpu_share=0.7)
    with FakeOllama(models=(model,), slots=8, speed=FAST) as fake:
        place = Place(fake.url, None, "linux")
        found = one(await at(fake, "llama:8b", num_ctx=16384, place=place), "load")
    assert found.level == "problem"
    assert "(30.0%) did not fit on the GPU" in found.seen
    # 5 GiB of weights and 2 GiB a slot on a card of 16: four slots in f16 fit, eight do not.
    assert found.mend[-1].endswith("ollama serve")
    assert "OLLAMA_NUM_PARALLEL=4 OLLAMA_CONTEXT_LENGTH=16384" in found.mend[-1]


NO_CARD = FakeMachine(found=sample(0.0))


async def test_weights_that_are_more_than_the_card_holds_are_not_told_to_have_a_smaller_context() -> None:
    with FakeOllama(models=(replace(GEMMA, gpu_share=0.4),), speed=FAST) as fake:
        found = one(await at(fake, "gemma3:12b", num_ctx=4096, machine=NO_CARD), "load")
    assert (found.level, found.mend) == ("problem", ())
    assert "its weights alone take 7.5 GiB" in str(found.costs)
    assert "a smaller quantisation" in str(found.costs)


@pytest.mark.parametrize(
    ("held", "asked", "advised"),
    [(65536, 65536, 32768), (65536, 32768, 32768), (32768, 65536, 16384)],
    ids=["as asked", "loaded longer", "loaded shorter"],
)
async def test_a_model_whose_context_does_not_fit_is_unloaded_before_a_smaller_one_is_tried(
    held: int, asked: int, advised: int
) -> None:
    """A model that stays loaded is measured as it is: the next diagnosis would say the same."""
    with FakeOllama(models=(replace(LLAMA, gpu_share=0.7),), speed=FAST) as fake:
        load(fake, "llama:8b", options={"num_ctx": held})
        found = (await at(fake, "llama:8b", num_ctx=asked, machine=NO_CARD)).on("load")[0]
        again = f"ollama-batch doctor --base-url {fake.url} --model llama:8b --num-ctx {advised}"
        assert found.mend == (f"OLLAMA_HOST={fake.url} ollama stop llama:8b", again)
    assert "fewer slots (OLLAMA_NUM_PARALLEL)" in str(found.costs)


async def test_a_context_that_is_as_short_as_can_be_is_not_advised_again() -> None:
    with FakeOllama(models=(replace(LLAMA, gpu_share=0.99),), speed=FAST) as fake:
        spilled = one(await at(fake, "llama:8b", num_ctx=1024, machine=NO_CARD), "load")
        httpx.post(f"{fake.url}/api/generate", json={"model": "llama:8b", "keep_alive": 0}, timeout=30)
        fake.inject(Fault("oom", route="preload"))
        full = one(await at(fake, "llama:8b", num_ctx=1024, machine=NO_CARD), "load")
    for found in (spilled, full):
        assert (found.level, found.mend) == ("problem", ())
        assert "a smaller quantisation" in str(found.costs)


async def test_more_slots_are_not_advised_where_one_does_not_fit() -> None:
    model = FakeModel("toy:1b", gpu_share=0.7)
    with FakeOllama(models=(model,), slots=1, speed=FAST) as fake:
        found = one(await at(fake, machine=FakeMachine(found=sample(0.0))), "slots")
    assert (found.level, found.mend) == ("note", ())


async def test_a_model_without_any_gpu_is_a_problem_only_where_there_is_one() -> None:
    with FakeOllama(models=(FakeModel("toy:1b", gpu_share=0.0),), speed=FAST) as fake:
        with_gpu = await at(fake)
        no_gpu = await at(fake, machine=FakeMachine(found=sample(0.0, host=host(12 * GIB))))
    assert one(with_gpu, "load").level == "problem"
    assert one(no_gpu, "load").level == "warning"
    assert "none of it on a GPU" in one(no_gpu, "load").seen


async def test_a_model_that_cannot_be_loaded_is_a_problem_in_the_servers_words() -> None:
    with FakeOllama(faults=[Fault("oom", route="preload")]) as fake:
        found = one(await at(fake, num_ctx=65536), "load")
    assert found.level == "problem"
    assert "out-of-memory" in found.seen
    line = f"ollama-batch doctor --base-url {fake.url} --model toy:1b --num-ctx 4096"
    assert found.mend == (line,)


@pytest.mark.parametrize(
    ("found", "mended", "assumed"),
    [
        (card(15 * GIB), True, False),
        (card(1.5 * GIB), False, False),  # 1 GB of weights, its context and buffers do not fit
        (sample(0.0), True, True),
    ],
    ids=["room", "no room", "not known"],
)
async def test_the_servers_default_context_is_told_and_what_it_does_to_others(
    found: MemorySample, mended: bool, assumed: bool
) -> None:
    with FakeOllama(num_ctx=4096, speed=FAST) as fake:
        context = one(await at(fake, machine=FakeMachine(found=found)), "context")
    assert context.level == "note"
    assert "default context is 4,096 tokens of 131,072" in context.seen
    assert "in silence" in str(context.costs)
    assert bool(context.mend) is mended
    assert bool(context.assumed) is assumed
    assert not mended or "OLLAMA_CONTEXT_LENGTH=32768" in context.mend[-1]


async def test_more_context_than_it_was_trained_for_is_a_warning() -> None:
    with FakeOllama(models=(FakeModel("toy:1b", context_length=2048),), speed=FAST) as fake:
        found = (await at(fake, num_ctx=8192)).on("context")
    assert [each.level for each in found] == ["warning", "ok"]
    assert "2,048" in found[0].seen


@pytest.mark.parametrize(
    ("keep_alive", "seconds"), [(-1, range(-1, 0)), ("1h", range(3500, 3602)), ("10s", range(300, 301))]
)
async def test_a_model_that_somebody_has_loaded_is_measured_as_it_is_and_stays_as_long(
    keep_alive: int | str, seconds: range
) -> None:
    with FakeOllama(speed=FAST) as fake:
        load(fake, "toy:1b", keep_alive=keep_alive, options={"num_ctx": 8192})
        found = await at(fake, num_ctx=4096)
        assert fake.ledger.loads == 1
        sent = {each.sent["keep_alive"] for each in fake.ledger.completions()}
    assert len(sent) == 1
    assert sent.pop() in seconds
    context = one(found, "context")
    assert context.level == "note"
    assert "loaded with num_ctx 8,192" in context.seen
    predicted = found.on("load")[1]
    assert "num_ctx 4,096 x 4: about" in predicted.seen
    assert predicted.level == "ok"


async def test_what_a_load_was_seen_to_take_corrects_what_is_predicted_of_another() -> None:
    # Without its buffers, of which this server knows nothing, it takes less than was predicted.
    with FakeOllama(models=(LLAMA,), slots=2, speed=CostModel(decode_tps=100)) as fake:
        load(fake, "llama:8b", keep_alive=-1, options={"num_ctx": 8192})
        found = (await at(fake, "llama:8b", num_ctx=16384)).on("load")
        taken = httpx.get(f"{fake.url}/api/ps").json()["models"][0]["size"]
    assert taken == LLAMA.loaded_bytes(8192, 2)
    shape = ModelShape.from_metadata("llama:8b", metadata_of(LLAMA))
    before, after = (plan_memory(shape, num_ctx=num_ctx, slots=2) for num_ctx in (8192, 16384))
    predicted = after.predicted_bytes * taken / before.predicted_bytes
    assert found[1].numbers is not None
    assert found[1].numbers["total_bytes"] == pytest.approx(predicted + after.overhead_bytes, rel=1e-6)


def metadata_of(model: FakeModel) -> dict[str, Any]:
    """What the fake server tells of it, as the engine gathers it."""
    info = {
        "general.architecture": model.family,
        "context_length": model.context_length,
        "block_count": model.layers,
        "attention.head_count": model.kv_heads,
        "attention.head_count_kv": model.kv_heads,
        "attention.key_length": model.head_dim,
        "attention.value_length": model.head_dim,
    }
    named = {name if "general" in name else f"{model.family}.{name}": value for name, value in info.items()}
    return {"model_info": named, "size": model.size}


async def test_to_look_only_loads_nothing_and_sends_nothing() -> None:
    with FakeOllama(models=(LLAMA,)) as fake:
        found = await at(fake, "llama:8b", num_ctx=65536, rows=10, load=False)
        assert fake.ledger.loads == 0
        assert fake.ledger.count() == 0
        # 65,536 tokens of 128 KiB are 8 GiB, beside 5 of weights and 2.5 of buffers.
        tight = await at(
            fake, "llama:8b", num_ctx=65536, load=False, machine=FakeMachine(found=card(12 * GIB))
        )
    assert one(found, "slots").level == "unknown"
    assert one(found, "night").level == "unknown"
    assert one(tight, "load").level == "problem"
    assert "OLLAMA_KV_CACHE_TYPE=q8_0" in one(tight, "load").mend[-1]


# Slots and company


@pytest.mark.parametrize("slots", [2, 4])
async def test_how_many_requests_are_worked_on_at_once_is_measured(slots: int) -> None:
    with FakeOllama(slots=slots, speed=CostModel(decode_tps=100)) as fake:
        found = one(await at(fake), "slots")
    assert found.numbers is not None
    assert found.numbers["slots"] == slots
    assert found.level == ("ok" if slots == 4 else "note")


async def test_a_server_with_one_slot_is_a_warning_with_the_line_that_gives_it_more() -> None:
    model = replace(LLAMA, size=7 * GIB)
    with FakeOllama(models=(model,), slots=1, speed=CostModel(decode_tps=200)) as fake:
        found = await at(fake, "llama:8b", num_ctx=8192, place=Place(fake.url, None, "linux", unit=True))
    slots = one(found, "slots")
    assert slots.level == "warning"
    assert "one request is worked on at a time" in slots.seen
    # 7 GiB of weights and 1 GiB a slot: 4 fit a card of 16 GiB beside the buffers, 8 do not.
    assert 'Environment="OLLAMA_NUM_PARALLEL=4"' in slots.mend[1]
    assert slots.assumed == ()


async def test_settings_of_several_findings_are_set_by_every_command_and_fit_the_card_together() -> None:
    """5 GiB of weights: 8 slots of 4,096 tokens (0.5 GiB each) would fit, of 32,768 (4 GiB each) only 2."""
    with FakeOllama(models=(LLAMA,), slots=1, num_ctx=4096, speed=CostModel(decode_tps=200)) as fake:
        found = await at(fake, "llama:8b", place=Place(fake.url, None, "linux", unit=True))
    context, slots = one(found, "context"), one(found, "slots")
    assert context.sets == {"OLLAMA_CONTEXT_LENGTH": "32768"}
    assert slots.sets == {"OLLAMA_NUM_PARALLEL": "2"}
    assert context.mend == slots.mend
    assert 'Environment="OLLAMA_CONTEXT_LENGTH=32768" "OLLAMA_NUM_PARALLEL=2"' in slots.mend[1]
    # With half a GiB of buffers, 0.4 of the driver's.
    assert (found.needs_bytes or 0) / GIB == pytest.approx(5 + 2 * 4 + 0.5 + 0.4, abs=0.1)


async def test_where_no_card_can_be_read_only_the_context_is_raised_and_sizes_are_named() -> None:
    """32,768 tokens take 4 GiB a slot: four slots beside 5 GiB of weights were too much for most cards."""
    unread = FakeMachine(found=sample(0.0))
    with FakeOllama(models=(LLAMA,), slots=1, num_ctx=4096, speed=CostModel(decode_tps=200)) as fake:
        found = await at(fake, "llama:8b", machine=unread)
        asked = one(await at(fake, "llama:8b", num_ctx=4096, machine=unread), "slots")
    shape = ModelShape.from_metadata("llama:8b", metadata_of(LLAMA))
    assert found.settings == {"OLLAMA_CONTEXT_LENGTH": "32768"}
    context, slots = one(found, "context"), one(found, "slots")
    assert "about " in context.assumed[0]
    assert "with 1 slot" in context.assumed[0]
    assert (context.numbers or {})["needs_bytes"] > shape.weights_bytes + 4 * GIB
    assert slots.mend == ()
    assert "2 slots take about" in str(slots.costs)
    assert "not advised beside a longer context" in str(slots.costs)
    assert asked.sets == {"OLLAMA_NUM_PARALLEL": "4"}
    assert "4 slots take about" in asked.assumed[0]


@pytest.mark.parametrize(("default", "words"), [(4096, 20), (32768, 20), (4096, 4000)])
async def test_for_the_rows_of_a_file_slots_are_reckoned_with_the_context_that_a_run_chooses_for_them(
    default: int, words: int, tmp_path: Path
) -> None:
    """Every request of a run asks for its context: the server's default is not to be raised for it."""
    message = {"role": "user", "content": "seven " * words}
    source = requests_file(tmp_path / "in.jsonl", 20, messages=[message], max_tokens=16)
    with FakeOllama(models=(LLAMA,), slots=1, num_ctx=default, speed=CostModel(decode_tps=400)) as fake:
        await BatchRunner(model="llama:8b", base_url=fake.url, progress="none", keep_alive="0s").arun(
            source, output=tmp_path / "out.jsonl"
        )
        chosen = fake.ledger.load_settings()[0]["num_ctx"]
        httpx.post(f"{fake.url}/api/generate", json={"model": "llama:8b", "keep_alive": 0}, timeout=30)
        found = await at(fake, "llama:8b", inputs=[source], machine=NO_CARD)
        assert fake.ledger.load_settings()[-1]["num_ctx"] == chosen
    slots = one(found, "slots")
    assert found.settings == slots.sets == {"OLLAMA_NUM_PARALLEL": "4"}
    assert f"4 contexts of {chosen:,} tokens" in slots.assumed[0]
    shape = ModelShape.from_metadata("llama:8b", metadata_of(LLAMA))
    # 128 KiB a token, beside the weights; what loads were seen to take corrects the buffers downwards.
    contexts = 4 * chosen * 128 * 1024
    most = plan_memory(shape, num_ctx=chosen, slots=4).total_bytes
    assert shape.weights_bytes + contexts < (found.needs_bytes or 0) <= most
    assert one(found, "context").seen.endswith("as a run chooses for these rows")


async def test_of_a_batch_the_servers_default_context_is_told_and_not_set() -> None:
    with FakeOllama(slots=1, num_ctx=4096, speed=CostModel(decode_tps=400)) as fake:
        found = await at(fake, rows=20)
    assert one(found, "context").level == "note"
    assert list(found.settings) == ["OLLAMA_NUM_PARALLEL"]
    assert re.search(r"\d slots take about [\d.]+ GiB with contexts of 4,096", str(one(found, "slots").costs))


async def test_no_more_context_is_chosen_for_rows_than_the_model_was_trained_for(tmp_path: Path) -> None:
    source = requests_file(tmp_path / "in.jsonl", 3)
    with FakeOllama(models=(FakeModel("toy:1b", context_length=2048),), speed=FAST) as fake:
        found = one(await at(fake, inputs=[source]), "context")
        assert fake.ledger.load_settings()[-1]["num_ctx"] == 2048
    assert found.level == "ok"


async def test_another_model_on_the_card_is_to_be_stopped_before_one_that_spilled_is_looked_at_again() -> (
    None
):
    models = (FakeModel("other:1b"), FakeModel("toy:1b", gpu_share=0.5))
    with FakeOllama(models=models, speed=FAST) as fake:
        load(fake, "other:1b", keep_alive=-1)
        found = one(await at(fake, num_ctx=4096, rows=20), "load")
        stops = [f"OLLAMA_HOST={fake.url} ollama stop {name}" for name in ("other:1b", "toy:1b")]
    again = f"ollama-batch doctor --base-url {fake.url} --model toy:1b --num-ctx 4096 --for 20"
    assert found.mend == (*stops, again)
    assert "beside other:1b" in found.seen


async def test_the_doctor_to_be_called_again_is_asked_the_same(tmp_path: Path) -> None:
    source = requests_file(tmp_path / "in.jsonl", 3)
    with FakeOllama(faults=[Fault("oom", route="preload")]) as fake:
        found = one(await at(fake, num_ctx=65536, inputs=[source], rows=500), "load")
    line = f"ollama-batch doctor {source} --base-url {fake.url} --model toy:1b --num-ctx 4096 --for 500"
    assert found.mend == (line,)


async def test_a_card_that_has_no_room_for_more_slots_is_not_told_to_have_them() -> None:
    # 7.5 GiB of weights, and a slot of 65,536 tokens takes 4 GiB in 8 global layers, half of that in q8_0,
    # beside half a GiB or less in those with a window.
    with FakeOllama(models=(GEMMA,), slots=1, speed=CostModel(decode_tps=200)) as fake:
        full = one(await at(fake, "gemma3:12b", num_ctx=65536), "slots")
    with FakeOllama(models=(GEMMA,), slots=1, speed=CostModel(decode_tps=200)) as fake:
        fuller = FakeMachine(found=card(9 * GIB))
        none = one(await at(fake, "gemma3:12b", num_ctx=32768, machine=fuller), "slots")
    assert full.level == none.level == "note"
    assert "do not fit the card with a context of 65,536" in full.seen
    assert "OLLAMA_NUM_PARALLEL=2" in full.mend[-1]
    assert "OLLAMA_KV_CACHE_TYPE=q8_0" in full.mend[-1]
    assert none.mend == ()


async def test_a_family_that_has_one_slot_whatever_is_set_is_not_told_to_set_it() -> None:
    with FakeOllama(models=(FakeModel("q:8b", family="qwen35"),), slots=1, speed=FAST) as fake:
        found = one(await at(fake, "q:8b"), "slots")
    assert (found.level, found.mend) == ("note", ())
    assert "whatever is set" in found.seen


async def test_answers_too_fast_to_tell_are_unknown_and_so_is_an_engine_that_does_not_tell() -> None:
    with FakeOllama() as fake:
        assert one(await at(fake), "slots").level == "unknown"
    mute = canned(entry("m:1b", 60), **dict.fromkeys(("eval_duration", "prompt_eval_duration"), None))
    found = await diagnose("m:1b", base_url="http://gpu-box", transport=mute, machine=FakeMachine())
    assert one(found, "slots").level == "unknown"


async def test_others_on_the_engine_are_found_by_the_wait_and_by_the_gpu() -> None:
    # Of its 10 s the canned answer spends 1 on loading, 2 on the prompt and 3 on the answer.
    waits = await diagnose(
        "m:1b", base_url="http://gpu-box", transport=canned(entry("m:1b", 60)), machine=FakeMachine()
    )
    assert one(waits, "idle").level == "warning"
    assert "waited 4.0 s" in one(waits, "idle").seen
    with FakeOllama(speed=FAST) as fake:
        busy = one(await at(fake, machine=FakeMachine(found=card(15 * GIB, busy=63))), "idle")
    assert busy.level == "warning"
    assert "63 % busy" in busy.seen


async def test_a_server_elsewhere_leaves_unknown_what_only_its_machine_can_tell() -> None:
    server = canned(entry("m:1b", 60), total_duration=6_000_000_000)
    machine = FakeMachine(found=card(0.1 * GIB, busy=99))  # this machine's says nothing about that one
    found = await diagnose("m:1b", base_url="http://gpu-box:11434", transport=server, machine=machine)
    for check in ("card", "ram"):
        assert one(found, check).level == "unknown"
        assert one(found, check).on == "gpu-box"
    assert one(found, "idle").level == "ok"
    assert one(found, "disk").level == "ok"
    assert one(found, "load").level == "ok"


# This machine


def process(
    used: float | None,
    *,
    engine: bool = False,
    name: str | None = "python",
    owner: str | None = "me",
    own: bool = True,
    draws: bool = False,
) -> GpuProcess:
    amount = Reading.unknown("not told", "test") if used is None else known(used)
    return GpuProcess("gpu0", 4711, name, amount, engine, owner, own, draws)


async def looked(**machine: Any) -> Diagnosis:
    with FakeOllama() as fake:
        rows = machine.pop("rows", None)
        return await at(fake, load=False, rows=rows, machine=FakeMachine(**machine))


async def test_other_users_of_the_card_are_named_and_the_engine_is_not() -> None:
    users = (process(6 * GIB, engine=True, name="llama-server"), process(3 * GIB))
    found = (await looked(users=users, found=card(7 * GIB))).on("card")
    assert [each.level for each in found] == ["ok", "warning"]
    assert "python (4711) has 3.0 GiB of gpu0" in found[1].seen
    assert found[1].mend == ("kill 4711",)
    small = (await looked(users=(process(0.1 * GIB), process(None)), found=card(15 * GIB))).on("card")
    assert [each.level for each in small] == ["ok", "note", "note"]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"name": "Xorg", "owner": "root", "own": False, "draws": True}, "a program of the desktop"),
        ({"name": "gnome-shell", "draws": True}, "a program of the desktop"),
        ({"name": "blender", "draws": True}, "one that draws"),
        ({"owner": "root", "own": False}, "run by root"),
        ({"owner": "alice", "own": False}, "run by alice"),
        ({"name": None, "owner": None, "own": False}, "run by somebody who is not told"),
    ],
    ids=["X", "compositor", "drawing", "root's", "another user's", "unseen"],
)
async def test_only_what_this_user_computes_with_is_to_be_killed(other: dict[str, Any], said: str) -> None:
    found = (await looked(users=(process(3 * GIB, **other),), found=card(12 * GIB))).on("card")[1]
    assert found.level == "warning"
    assert found.mend == ()
    assert said in found.seen
    assert str(found.costs).endswith("closing it frees 3.0 GiB")


async def test_memory_that_nobody_seen_from_here_has_is_told() -> None:
    found = (await looked(users=(process(GIB, engine=True),), found=card(9 * GIB))).on("card")
    assert "6.0 GiB of the GPU are in use by nobody" in found[-1].seen
    hidden = (await looked(users="NVML: Not Supported")).on("card")
    assert hidden[-1].level == "unknown"


async def test_no_gpu_that_can_be_read_is_unknown_with_its_reason() -> None:
    found = one(await looked(found=sample(0.0, devices_unknown="no driver")), "card")
    assert (found.level, found.seen) == ("unknown", "no GPU can be read: no driver")


@pytest.mark.parametrize(
    ("free", "swapped", "level"),
    [
        (12 * GIB, 0, "ok"),
        (6 * GIB, 0, "note"),  # less than the engine's cache of prompts may take
        (12 * GIB, 3 * GIB, "warning"),
        (1.5 * GIB, 0, "warning"),
        (0.3 * GIB, 0, "problem"),
    ],
)
async def test_ram_and_swap(free: float, swapped: int, level: str) -> None:
    found = one(await looked(found=sample(0.0, host=host(free)), swapped=known(swapped)), "ram")
    assert found.level == level
    assert bool(found.mend) == (level != "ok")


@pytest.mark.parametrize(
    ("free", "rows", "level"),
    [
        (100 * GIB, None, "ok"),
        (0.5 * GIB, None, "warning"),
        (100 * GIB, 170_000, "ok"),
        (2 * GIB, 170_000, "warning"),  # 170,000 rows of 8,000 bytes are 1.3 GiB
        (1.1 * GIB, 170_000, "problem"),
    ],
)
async def test_room_for_the_journal(free: float, rows: int | None, level: str) -> None:
    assert one(await looked(free=known(free), rows=rows), "disk").level == level


async def test_a_folder_where_no_journal_can_be() -> None:
    found = one(await looked(refused="the journal would be on a network file system (nfs)"), "disk")
    assert found.level == "problem"
    assert "nfs" in found.seen


async def test_the_real_machine_is_read_without_an_error(tmp_path: Path) -> None:
    with FakeOllama(speed=FAST) as fake:
        found = await diagnose("toy:1b", base_url=fake.url, output=tmp_path)
        missing = await diagnose(
            None, base_url=fake.url, output=tmp_path / "absent" / "out.jsonl", load=False
        )
    assert one(found, "disk").level in ("ok", "warning")
    assert {"card", "ram", "idle"} <= {each.check for each in found.findings}
    assert one(missing, "disk").level == "problem"


# The night


async def test_the_night_is_reckoned_from_rows_of_the_file(tmp_path: Path) -> None:
    source = requests_file(tmp_path / "in.jsonl", 200)
    with FakeOllama(slots=2, speed=CostModel(latency_s=0.05, decode_tps=400)) as fake:
        found = await at(fake, inputs=[source])
        sampled = {key for key in fake.ledger.counts() if key.startswith("row-")}
    night = one(found, "night")
    assert night.level == "ok"
    assert night.numbers is not None
    assert (night.numbers["rows"], night.numbers["tried"], night.numbers["concurrency"]) == (200, 16, 2)
    assert len(sampled) == 16
    assert max(int(key[4:]) for key in sampled) >= 100  # from all over the file
    # Each answer takes 50 ms at least: 200 of them, 2 at a time, 5 s.
    assert 5.0 <= night.numbers["least_s"] <= night.numbers["most_s"]
    assert "taken from all over the input" in night.assumed[0]


async def test_rows_that_take_longer_than_the_night_are_a_problem_with_the_way_to_go_on() -> None:
    with FakeOllama(slots=4, speed=CostModel(latency_s=0.05)) as fake:
        found = one(await at(fake, rows=170_000, hours=0.1), "night")
    assert found.level == "problem"
    line = f"ollama-batch run IN -o OUT --model toy:1b --base-url {fake.url} --concurrency 4 --deadline 360"
    assert found.mend == (line,)
    assert "made-up" in found.assumed[0]


async def test_sampled_rows_that_fail_are_told(tmp_path: Path) -> None:
    source = requests_file(tmp_path / "in.jsonl", 8)
    context = Fault("context", match="row-3")
    with FakeOllama(faults=[context], speed=FAST) as fake:
        some = one(await at(fake, inputs=[source]), "night")
        fake.inject(Fault("context", match="row-"))
        none = one(await at(fake, inputs=[source]), "night")
    assert some.level == "warning"
    assert "1 of 8 sampled rows failed (context_length_exceeded)" in some.seen
    assert none.level == "problem"
    assert "none of 8 sampled rows was answered" in none.seen


async def test_rows_whose_answers_a_run_would_not_take_are_told(tmp_path: Path) -> None:
    source = requests_file(tmp_path / "in.jsonl", 4, max_tokens=2)
    with FakeOllama(speed=FAST) as fake:
        found = one(await at(fake, inputs=[source]), "night")
    assert found.level == "problem"
    assert "4 of 4 sampled rows failed (output_truncated)" in found.seen


async def test_lines_that_are_no_requests_are_told_before_the_run_refuses_them(tmp_path: Path) -> None:
    source = requests_file(tmp_path / "in.jsonl", 3)
    refused = requests_file(tmp_path / "refused.jsonl", 1, logit_bias={"1": 1}).read_text()
    source.write_text(source.read_text() + "{}\n" + refused)
    with FakeOllama(speed=FAST) as fake:
        found = one(await at(fake, inputs=[source], load=False), "input")
    assert found.level == "problem"
    assert found.seen.startswith(f"2 of 5 lines are no valid requests; the first: {source}:4 ")


async def test_lines_whose_id_is_there_already_are_told_before_the_run_refuses_them(tmp_path: Path) -> None:
    source = requests_file(tmp_path / "in.jsonl", 3)
    source.write_text(2 * source.read_text())
    with FakeOllama(speed=FAST) as fake:
        found = one(await at(fake, inputs=[source], load=False), "input")
    assert found.seen.startswith(f"3 of 6 lines are no valid requests; the first: {source}:4 ")
    assert found.seen.endswith(
        "line 1 has this custom_id already; each must be there once (duplicate_custom_id)"
    )


async def test_the_model_is_the_one_that_the_rows_name(tmp_path: Path) -> None:
    source = requests_file(tmp_path / "in.jsonl", 3, model="toy:1b")
    with FakeOllama(speed=FAST) as fake:
        found = await at(fake, None, inputs=[source])
    assert found.model == "toy:1b"
    assert one(found, "model").level == "ok"


async def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    for wrong in ({"rows": 0}, {"num_ctx": -1}, {"hours": 0}, {"measure_s": float("nan")}):
        with pytest.raises(ConfigError):
            await diagnose("m", base_url="http://127.0.0.1:1", **wrong)  # type: ignore[arg-type]
    with pytest.raises((ConfigError, InputError)):
        await diagnose("m", base_url="http://127.0.0.1:1", inputs=[tmp_path / "absent.jsonl"])


# The command


def test_the_command_ends_with_1_where_there_is_a_problem_and_0_where_there_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out.jsonl")
    with FakeOllama(speed=FAST) as fake:
        good = ["doctor", "--base-url", fake.url, "--model", "toy:1b", "--num-ctx", "4096", "-o", out]
        assert main(good) == 0
        text = capsys.readouterr().out
        assert text.startswith(f"ollama-batch doctor: toy:1b at {fake.url}\n")
        assert "\x1b" not in text
        assert main([*good, "--json", "--for", "50"]) == 0
        data = json.loads(capsys.readouterr().out)
        assert data["ok"] is True
        assert next(each for each in data["findings"] if each["check"] == "night")["numbers"]["rows"] == 50
        assert main(["doctor", "--base-url", fake.url, "--model", "absent"]) == 1
        assert "ollama pull absent" in capsys.readouterr().out
        assert main([*good, "--for", "0"]) == 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_in_a_terminal_levels_are_coloured_unless_no_color_is_set(no_color: str, coloured: bool) -> None:
    import os
    import pty

    with FakeOllama() as fake:
        main_end, terminal = pty.openpty()
        environment = {**os.environ, "NO_COLOR": no_color, "TERM": "xterm"}
        command = [sys.executable, "-m", "ollama_batch.cli", "doctor", "--base-url", fake.url, "--no-load"]
        with subprocess.Popen(
            command, stdout=terminal, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, env=environment
        ):
            os.close(terminal)
            text = b""
            try:
                while part := os.read(main_end, 4096):
                    text += part
            except OSError:
                pass  # Linux says so when the other end is closed
        os.close(main_end)
    assert b"model" in text
    assert (b"\x1b[" in text) is coloured


def test_the_estimate_of_made_up_rows_says_what_they_were(capsys: pytest.CaptureFixture[str]) -> None:
    reply = FakeReply("one two three", completion_tokens=128, prompt_tokens=400)
    with FakeOllama(reply=reply, speed=FAST) as fake:
        main(["doctor", "--base-url", fake.url, "--model", "toy:1b", "--for", "100"])
    assert "400 tokens in, 128 out on average" in " ".join(capsys.readouterr().out.split())
