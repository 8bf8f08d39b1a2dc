"""What a run sees its model take is what the doctor then says of the next load."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from doctor_support import FakeMachine, card
from memory_support import GIB
from ollama_batch import OllamaEngine, _learning
from ollama_batch._portal import portal
from ollama_batch.cli import main
from ollama_batch.doctor import Finding, diagnose
from ollama_batch.doctor.place import Place
from ollama_batch.memory.plan import OVERHEAD_BYTES
from ollama_batch.testing import CostModel, FakeModel, FakeOllama, MemoryModel
from ollama_batch.types import EngineInfo, LoadedModel
from runner_support import runner_on

LLAMA = FakeModel("llama:8b", size=5 * GIB, layers=32, kv_heads=8, head_dim=128, family="llama")
BUFFERS = MemoryModel(overhead_bytes=GIB)
NUM_CTX = 8192


def serving(**settings: Any) -> FakeOllama:
    return FakeOllama(**{"models": (LLAMA,), "slots": 4, "memory": BUFFERS, **settings})


def run(fake: FakeOllama, **options: Any) -> Any:
    runner = runner_on(fake, **{"model": "llama:8b", "num_ctx": NUM_CTX, **options})
    return runner.run(["a", "b"])


def taken(fake: FakeOllama) -> int:
    size: int = httpx.get(f"{fake.url}/api/ps").json()["models"][0]["size"]
    return size


def predicted(fake: FakeOllama, num_ctx: int, folder: Path | None) -> Finding:
    """What the doctor says of a load that it does not try, on a machine whose model was unloaded."""
    body = {"model": "llama:8b", "messages": [], "stream": False, "keep_alive": 0}
    httpx.post(f"{fake.url}/api/chat", json=body).raise_for_status()
    machine = FakeMachine(found=card(30 * GIB, 32 * GIB))
    look = diagnose(
        "llama:8b", base_url=fake.url, num_ctx=num_ctx, load=False, machine=machine, state_dir=folder
    )
    (load,) = asyncio.run(look).on("load")
    return load


def total(finding: Finding) -> int:
    assert finding.numbers is not None
    size: int = finding.numbers["total_bytes"]
    return size


def kept(folder: Path) -> list[Any]:
    (file,) = (folder / "memory").glob("*.json")
    loads: list[Any] = json.loads(file.read_text())["loads"]
    return loads


def test_what_a_run_saw_its_model_take_is_what_the_doctor_says_of_the_same_load(tmp_path: Path) -> None:
    with serving() as fake:
        assert run(fake, state_dir=tmp_path).counts.ok == 2
        size = taken(fake)
        again = predicted(fake, NUM_CTX, tmp_path)
        unlearned = predicted(fake, NUM_CTX, None)
    assert size == LLAMA.loaded_bytes(NUM_CTX, 4) + GIB  # of 4 slots, of which no server tells
    assert kept(tmp_path)[0][5] == size
    assert total(again) == size + OVERHEAD_BYTES
    assert again.assumed[0] == "measured in an earlier load"
    # Nothing is loaded, and maybe it is another server by now.
    assert "that there are 4 slots, as the latest load that was seen had: with one" in again.assumed[1]
    assert total(unlearned) != total(again)
    assert "measured in an earlier load" not in unlearned.assumed


def test_what_a_run_saw_corrects_what_is_predicted_of_another_load(tmp_path: Path) -> None:
    with serving() as fake:
        run(fake, state_dir=tmp_path)
        longer = predicted(fake, 2 * NUM_CTX, tmp_path)
        unlearned = predicted(fake, 2 * NUM_CTX, None)
        run(fake, state_dir=None, num_ctx=2 * NUM_CTX)
        size = taken(fake) + OVERHEAD_BYTES
    assert total(longer) == pytest.approx(size, rel=0.1)
    assert abs(total(longer) - size) < abs(total(unlearned) - size)
    assert "corrected by an earlier load" in longer.assumed


BIG = FakeModel(
    "big:12b", size=8_100_000_000, layers=48, kv_heads=8, head_dim=256, family="llama", vocabulary=262_144
)
"""3 GiB a slot of 8,192 tokens, and 1 MiB of buffers for each token of a batch."""


@pytest.mark.parametrize(
    ("loaded", "ask", "told", "slots", "level"),
    [
        (True, True, {}, 1, "ok"),
        (True, False, {}, 1, "ok"),
        (False, False, {"OLLAMA_NUM_PARALLEL": "1"}, 1, "ok"),
        (False, False, {}, 8, "warning"),
    ],
    ids=["measured", "loaded now", "set", "nothing known of it"],
)
async def test_what_8_slots_took_is_not_said_of_a_server_that_is_known_to_have_one(
    tmp_path: Path, loaded: bool, ask: bool, told: dict[str, str], slots: int, level: str
) -> None:
    many = {"slots": 8, "models": (BIG,), "memory": MemoryModel(batch_bytes=4 * 262_144)}
    with serving(**many) as fake:
        await runner_on(fake, model=BIG.name, num_ctx=NUM_CTX, state_dir=tmp_path).arun(["a", "b"])
    assert kept(tmp_path)[0][:2] == [NUM_CTX, 8]
    with serving(**{**many, "slots": 1}, speed=CostModel(decode_tps=200)) as fake:
        if loaded:
            body = {"model": BIG.name, "messages": [], "stream": False, "options": {"num_ctx": 4096}}
            httpx.post(f"{fake.url}/api/chat", json=body).raise_for_status()
        place = Place(fake.url, None, "linux", kept=told)
        options: dict[str, Any] = {"load": ask, "place": place, "machine": FakeMachine()}
        found = await diagnose(BIG.name, base_url=fake.url, num_ctx=NUM_CTX, state_dir=tmp_path, **options)
    load = found.on("load")[-1]
    assert ((load.numbers or {})["slots"], load.level) == (slots, level)
    buffers = 2 * GIB if slots == 8 else GIB  # of a batch of 2,048 or 1,024, as Ollama chooses
    takes = BIG.loaded_bytes(NUM_CTX, slots) + buffers + OVERHEAD_BYTES
    assert total(load) == pytest.approx(takes, rel=0.05)
    assert ("with one (Ollama's default) about" in " ".join(load.assumed)) is (slots == 8)


def test_what_the_doctor_sees_loaded_is_kept_too(tmp_path: Path) -> None:
    with serving() as fake:
        look = diagnose(
            "llama:8b", base_url=fake.url, num_ctx=NUM_CTX, machine=FakeMachine(), state_dir=tmp_path
        )
        asyncio.run(look)
        size = taken(fake)
        again = predicted(fake, NUM_CTX, tmp_path)
    assert kept(tmp_path)[0][5] == size
    assert total(again) == size + OVERHEAD_BYTES


def test_the_command_learns_in_the_users_state_folder_as_runs_do(
    fake_ollama_factory: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = fake_ollama_factory(models=(LLAMA,), slots=4, memory=BUFFERS)
    run(fake)
    predicted(fake, NUM_CTX, None)  # unloads it
    main(["doctor", "--base-url", fake.url, "--model", "llama:8b", "--num-ctx", str(NUM_CTX), "--no-load"])
    assert "assumed: measured in an earlier load" in capsys.readouterr().out


def test_nothing_is_kept_where_nothing_is_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with serving() as fake:
        assert run(fake, state_dir=None).counts.ok == 2
        predicted(fake, NUM_CTX, None)
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("text", ["", "{", '{"version": 1, "digest": 7, "loads": [[1]]}'])
def test_a_file_that_cannot_be_used_costs_nothing_and_is_replaced(tmp_path: Path, text: str) -> None:
    with serving() as fake:
        run(fake, state_dir=tmp_path)
        loads = kept(tmp_path)
        (file,) = (tmp_path / "memory").glob("*.json")
        file.write_text(text)
        assert predicted(fake, NUM_CTX, tmp_path).level == "ok"
        assert run(fake, state_dir=tmp_path).counts.ok == 2
    assert kept(tmp_path) == loads


def test_a_folder_that_cannot_be_written_to_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "memory").write_text("a file where the folder would be")
    with serving() as fake:
        assert run(fake, state_dir=tmp_path).counts.ok == 2


class Mute(OllamaEngine):
    """An engine that raises what no engine should, where it is asked what a model takes."""

    async def loaded(self, model: str) -> LoadedModel | None:
        raise RuntimeError("a defect of somebody's own engine")


class Odd(OllamaEngine):
    """An engine whose metadata are none."""

    async def metadata(self, model: str) -> Mapping[str, Any]:
        return {"model_info": {"general.architecture": 7, "7.block_count": "many"}, "details": []}


@pytest.mark.parametrize("kind", [Mute, Odd])
def test_an_engine_that_does_not_tell_costs_the_run_nothing(tmp_path: Path, kind: type[OllamaEngine]) -> None:
    with serving() as fake:
        engine = kind(fake.url)
        assert run(fake, engine=engine, state_dir=tmp_path, guards=()).counts.ok == 2
        portal().call(engine.aclose())
    assert list(tmp_path.rglob("memory/*")) == []


async def test_an_engine_that_is_slow_to_tell_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(OllamaEngine):
        async def loaded(self, model: str) -> LoadedModel | None:
            await asyncio.Event().wait()
            return None

    monkeypatch.setattr(_learning, "ASK_S", 0.01)
    engine = Slow("http://127.0.0.1:1")
    told = EngineInfo("ollama", engine.address, None, "llama:8b")
    await asyncio.wait_for(_learning.learn_memory(engine, told, folder=tmp_path), timeout=10)
    await engine.aclose()


def test_files_are_read_and_written_off_the_loop_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    keep = _learning._keep

    def noting(*arguments: Any, **options: Any) -> None:
        with pytest.raises(RuntimeError, match="no running event loop"):
            asyncio.get_running_loop()
        threads.append(threading.current_thread())
        keep(*arguments, **options)

    monkeypatch.setattr(_learning, "_keep", noting)
    with serving() as fake:
        run(fake, state_dir=tmp_path)
    assert len(threads) == 1
    assert kept(tmp_path)


def test_the_slots_and_the_kv_type_of_a_server_of_ones_own_are_known(tmp_path: Path) -> None:
    class Managed(OllamaEngine):
        async def load(self, *arguments: Any, **options: Any) -> EngineInfo:
            info = await super().load(*arguments, **options)
            return replace(info, slots=3, details={**info.details, "kv_cache_type": "q8_0"})

    with serving(slots=3) as fake:
        engine = Managed(fake.url, options={"num_batch": 256})
        run(fake, engine=engine, state_dir=tmp_path)
        portal().call(engine.aclose())
    assert kept(tmp_path)[0][:4] == [NUM_CTX, 3, "q8_0", 256]
