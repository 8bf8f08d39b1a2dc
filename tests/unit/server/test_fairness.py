"""Which batches run next."""

from __future__ import annotations

from typing import Any

import pytest

from ollama_batch.server.fairness import Choice, Going, Load, choose
from ollama_batch.server.objects import StoredBatch

A, B = Load(("a:1b",), 4096), Load(("b:1b",), 4096)
A_LONG = Load(("a:1b",), 8192)


def batch(name: str, owner: str, seq: int) -> StoredBatch:
    return StoredBatch(
        id=name,
        owner=owner,
        endpoint="",
        input_file_id="",
        completion_window="24h",
        status="in_progress",
        created_at=0,
        expires_at=0,
        seq=seq,
    )


def chosen(ready: list[tuple[str, str, Load]], going: dict[str, Going] | None = None, **given: Any) -> Choice:
    batches = [batch(name, owner, seq) for seq, (name, owner, _) in enumerate(ready)]
    options: dict[str, Any] = {
        "served": {},
        "waiting_since": {},
        "now": 0.0,
        "runs_at_once": 4,
        "models_at_once": 1,
        "turn_s": 300.0,
        **given,
    }
    return choose(batches, going or {}, loads={name: load for name, _, load in ready}, **options)


def started(choice: Choice) -> list[str]:
    return [each.id for each in choice.start]


def test_of_each_key_the_oldest_batch_runs() -> None:
    ready = [("x1", "x", A), ("x2", "x", A), ("y1", "y", A)]
    assert started(chosen(ready)) == ["x1", "y1"]
    assert started(chosen(ready, {"x0": Going("x", A, 0.0)})) == ["y1"]


def test_keys_come_in_the_order_in_which_they_were_served_last() -> None:
    ready = [("x1", "x", A), ("y1", "y", A), ("z1", "z", A)]
    assert started(chosen(ready, served={"x": 2, "y": 1}, runs_at_once=2)) == ["z1", "y1"]


def test_no_more_run_at_once_than_are_allowed() -> None:
    going = {"w": Going("w", A, 0.0)}
    assert started(chosen([("x", "x", A), ("y", "y", A)], going, runs_at_once=2)) == ["x"]


@pytest.mark.parametrize(("load", "fits"), [(A, True), (A_LONG, False), (B, False)])
def test_another_model_or_length_waits(load: Load, fits: bool) -> None:
    going = {"x": Going("x", A, 0.0)}
    assert started(chosen([("y", "y", load)], going)) == (["y"] if fits else [])


def test_two_models_run_side_by_side_where_that_is_allowed() -> None:
    going = {"x": Going("x", A, 0.0)}
    assert started(chosen([("y", "y", B)], going, models_at_once=2)) == ["y"]
    assert started(chosen([("y", "y", A_LONG)], going, models_at_once=2)) == [], "one model has one length"


def test_who_waited_for_a_turn_gets_room_and_nobody_passes() -> None:
    going = {"x": Going("x", A, 0.0), "late": Going("l", A, 250.0)}
    ready = [("y", "y", B), ("z", "z", A)]
    before = chosen(ready, going, now=299.0, waiting_since={"y": 0.0})
    assert (started(before), before.halt) == (["z"], ())
    after = chosen(ready, going, now=300.0, waiting_since={"y": 0.0})
    assert (started(after), after.halt) == ([], ("x",)), "the other has not had its turn"
