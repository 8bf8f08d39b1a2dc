"""A head that differs by a few characters is named, with its place; anything else is not."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_batch.ordering import HeadDifference, HeadWatch
from ollama_batch.ordering.heads import LOOKED_AT, NAMED_AFTER

WORDS = "".join(random.Random(3).choices("abcdefghij ", k=3000))


def chat(system: str, user: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def watched(requests: list[list[dict[str, str]]]) -> list[tuple[int, HeadDifference]]:
    """Which requests were told of, and how."""
    watch = HeadWatch()
    seen = [(n, watch.see(f"id-{n}", request)) for n, request in enumerate(requests)]
    return [(n, difference) for n, difference in seen if difference is not None]


def text(seed: int, size: int = 400) -> str:
    return "".join(random.Random(seed).choices("klmnopqrst ", k=size))


def test_a_date_in_the_middle_is_named_once_with_its_place_and_never_the_text() -> None:
    requests = [chat(f"{WORDS[:500]}2024-{n:04d}{WORDS[500:]}", text(n)) for n in range(1000, 1100)]
    ((number, told),) = watched(requests)
    assert number == NAMED_AFTER
    assert told == HeadDifference(0, "system", 507, 2501, ("id-19", "id-20"))
    assert "character 507 of messages[0] (system)" in str(told)
    assert "'id-19' and 'id-20'" in str(told)
    assert "2024" not in str(told)
    assert WORDS[500:510] not in str(told)


@pytest.mark.parametrize("ids", [lambda n: f"{n}", lambda n: "x" * (n % 50) + f"<{n}>"])
def test_ids_of_any_length_up_to_64_are_named(ids) -> None:
    ((_, told),) = watched([chat(f"{WORDS[:900]}{ids(n)}{WORDS[900:]}", text(n)) for n in range(60)])
    assert told.role == "system"
    assert 900 <= told.character <= 964
    assert 2000 < told.same_chars <= 2102


def test_only_heads_are_looked_at_where_nothing_else_could_be_shared() -> None:
    watch = HeadWatch(head_only=True)
    for number in range(60):
        assert watch.see(f"{number}", [{"role": "user", "content": f"Case {number:03d}. {WORDS}"}]) is None
        assert watch.see(f"s{number}", chat(WORDS, f"Case {number:03d}. {WORDS}")) is None
    watch = HeadWatch(head_only=True)
    found = [watch.see(f"{n}", chat(f"Case {n:03d}. {WORDS}", f"{n} {WORDS}")) for n in range(60)]
    (told,) = (difference for difference in found if difference is not None)
    assert (told.message_index, told.role) == (0, "system")


def test_a_template_in_the_user_message_is_looked_at_too() -> None:
    requests = [
        [{"role": "user", "content": [{"type": "text", "text": f"Case {n:03d}. {WORDS}{text(n)}"}]}]
        for n in range(60)
    ]
    ((_, told),) = watched(requests)
    assert (told.message_index, told.role, told.same_chars) == (0, "user", 3002)
    assert 5 <= told.character <= 7


def test_a_message_behind_the_first_is_named_by_its_number() -> None:
    requests = [
        [{"role": "system", "content": WORDS[:50]}, *chat(f"{n:03d} {WORDS}", text(n))] for n in range(60)
    ]
    ((_, told),) = watched(requests)
    assert (told.message_index, told.character) == (1, 1)


ORDINARY = {
    "one head, other texts": lambda n: chat(WORDS, text(n)),
    "the date at the end of the head": lambda n: chat(f"{WORDS} {n:05d}", text(n)),
    "equal requests": lambda n: chat(WORDS, "the same"),
    "other heads": lambda n: chat(text(n % 7, 300 + 100 * (n % 7)), WORDS[:200]),
    "tails with a closing sentence": lambda n: chat(WORDS, f"{text(n, 30)}\n{WORDS[:200]}"),
    "long texts with a long closing": lambda n: chat(WORDS, f"{text(n, 100)}\n{WORDS[:600]}"),
    "a long part that differs": lambda n: chat(f"{WORDS[:300]}{text(n, 90)}{WORDS[300:]}", text(n)),
    "a date that changes every 40 rows": lambda n: chat(f"{WORDS[:300]}{n // 40}{WORDS[300:]}", text(n)),
    "at another place each time": lambda n: chat(f"{WORDS[: n * 97 % 2000]}#{WORDS[n * 97 % 2000 :]}", "x"),
    "no text": lambda n: [{"role": "user", "content": None}],
    "no messages": lambda n: [],
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_batches_are_left_in_peace(name: str) -> None:
    assert watched([ORDINARY[name](n) for n in range(LOOKED_AT + 50)]) == []


@given(
    head=st.text(max_size=600),
    tails=st.lists(st.text(max_size=250), min_size=NAMED_AFTER + 1, max_size=60, unique=True),
)
def test_requests_with_one_head_and_tails_of_their_own_are_left_in_peace(head: str, tails: list[str]) -> None:
    assert watched([chat(head, tail) for tail in tails]) == []


@given(head=st.text(max_size=600), seeds=st.sets(st.integers(), min_size=30, max_size=60))
def test_random_tails_of_any_length_are_left_in_peace(head: str, seeds: set[int]) -> None:
    assert watched([chat(head, text(seed, 3000)) for seed in seeds]) == []


def test_later_requests_cost_next_to_nothing() -> None:
    watch, request = HeadWatch(), chat(WORDS * 20, text(1))
    for n in range(LOOKED_AT + 1):
        watch.see(str(n), request)
    began = time.process_time()
    for n in range(10_000):
        watch.see(str(n), request)
    assert time.process_time() - began < 0.1
