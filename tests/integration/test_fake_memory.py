"""The memory of a fake server's card, as the official clients see it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from typing import Any

import ollama
import openai
import pytest

from ollama_batch.testing import CostModel, FakeModel, FakeOllama, MemoryModel

USER: Any = [{"role": "user", "content": "row-1\nhello"}]
GIB = 2**30
# 48 layers of 8 heads of 256 in f16, and 8,100,000,000 bytes of weights: 393,216 bytes of K and V per token.
BIG = FakeModel("big:12b", size=8_100_000_000, layers=48, kv_heads=8, head_dim=256)
KV_TOKEN = 48 * 8 * (256 + 256) * 2
SLOW = CostModel(latency_s=0.3)


@contextmanager
def native(fake: FakeOllama) -> Iterator[ollama.Client]:
    client = ollama.Client(host=fake.url, trust_env=False)
    try:
        yield client
    finally:
        client.close()


def sizes(client: ollama.Client) -> dict[str, tuple[int, int]]:
    """Bytes in all and on the card of each loaded model."""
    return {str(m.model): (int(m.size or 0), int(m.size_vram or 0)) for m in client.ps().models}


def together(fake: FakeOllama, count: int) -> list[tuple[int, str]]:
    """Status and text of so many chats that are sent at once, 200 and their answer where they are ones."""
    ready = Barrier(count)

    def ask(n: int) -> tuple[int, str]:
        with native(fake) as client:
            ready.wait(10)
            try:
                answer = client.chat("toy:1b", [{"role": "user", "content": f"row-{n}"}])
            except ollama.ResponseError as error:
                return error.status_code, error.error
            return 200, answer.message.content or ""

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(ask, range(count)))


@pytest.mark.parametrize(("num_ctx", "slots"), [(4096, 1), (4096, 4), (8192, 2)])
def test_a_load_takes_weights_and_the_context_of_every_slot(num_ctx: int, slots: int) -> None:
    memory = MemoryModel(overhead_bytes=GIB // 2)
    with FakeOllama(models=[BIG], slots=slots, memory=memory) as fake, native(fake) as client:
        client.chat("big:12b", USER, options={"num_ctx": num_ctx})
        whole = 8_100_000_000 + num_ctx * slots * KV_TOKEN + GIB // 2
        assert sizes(client) == {"big:12b": (whole, whole)}
        assert fake.memory_used_bytes() == whole


def test_what_does_not_fit_on_the_card_spills_into_host_memory() -> None:
    memory = MemoryModel(card_bytes=16 * GIB, others_bytes=GIB)
    with FakeOllama(models=[BIG], slots=8, memory=memory) as fake, native(fake) as client:
        assert client.chat("big:12b", USER, options={"num_ctx": 4096}).done
        whole = 8_100_000_000 + 4096 * 8 * KV_TOKEN
        assert whole > 15 * GIB
        assert sizes(client) == {"big:12b": (whole, 15 * GIB)}
        client.chat("big:12b", USER, options={"num_ctx": 1024})
        assert sizes(client)["big:12b"] == (8_100_000_000 + 1024 * 8 * KV_TOKEN,) * 2


def test_a_load_that_may_not_spill_fails_in_ollamas_words() -> None:
    memory = MemoryModel(card_bytes=16 * GIB, too_big="oom")
    with FakeOllama(models=[BIG], slots=8, memory=memory) as fake, native(fake) as client:
        with pytest.raises(ollama.ResponseError, match="out-of-memory during startup: cudaMalloc") as caught:
            client.chat("big:12b", USER, options={"num_ctx": 8192})
        assert caught.value.status_code == 500
        assert sizes(client) == {}
        assert fake.ledger.completions()[0].outcome == "fault:oom"
        assert client.chat("big:12b", USER, options={"num_ctx": 2048}).done


def test_idle_models_make_room_for_another_one() -> None:
    models = [FakeModel("a", size=9 * GIB), FakeModel("b", size=9 * GIB), FakeModel("c", size=GIB)]
    memory = MemoryModel(card_bytes=16 * GIB)
    with FakeOllama(models=models, slots=1, memory=memory) as fake, native(fake) as client:
        for name in ("a", "c"):
            client.chat(name, USER)
        assert set(sizes(client)) == {"a:latest", "c:latest"}
        client.chat("b", USER)
        assert set(sizes(client)) == {"b:latest", "c:latest"}


def test_more_at_once_than_the_hidden_limit_run_out_of_memory_and_fewer_never_do() -> None:
    memory = MemoryModel(max_in_flight=3)
    with FakeOllama(slots=8, speed=SLOW, memory=memory) as fake:
        assert {status for status, _ in together(fake, 3)} == {200}
        assert fake.ledger.loads == 1
        told = together(fake, 4)
        said = "an error was encountered while running the model: CUDA error: out of memory"
        assert told == [(500, said)] * 4
        assert {status for status, _ in together(fake, 3)} == {200}
        assert fake.ledger.loads == 2  # the runner had died
        assert sum(r.outcome == "fault:oom_runtime" for r in fake.ledger.completions()) == 4


def test_requests_that_wait_for_a_slot_take_no_memory() -> None:
    with FakeOllama(slots=2, speed=CostModel(latency_s=0.02), memory=MemoryModel(max_in_flight=2)) as fake:
        assert {status for status, _ in together(fake, 6)} == {200}
        assert fake.ledger.max_in_flight > 2


def test_the_hidden_limit_may_be_one_of_bytes() -> None:
    model = FakeModel("toy:1b", size=10 * GIB)
    kv = 4096 * 8 * 2 * 2 * 64 * 2 * 2
    memory = MemoryModel(card_bytes=10 * GIB + kv + 2 * GIB, request_bytes=GIB)
    with FakeOllama(models=[model], slots=8, speed=SLOW, memory=memory) as fake:
        assert {status for status, _ in together(fake, 2)} == {200}
        assert {status for status, _ in together(fake, 3)} == {500}


def test_memory_that_grows_with_use_ends_in_a_death_and_a_load_frees_it() -> None:
    memory = MemoryModel(card_bytes=2_000_000_000, growth_bytes=1_000_000)
    model = FakeModel("toy:1b", size=1_900_000_000, layers=1, kv_heads=1, head_dim=1)
    with FakeOllama(models=[model], slots=1, memory=memory) as fake, native(fake) as client:
        used, statuses = [], []
        for _ in range(40):
            try:
                answer = client.chat("toy:1b", USER, options={"num_predict": 5})
            except ollama.ResponseError as error:
                statuses.append(error.status_code)
                continue
            tokens = (answer.prompt_eval_count or 0) + (answer.eval_count or 0)
            used.append(fake.memory_used_bytes())
            if len(used) > 1 and not statuses:
                assert used[-1] - used[-2] == tokens * 1_000_000
            assert sizes(client)["toy:1b"][0] == sizes(client)["toy:1b"][1] < min(used)  # told at the load
        assert statuses
        assert set(statuses) == {500}
        assert max(used) <= 2_000_000_000
        assert fake.ledger.loads == len(statuses) + (fake.ledger.completions()[-1].status == 200)


@pytest.mark.parametrize(
    ("wording", "said"),
    [
        ("llama.cpp", "failed to find free space in the KV cache"),
        ("vllm", "CUDA out of memory. Tried to allocate"),
        ("ollama", "an error was encountered while running the model: CUDA error: out of memory"),
    ],
)
def test_the_openai_client_reads_each_servers_words(wording: Any, said: str) -> None:
    memory = MemoryModel(growth_bytes=10, card_bytes=1_000_000_010 + 4096 * 1024 * 4, wording=wording)
    with (
        FakeOllama(memory=memory) as fake,
        openai.OpenAI(base_url=fake.url + "/v1", api_key="x", max_retries=0) as client,
        pytest.raises(openai.InternalServerError) as caught,
    ):
        client.chat.completions.create(model="toy:1b", messages=USER)
    assert caught.value.status_code == 500
    body = caught.value.body
    assert isinstance(body, dict)
    assert str(body["message"]).startswith(said)


def test_a_stream_whose_memory_runs_out_ends_with_the_error() -> None:
    """The fifth completion kills the runner in the middle of four streams."""
    memory = MemoryModel(max_in_flight=1)
    with (
        FakeOllama(slots=2, speed=CostModel(decode_tps=20.0), memory=memory) as fake,
        native(fake) as client,
        native(fake) as other,
    ):
        stream = client.chat("toy:1b", USER, stream=True)
        assert next(iter(stream)).done is False
        with pytest.raises(ollama.ResponseError, match="out of memory"):
            other.chat("toy:1b", USER)
        with pytest.raises(ollama.ResponseError, match="CUDA error: out of memory"):
            list(stream)
        fake.wait_until(lambda ledger: all(r.outcome == "fault:oom_runtime" for r in ledger.completions()))


def test_a_card_in_another_process_is_the_same_card() -> None:
    memory = MemoryModel(card_bytes=GIB, max_in_flight=1)
    with FakeOllama.spawn(memory=memory, slots=1) as fake:
        client = ollama.Client(host=fake.url, trust_env=False)
        client.chat("toy:1b", USER, options={"num_ctx": 1024})
        assert fake.memory_used_bytes() == 1_000_000_000 + 1024 * 1024
        client.close()


@pytest.mark.parametrize(
    "settings",
    [{"card_bytes": -1}, {"growth_bytes": -1}, {"max_in_flight": 0}, {"too_big": "x"}, {"wording": "x"}],
)
def test_a_card_that_makes_no_sense_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="MemoryModel"):
        MemoryModel(**settings)


def test_a_card_survives_json() -> None:
    from ollama_batch.testing.config import FakeConfig

    config = FakeConfig(memory=MemoryModel(card_bytes=1, wording="vllm"), start_s=0.5)
    assert FakeConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
