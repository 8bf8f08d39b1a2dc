"""A lane that is taken up from the journal is the lane that was left."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_batch._lane import Lane, answer_of, head_of, restored, split_head, to_decision
from ollama_batch.journal import RunJournal
from ollama_batch.records import encode_result
from ollama_batch.trim import AggressiveTrim, HybridTrim, SlidingWindowTrim, TrimStrategy
from ollama_batch.types import BatchResult, Message, RowError, RowRecord, Usage
from trim_support import COUNTER, phrase

HEAD = [{"role": "system", "content": "criteria"}]
STRATEGIES: Sequence[TrimStrategy] = (
    SlidingWindowTrim(),
    HybridTrim(),
    AggressiveTrim(clip_tokens=32),
)
TURNS = st.lists(
    st.tuples(
        st.sampled_from(["goes on", "goes on", "fails", "cut", "cut and fails", "other head"]),
        st.integers(1, 120),
        st.integers(0, 2),
    ),
    min_size=1,
    max_size=14,
)


def body(text: str, size: int) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "reasoning": "not kept"}
    usage = {"prompt_tokens": size, "completion_tokens": 2, "total_tokens": size + 2}
    return {"choices": [{"index": 0, "finish_reason": "stop", "message": message}], "usage": usage}


def result(row: RowRecord, ok: bool, text: str) -> BatchResult[Any]:
    return BatchResult(
        custom_id=str(row.custom_id),
        ok=ok,
        index=row.index,
        body=body(text, 10 + row.index) if ok else None,
        error=None if ok else RowError("engine_error", "no"),
        usage=Usage(10 + row.index, 2) if ok else None,
    )


async def talk(turns: Sequence[tuple[str, int, int]]) -> None:
    journal = await asyncio.to_thread(RunJournal.open, None, identity={})
    try:
        lane = Lane(0)
        for index, (what, words, style) in enumerate(turns):
            order = (b"other---" if what == "other head" else b"head----") + bytes([index])
            row = RowRecord(index, 0, index + 1, f"r{index}", bytes([index]), order=order)
            await journal.add_rows([row])
            await journal.turns.assign(1)
            own: list[Message] = [{"role": "user", "content": phrase(index, words)}]
            if words % 5 == 0:
                own = [*own, {"role": "assistant", "content": "an example"}, {"role": "user", "content": "q"}]
            decision = None
            if what.startswith("cut") and lane.said:
                messages = [*HEAD, *(said.message for said in lane.said)]
                budget = max(40, COUNTER.count_messages(messages) // 2)
                trimmed = STRATEGIES[style].trim(
                    messages, budget=budget, counter=COUNTER, upcoming={"role": "user", "content": "q"}
                )
                decision = to_decision("high", lane, len(HEAD), trimmed) if trimmed.changed else None
            elif lane.said and lane.head != head_of(order):
                decision = {"why": "head", "kept": [], "clipped": []}
            said = lane.after(decision)
            left, lane.left = lane.left, set()
            await journal.turns.begin(index, decision, own, forget=left)
            ok = not what.endswith("fails")
            outcome = result(row, ok, phrase(index + 100, 1 + words // 9))
            await journal.commit(encode_result(outcome))
            if ok:
                lane.accept(
                    index,
                    head=head_of(order),
                    said=said,
                    own=own,
                    answer=answer_of(outcome.body),
                    decision=decision,
                )
                lane.prompt_tokens, lane.answer_tokens = 10 + index, 2
            again = restored(0, await journal.turns.history(0))
            assert [each.message for each in again.said] == [each.message for each in lane.said]
            assert again.said == lane.said
            lane_now = (lane.head, lane.since_cut, lane.prompt_tokens, lane.answer_tokens)
            assert (again.head, again.since_cut, again.prompt_tokens, again.answer_tokens) == lane_now
    finally:
        await asyncio.to_thread(journal.close)


@settings(max_examples=150)
@given(TURNS)
def test_a_lane_is_restored_as_it_was_whatever_happened_in_it(turns: list[tuple[str, int, int]]) -> None:
    asyncio.run(talk(turns))


def test_the_head_is_what_comes_before_the_first_other_message() -> None:
    user = {"role": "user", "content": "u"}
    late = {"role": "system", "content": "late"}
    developer = {"role": "developer", "content": "d"}
    assert split_head([*HEAD, developer, user, late]) == ([*HEAD, developer], [user, late])
    assert split_head([user]) == ([], [user])
    assert split_head(HEAD) == (HEAD, [])


def test_an_answer_goes_on_with_its_text_and_calls_and_without_its_reasoning() -> None:
    assert answer_of(body("yes", 1)) == {"role": "assistant", "content": "yes"}
    calls = [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    message = {"role": "assistant", "content": None, "tool_calls": calls}
    assert answer_of({"choices": [{"message": message}]}) == {
        "role": "assistant",
        "content": "",
        "tool_calls": calls,
    }
    assert answer_of(None) == {"role": "assistant", "content": ""}
