"""The smaller num_batch that runs on one server share: whose it is, and when engines are as they were."""

from __future__ import annotations

from typing import Any

import pytest

from ollama_batch import OllamaEngine
from ollama_batch._small_batch import SmallBatch
from trouble_support import ScriptedEngine

A, B, C = "a", "b", "c"


def engine(num_batch: int | None = None) -> OllamaEngine:
    return OllamaEngine(options={} if num_batch is None else {"num_batch": num_batch})


def test_it_stays_while_another_run_is_there_and_goes_with_the_last() -> None:
    batch, shared = SmallBatch(), engine(1024)
    batch.join(A, shared)
    batch.join(B, shared)
    batch.take(A)
    assert shared.num_batch == 256
    batch.leave(A)
    assert shared.num_batch == 256
    batch.leave(B)
    assert shared.num_batch == 1024
    batch.join(C, shared)
    assert shared.num_batch == 1024


def test_it_is_given_back_once_all_who_took_it_have_done_so() -> None:
    batch, shared = SmallBatch(), engine()
    for run in (A, B, C):
        batch.join(run, shared)
    batch.take(A)
    batch.take(B)
    assert not batch.give_back(A)
    assert shared.num_batch == 256
    assert batch.give_back(B)
    assert shared.num_batch is None


def test_engines_of_one_server_have_it_together_and_each_is_as_it_was_when_nobody_uses_it() -> None:
    batch, first, second = SmallBatch(), engine(), engine(2048)
    batch.join(A, first)
    batch.take(A)
    batch.join(B, second)
    assert (first.num_batch, second.num_batch) == (256, 256)
    batch.leave(A)
    assert (first.num_batch, second.num_batch) == (None, 256)
    batch.leave(B)
    assert second.num_batch == 2048


def test_one_that_is_small_already_is_not_made_larger() -> None:
    batch, small = SmallBatch(), engine(128)
    batch.join(A, small)
    batch.take(A)
    assert small.num_batch == 128


def test_who_never_came_may_leave_and_engines_without_it_are_let_alone() -> None:
    batch = SmallBatch()
    batch.leave(A)
    batch.join(B, ScriptedEngine(lambda _: None))
    batch.take(B)
    batch.leave(B)


def test_an_engine_that_cannot_after_all_is_named_in_the_log_and_ends_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(OllamaEngine):
        def limit_batch(self, num_batch: int | None) -> Any:
            raise RuntimeError("no")

    batch, shared = SmallBatch(), Broken()
    batch.join(A, shared)
    batch.take(A)
    batch.leave(A)
    assert [record.message for record in caplog.records] == ["num_batch could not be changed"] * 2
