"""Equal beginnings give equal beginnings of the key."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ollama_batch.ordering.keys import HEAD_BYTES, order_key

SYSTEM = {"role": "system", "content": "criteria"}


def key(text: str, system: str = "criteria", **params: object) -> bytes:
    return order_key([{"role": "system", "content": system}, {"role": "user", "content": text}], params)


def test_requests_of_one_head_share_the_first_bytes() -> None:
    assert key("a")[:HEAD_BYTES] == key("b")[:HEAD_BYTES]
    assert key("a")[:HEAD_BYTES] != key("a", system="others")[:HEAD_BYTES]


def test_tools_and_response_format_belong_to_the_head_and_sampling_does_not() -> None:
    assert key("a", temperature=1) == key("a")
    assert key("a", tools=[{"type": "function"}]) != key("a")
    assert key("a", response_format={"type": "json_object"}) != key("a")


@given(st.text(max_size=40), st.text(max_size=40))
def test_longer_common_text_gives_a_longer_common_key(one: str, other: str) -> None:
    shared = "s" * 256
    assert key(shared + one)[:12] == key(shared + other)[:12]
    assert (key(one) == key(other)) == (one == other)


def test_content_parts_count_as_their_text() -> None:
    parts = [{"type": "text", "text": "he"}, {"type": "text", "text": "llo"}]
    assert order_key([SYSTEM, {"role": "user", "content": parts}], {}) == key("hello")
