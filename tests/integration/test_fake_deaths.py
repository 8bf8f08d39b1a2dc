"""Runners that die, loads that are given up, models that do not go, servers that are slow to start."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
import ollama
import openai
import pytest

from ollama_batch.testing import CostModel, FakeModel, FakeOllama, Fault

USER: Any = [{"role": "user", "content": "row-1\nhello"}]
SLOW = CostModel(latency_s=0.3)


@contextmanager
def native(fake: Any, timeout: float | None = None) -> Iterator[ollama.Client]:
    client = ollama.Client(host=fake.url, trust_env=False, timeout=timeout)
    try:
        yield client
    finally:
        client.close()


def told(fake: FakeOllama, text: str) -> tuple[int, str]:
    """Status and words of one chat; 0 where the connection broke."""
    with native(fake) as client:
        try:
            answer = client.chat("toy:1b", [{"role": "user", "content": text}])
        except ollama.ResponseError as error:
            return error.status_code, error.error
        except httpx.TransportError:
            return 0, ""
        return 200, answer.message.content or ""


def test_a_runner_that_dies_takes_all_it_had_with_it_and_is_loaded_again() -> None:
    with FakeOllama(slots=4, speed=SLOW, faults=[Fault("runner_dies", match="poison")]) as fake:
        with ThreadPoolExecutor(3) as pool:
            neighbours = [pool.submit(told, fake, f"row-{n}") for n in range(2)]
            fake.wait_until(lambda ledger: ledger.count() == 2)
            poison = told(fake, "poison")
            ended = [each.result() for each in neighbours]
        died = (500, "an error was encountered while running the model: unexpected EOF")
        assert [poison, *ended] == [died] * 3
        with native(fake) as client:
            assert client.ps().models == []
        assert told(fake, "row-0")[0] == 200
        assert fake.ledger.loads == 2
        assert [r.outcome for r in fake.ledger.completions()] == ["fault:runner_dies"] * 3 + ["answered"]


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (502, "bad gateway"),
        (
            500,
            "model runner has unexpectedly stopped, this may be due to resource limitations",
        ),
    ],
)
def test_a_death_may_be_told_in_other_words(status: int, text: str) -> None:
    fault = Fault("runner_dies", when=1, status=status, text=text)
    with FakeOllama(faults=[fault]) as fake:
        assert told(fake, "row-1") == (status, text)
        assert told(fake, "row-1")[0] == 200
        assert fake.ledger.loads == 2


def test_a_death_may_reset_the_connections() -> None:
    with FakeOllama(slots=4, speed=SLOW, faults=[Fault("runner_dies_reset", match="poison")]) as fake:
        with ThreadPoolExecutor(1) as pool:
            neighbour = pool.submit(told, fake, "row-0")
            fake.wait_until(lambda ledger: ledger.count() == 1)
            assert told(fake, "poison") == (0, "")
            assert neighbour.result() == (0, "")
        assert told(fake, "row-0")[0] == 200
        assert fake.ledger.loads == 2


def test_the_openai_client_sees_a_death_as_an_internal_error() -> None:
    with (
        FakeOllama(faults=[Fault("runner_dies", when=1)]) as fake,
        openai.OpenAI(base_url=fake.url + "/v1", api_key="x", max_retries=0) as client,
    ):
        with pytest.raises(openai.InternalServerError, match="unexpected EOF"):
            client.chat.completions.create(model="toy:1b", messages=USER)
        assert (
            client.chat.completions.create(model="toy:1b", messages=USER).choices[0].finish_reason == "stop"
        )


def test_a_request_that_waits_for_a_slot_dies_with_the_runner_too() -> None:
    faults = [Fault("runner_dies", match="poison", for_s=0.3)]
    with FakeOllama(slots=1, speed=CostModel(), faults=faults) as fake, ThreadPoolExecutor(2) as pool:
        poison = pool.submit(told, fake, "poison")
        fake.wait_until(lambda ledger: ledger.count() == 1)
        waiting = pool.submit(told, fake, "row-0")
        assert poison.result()[0] == waiting.result()[0] == 500


def test_a_load_is_given_up_when_its_client_leaves_and_begins_anew_for_the_next() -> None:
    with FakeOllama(speed=CostModel(load_s=0.4)) as fake:
        for count in (1, 2):  # a client that waits less than a load takes will never get one
            with native(fake, timeout=0.1) as hasty, pytest.raises(httpx.ReadTimeout):
                hasty.chat("toy:1b", USER)
            fake.wait_until(lambda ledger, n=count: len(ledger.aborted_loads()) == n)
        with native(fake) as client:
            assert client.ps().models == []
            assert client.chat("toy:1b", USER).done
        assert fake.ledger.loads == 1
        assert [load["model"] for load in fake.ledger.aborted_loads()] == ["toy:1b"] * 2
        assert [r.outcome for r in fake.ledger.completions()] == ["aborted", "aborted", "answered"]


def test_loads_that_were_given_up_are_in_the_file_too() -> None:
    with FakeOllama.spawn(speed=CostModel(load_s=5.0)) as fake:
        with native(fake, timeout=0.1) as hasty, pytest.raises(httpx.ReadTimeout):
            hasty.chat("toy:1b", USER)
        fake.wait_until(lambda ledger: len(ledger.aborted_loads()) == 1)
    assert len(fake.ledger.aborted_loads()) == 1


def test_while_a_load_goes_on_a_full_queue_refuses_in_ollamas_words() -> None:
    with FakeOllama(max_queue=2, speed=CostModel(load_s=0.4)) as fake, ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(told, fake, f"row-{n}") for n in range(2)]
        fake.wait_until(lambda ledger: ledger.count() == 2)
        assert told(fake, "row-3") == (
            503,
            "server busy, please try again.  maximum pending requests exceeded",
        )
        assert [each.result()[0] for each in waiting] == [200, 200]


def test_a_server_whose_completions_hang_still_says_that_it_is_well() -> None:
    with FakeOllama(faults=[Fault("hang")]) as fake, native(fake) as client:
        with native(fake, timeout=0.2) as hasty, pytest.raises(httpx.ReadTimeout):
            hasty.chat("toy:1b", USER)
        assert httpx.get(fake.url, trust_env=False).text == "Ollama is running"
        assert client.list().models[0].model == "toy:1b"
        assert client.ps().models == []


def test_a_model_that_does_not_stop_stays_listed_and_hangs_until_a_restart() -> None:
    with FakeOllama(models=[FakeModel("toy:1b"), FakeModel("other:1b")]) as fake, native(fake) as client:
        client.chat("toy:1b", USER, keep_alive=-1)
        fake.inject(Fault("stuck_stopping", route="unload", when=1))
        assert client.chat("toy:1b", [], keep_alive=0).done_reason == "unload"
        for _ in range(2):
            (stuck,) = client.ps().models
            assert stuck.expires_at is not None
            assert stuck.expires_at < datetime.now(UTC)  # which `ollama ps` shows as "Stopping..."
        with native(fake, timeout=0.2) as hasty, pytest.raises(httpx.ReadTimeout):
            hasty.chat("toy:1b", USER)
        assert client.chat("other:1b", USER).done
        fake.restart()
        assert client.ps().models == []
        assert client.chat("toy:1b", USER).done


def test_a_model_that_is_exchanged_under_the_run_is_listed_and_loaded_with_its_new_digest() -> None:
    models = [FakeModel("toy:1b", digest="a" * 64)]
    with FakeOllama(models=models, faults=[Fault("model_swapped", when=2)]) as fake, native(fake) as client:
        seen = []
        for _ in range(3):
            client.chat("toy:1b", USER)
            seen.append((client.list().models[0].digest, client.ps().models[0].digest))
        assert seen[0] == ("a" * 64,) * 2
        assert seen[1] == seen[2] != seen[0]
        assert seen[1][0] == seen[1][1]
        assert fake.ledger.loads == 2


def test_a_slow_start_refuses_connections_then_loads_then_answers() -> None:
    began = time.monotonic()
    loading = Fault("loading_llama_cpp", until_s=0.3)
    with (
        FakeOllama(start_s=0.3, faults=[loading], speed=CostModel(load_s=0.1)) as fake,
        native(fake) as client,
    ):
        seen: list[int | str] = []
        while 200 not in seen:
            assert time.monotonic() - began < 20
            try:
                client.chat("toy:1b", USER)
                found: int | str = 200
            except ConnectionError:
                found = "refused"
            except ollama.ResponseError as error:
                found = error.status_code
            if found not in seen:
                seen.append(found)
        assert time.monotonic() - began >= 0.7
        assert seen == ["refused", 503, 200]
        fake.restart()
        with pytest.raises(ConnectionError):
            client.chat("toy:1b", USER)


def test_a_server_may_be_closed_before_it_has_begun_to_listen() -> None:
    with FakeOllama(start_s=60.0) as fake:
        port = fake.port
    with FakeOllama(port=port) as again:
        assert told(again, "row-1")[0] == 200


@pytest.mark.parametrize("wrong", [{"start_s": -1.0}])
def test_a_start_before_the_start_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="start_s"):
        FakeOllama(**wrong)
