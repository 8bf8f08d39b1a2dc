"""The cost model: what takes how long, and what the prefix cache saves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from ollama_batch.testing import CostModel, FakeModel, FakeOllama, Fault


@asynccontextmanager
async def client(fake: FakeOllama) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=fake.url, trust_env=False, timeout=10) as http:
        yield http


def body(content: str, **more: Any) -> dict[str, Any]:
    return {"model": "toy:1b", "messages": [{"role": "user", "content": content}], "stream": False, **more}


async def test_reported_durations_are_tokens_over_speed() -> None:
    speed = CostModel(prefill_tps=10_000, decode_tps=1_000)
    with FakeOllama(speed=speed, tokenizer="words", reply=lambda _: "a b c d e") as fake:
        async with client(fake) as http:
            answer = (await http.post("/api/chat", json=body("w " * 99))).json()
    # "<user>w", 98 times "w": 99 tokens at 10,000 a second, and 5 at 1,000.
    assert answer["prompt_eval_count"] == 99
    assert answer["prompt_eval_duration"] == pytest.approx(9_900_000, abs=1)
    assert answer["eval_duration"] == pytest.approx(5_000_000, abs=1)
    assert answer["total_duration"] >= 14_900_000
    assert "prompt_eval_cached_count" not in answer


async def test_jitter_is_an_even_share_of_generating_time_that_the_seed_chooses() -> None:
    async def durations(seed: int) -> list[int]:
        with FakeOllama(seed=seed, speed=CostModel(jitter_s=0.004), reply=lambda _: "a") as fake:
            async with client(fake) as http:
                answers = [(await http.post("/api/chat", json=body("w"))).json() for _ in range(30)]
        assert all(each["total_duration"] >= each["eval_duration"] for each in answers)
        return [each["eval_duration"] for each in answers]

    one = await durations(1)
    assert one == await durations(1) != await durations(2)
    assert 0 < min(one) < 1_500_000
    assert 2_500_000 < max(one) <= 4_010_000  # an answer of no speed has 10,000 ns of its own


async def test_a_shared_prefix_is_not_evaluated_again_and_still_counted() -> None:
    speed = CostModel(prefill_tps=100_000)
    with FakeOllama(slots=1, speed=speed, tokenizer="words", reports_cached=True) as fake:
        async with client(fake) as http:
            first = (await http.post("/api/chat", json=body("h " * 90 + "one"))).json()
            second = (await http.post("/api/chat", json=body("h " * 90 + "two"))).json()
            third = (await http.post("/api/chat", json=body("h " * 90 + "two"))).json()
            gpt = (await http.post("/v1/chat/completions", json=body("h " * 90 + "two"))).json()
    assert [a["prompt_eval_count"] for a in (first, second, third)] == [91, 91, 91]
    # The last token is always evaluated, also when the whole prompt is known.
    assert [a.get("prompt_eval_cached_count") for a in (first, second, third)] == [0, 90, 90]
    assert first["prompt_eval_duration"] == pytest.approx(910_000, abs=1)
    assert second["prompt_eval_duration"] == pytest.approx(10_000, abs=1)
    assert gpt["usage"]["prompt_tokens_details"] == {"cached_tokens": 90}


async def test_a_reload_forgets_the_cache() -> None:
    with FakeOllama(slots=1, tokenizer="words", reports_cached=True) as fake:
        async with client(fake) as http:
            cached = []
            for num_ctx in (1024, 1024, 2048):
                reply = await http.post("/api/chat", json=body("h " * 50, options={"num_ctx": num_ctx}))
                cached.append(reply.json().get("prompt_eval_cached_count", 0))
    assert cached == [0, 49, 0]


async def test_more_requests_than_slots_wait_their_turn() -> None:
    speed = CostModel(latency_s=0.05)
    with FakeOllama(slots=2, speed=speed) as fake:
        async with client(fake) as http:
            await http.post("/api/chat", json=body("warm"))
            fake.hold()
            sent = [asyncio.create_task(http.post("/api/chat", json=body(f"row-{n}"))) for n in range(6)]
            await asyncio.to_thread(fake.wait_until, lambda ledger: ledger.max_in_flight == 6)
            began = time.monotonic()
            fake.release()
            await asyncio.gather(*sent)
            elapsed_s = time.monotonic() - began
    # Three rounds of two, one after another; less the resolution of three timers.
    assert elapsed_s >= 3 * 0.05 - 0.01


async def test_a_model_that_is_kept_for_ever_is_listed_while_it_works() -> None:
    with FakeOllama() as fake:
        async with client(fake) as http:
            await http.post("/api/chat", json=body("row-0", keep_alive=-1))
            fake.hold()
            working = asyncio.create_task(http.post("/api/chat", json=body("row-1", keep_alive=-1)))
            await asyncio.to_thread(fake.wait_until, lambda ledger: ledger.count() == 2)
            listed = await http.get("/api/ps")
            fake.release()
            await working
    assert listed.status_code == 200
    assert listed.json()["models"][0]["expires_at"] > "2200"


async def test_held_completions_arrive_and_are_answered_on_release() -> None:
    with FakeOllama() as fake:
        async with client(fake) as http:
            fake.hold()
            asked = [asyncio.create_task(http.post("/api/chat", json=body(f"row-{n}"))) for n in range(5)]
            await asyncio.to_thread(fake.wait_until, lambda ledger: ledger.count() == 5)
            assert fake.ledger.answered() == 0
            fake.release()
            assert {reply.status_code for reply in await asyncio.gather(*asked)} == {200}
        assert fake.ledger.max_in_flight == 5


async def test_a_reload_waits_for_the_requests_of_the_old_load() -> None:
    with FakeOllama() as fake:
        async with client(fake) as http:
            fake.hold()
            old = asyncio.create_task(http.post("/api/chat", json=body("old", options={"num_ctx": 1024})))
            await asyncio.to_thread(fake.wait_until, lambda ledger: ledger.count() == 1)
            new = asyncio.create_task(http.post("/api/chat", json=body("new", options={"num_ctx": 2048})))
            await asyncio.to_thread(fake.wait_until, lambda ledger: ledger.count() == 2)
            assert fake.ledger.loads == 1
            fake.release()
            assert {(await old).status_code, (await new).status_code} == {200}
            assert fake.ledger.loads == 2


async def test_a_full_load_queue_is_busy_with_ollamas_words() -> None:
    models = (FakeModel("toy:1b"), FakeModel("b:1"), FakeModel("c:1"))
    with FakeOllama(models=models, max_queue=1, speed=CostModel(load_s=0.3)) as fake:
        async with client(fake) as http:
            names = ("toy:1b", "b:1", "c:1")
            replies = await asyncio.gather(
                *[http.post("/api/chat", json=body("x") | {"model": name}) for name in names]
            )
    statuses = sorted(reply.status_code for reply in replies)
    assert statuses == [200, 503, 503]
    busy = next(reply for reply in replies if reply.status_code == 503)
    assert busy.json() == {"error": "server busy, please try again.  maximum pending requests exceeded"}


async def test_a_client_that_leaves_is_written_down_and_gives_its_slot_back() -> None:
    with FakeOllama(slots=1, speed=CostModel(latency_s=0.05)) as fake:
        async with client(fake) as http:
            fake.hold()
            with pytest.raises(httpx.ReadTimeout):
                await http.post("/api/chat", json=body("row-1"), timeout=0.05)
            await asyncio.to_thread(
                fake.wait_until, lambda ledger: ledger.completions()[0].outcome == "aborted"
            )
            fake.release()
            assert (await http.post("/api/chat", json=body("row-2"))).status_code == 200
        assert fake.ledger.answered("row-2") == 1
        assert fake.ledger.completions()[1].in_flight == 1


async def test_the_ledger_and_the_clients_agree_under_a_mix_of_faults() -> None:
    kinds = ("busy", "oom", "reset", "close", "cut", "reset_mid", "garbage")
    faults = [Fault(kind, share=0.05) for kind in kinds]
    good: set[str] = set()
    with FakeOllama(faults=faults, speed=CostModel(latency_s=0.001), seed=3) as fake:
        async with client(fake) as http:
            names = iter(range(300))

            async def work() -> None:
                for name in names:
                    try:
                        reply = await http.post("/api/chat", json=body(f"row-{name}"))
                    except httpx.TransportError:
                        continue
                    if reply.status_code == 200 and reply.text.startswith("{"):
                        good.add(f"row-{name}")

            await asyncio.gather(*[work() for _ in range(16)])
        ledger = fake.ledger
        assert ledger.counts() == dict.fromkeys([f"row-{name}" for name in range(300)], 1)
        assert {record.key for record in ledger.completions() if record.outcome == "answered"} == good
        outcomes = {record.outcome for record in ledger.completions()}
        assert outcomes == {"answered", *(f"fault:{kind}" for kind in kinds)}
        assert 0 < ledger.max_in_flight <= 16
        fake.clear_faults()
        async with client(fake) as http:
            await http.post("/api/chat", json=body("last"))
        assert ledger.completions()[-1].in_flight == 1


async def test_a_client_that_leaves_a_stream_is_written_down() -> None:
    with FakeOllama(speed=CostModel(decode_tps=50)) as fake:
        async with (
            client(fake) as http,
            http.stream("POST", "/api/chat", json=body("x") | {"stream": True}) as reply,
        ):
            async for _ in reply.aiter_lines():
                break
        await asyncio.to_thread(fake.wait_until, lambda ledger: ledger.completions()[0].outcome == "aborted")
