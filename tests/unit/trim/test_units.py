"""Heads and exchanges, in conversations as they should be and as they are."""

from __future__ import annotations

import pytest

from ollama_batch.trim import Unit, split_units, without_key
from trim_support import assistant, calling, system, tool, user


def spans(*messages: object) -> tuple[int, list[tuple[int, int]]]:
    head, units = split_units(messages)  # type: ignore[arg-type]  # dicts, all of them
    return head, [(unit.start, unit.stop) for unit in units]


ASK, ANSWER = user("ask"), assistant("answer")


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([], (0, [])),
        ([system("s")], (1, [])),
        ([ASK], (0, [(0, 1)])),
        ([system("s"), {"role": "developer", "content": "d"}, ASK, ANSWER, ASK], (2, [(2, 4), (4, 5)])),
        ([ASK, ASK, ANSWER], (0, [(0, 1), (1, 3)])),
        ([system("s"), ANSWER, ASK, ANSWER], (1, [(1, 2), (2, 4)])),
        ([ANSWER, ANSWER], (0, [(0, 2)])),
        ([ASK, ANSWER, system("later"), ASK], (0, [(0, 3), (3, 4)])),
        ([ASK, calling("a"), tool("a", "x"), ANSWER, ASK], (0, [(0, 4), (4, 5)])),
        # The result comes after the next user message.
        ([ASK, ANSWER, ASK, calling("a"), ASK, tool("a", "x"), ASK], (0, [(0, 2), (2, 6), (6, 7)])),
        # Nobody called: it stays where it stands.
        ([ASK, tool("z", "x"), ANSWER, ASK], (0, [(0, 3), (3, 4)])),
        # The same id twice: a result belongs to the latest call.
        ([ASK, calling("a"), tool("a", "x"), ASK, calling("a"), tool("a", "y")], (0, [(0, 3), (3, 6)])),
        # A result without an id belongs to the latest call of all.
        ([ASK, calling("a"), ASK, {"role": "tool", "content": "x"}], (0, [(0, 4)])),
        (
            [
                ASK,
                assistant(None, function_call={"name": "f", "arguments": "{}"}),
                ASK,
                {"role": "function", "name": "f", "content": "x"},
            ],
            (0, [(0, 4)]),
        ),
    ],
)
def test_units_begin_with_user_messages_and_keep_calls_with_their_results(
    messages: list[object], expected: tuple[int, list[tuple[int, int]]]
) -> None:
    assert spans(*messages) == expected


def test_messages_before_the_first_user_message_are_a_lead_in() -> None:
    _, units = split_units([system("s"), ANSWER, ASK, ANSWER])
    assert units == (Unit(1, 2, lead_in=True), Unit(2, 4))


def test_one_pinned_message_pins_its_exchange() -> None:
    messages = [ASK, ANSWER, ASK, assistant("keep me", pinned=True), ASK]
    assert [unit.pinned for unit in split_units(messages, "pinned")[1]] == [False, True, False]
    keep = split_units(messages, lambda message: message["content"] == "keep me")[1]
    assert [unit.pinned for unit in keep] == [False, True, False]
    assert not any(unit.pinned for unit in split_units(messages)[1])


def test_a_marking_key_is_taken_off_before_sending() -> None:
    marked = user("a", pinned=True)
    sent = without_key([marked, ASK], "pinned")
    assert sent == [user("a"), ASK]
    assert sent[1] is ASK
    assert marked["pinned"] is True
