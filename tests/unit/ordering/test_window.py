"""A window hands out every row once, groups together, none too late, and cheaper than in order of arrival."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterator
from itertools import groupby

from hypothesis import given
from hypothesis import strategies as st

from ollama_batch.ordering import HeadSchedule, Window

Prompt = tuple[int, int, int]
"""Which head, which leading text, and a number of its own."""

HEAD, LEAD, TAIL = 10, 3, 2
PROMPTS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), max_size=60).map(
    lambda pairs: [(head, lead, n) for n, (head, lead) in enumerate(pairs)]
)


def key(prompt: Prompt) -> bytes:
    head, lead, number = prompt
    return bytes([head]) * 8 + bytes([head, lead, 0, 0]) + number.to_bytes(8, "big")


def from_window(prompts: list[Prompt], window: Window[Prompt], size: int) -> Callable[[int], Prompt | None]:
    """Takes rows of a window that is kept full."""
    coming = iter(prompts)

    def take(worker: int) -> Prompt | None:
        while len(window) < size and (prompt := next(coming, None)) is not None:
            window.add(prompt, key(prompt))
        return window.take(worker)

    return take


def drain(take: Callable[[int], Prompt | None], worker: int = 0) -> Iterator[Prompt]:
    while (prompt := take(worker)) is not None:
        yield prompt


class Slots:
    """Slots that each remember their last prompt, and take the one they share most with (llama-server)."""

    def __init__(self, count: int, seed: int) -> None:
        self._last: list[tuple[int, tuple[object, ...]]] = [(-1, ())] * count
        self._idle = set(range(count))
        self._rng = random.Random(seed)

    def cost(self, take: Callable[[int], Prompt | None], rows: int) -> int:
        """Prompt tokens processed for all rows, one worker to a slot."""
        busy: list[tuple[float, int, int]] = []
        free, now, sent, cost = list(range(len(self._last))), 0.0, 0, 0
        while True:
            for worker in list(free):
                prompt = take(worker)
                if prompt is None:
                    continue
                free.remove(worker)
                slot, new = self._process(prompt, sent)
                sent, cost = sent + 1, cost + new
                heapq.heappush(busy, (now + 1 + self._rng.random(), worker, slot))
            if not busy:
                assert sent == rows
                return cost
            now, worker, slot = heapq.heappop(busy)
            free.append(worker)
            self._idle.add(slot)

    def _process(self, prompt: Prompt, time: int) -> tuple[int, int]:
        head, lead, number = prompt
        tokens = (*[(head,)] * HEAD, *[(head, lead)] * LEAD, *[(head, lead, number)] * TAIL)
        shared = {slot: _shared(tokens, self._last[slot][1]) for slot in self._idle}
        slot = max(shared, key=lambda one: (shared[one], -self._last[one][0]))
        self._idle.discard(slot)
        self._last[slot] = time, tokens
        return slot, len(tokens) - shared[slot]


def _shared(one: tuple[object, ...], other: tuple[object, ...]) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(other))


@given(
    prompts=PROMPTS,
    size=st.integers(1, 70),
    patience=st.integers(1, 60),
    slots=st.none() | st.integers(1, 4),
    order=st.randoms(use_true_random=False),
)
def test_every_row_goes_once_and_is_never_overtaken_by_more_than_the_patience(
    prompts: list[Prompt], size: int, patience: int, slots: int | None, order: random.Random
) -> None:
    window: Window[Prompt] = Window(HeadSchedule(slots=slots), patience=patience)
    coming, gone, most = iter(prompts), [], 0
    while len(gone) < len(prompts):
        for _ in range(order.randrange(4)):  # rows come in spurts, and workers ask in between
            if len(window) < size and (prompt := next(coming, None)) is not None:
                window.add(prompt, key(prompt), 7)
        most = max(most, len(window))
        assert window.size == 7 * len(window)
        for worker in order.sample(range(4), k=order.randrange(1, 5)):
            if (prompt := window.take(worker)) is not None:
                gone.append(prompt)
    assert sorted(gone, key=lambda prompt: prompt[2]) == prompts
    assert most <= size
    assert all(place - number <= patience for place, (_, _, number) in enumerate(gone))
    assert len(window) == window.size == 0
    assert window.take(0) is None


@given(prompts=PROMPTS)
def test_what_begins_alike_goes_in_one_go_if_the_window_holds_it(prompts: list[Prompt]) -> None:
    window: Window[Prompt] = Window(HeadSchedule(), patience=1000)
    gone = list(drain(from_window(prompts, window, 1000)))
    assert len(list(groupby(gone, key=lambda prompt: prompt[0]))) == len({head for head, _, _ in prompts})
    leads = {prompt[:2] for prompt in prompts}
    assert len(list(groupby(gone, key=lambda prompt: prompt[:2]))) == len(leads)
    for _, alike in groupby(gone, key=lambda prompt: prompt[:2]):
        numbers = [number for _, _, number in alike]
        assert numbers == sorted(numbers)


@given(
    alike=st.booleans(),
    size=st.integers(1, 20),
    workers=st.integers(1, 4),
    order=st.randoms(use_true_random=False),
)
def test_a_single_head_keeps_the_order_of_arrival(
    alike: bool, size: int, workers: int, order: random.Random
) -> None:
    prompts = [(1, 0 if alike else n, n) for n in range(50)]
    take = from_window(prompts, Window(HeadSchedule(), patience=4 * size), size)
    gone = [take(order.randrange(workers)) for _ in prompts]
    assert gone == prompts


def test_rows_that_come_while_their_group_is_served_join_it() -> None:
    window: Window[Prompt] = Window(HeadSchedule(), patience=100)
    for prompt in [(0, 0, 0), (0, 0, 1), (1, 0, 2), (1, 0, 3)]:
        window.add(prompt, key(prompt))
    assert [window.take(0), window.take(0)] == [(0, 0, 0), (0, 0, 1)]
    window.add((0, 0, 4), key((0, 0, 4)))
    assert [window.take(0) for _ in range(4)] == [(0, 0, 4), (1, 0, 2), (1, 0, 3), None]


def test_a_head_that_never_ends_does_not_starve_another() -> None:
    window: Window[Prompt] = Window(HeadSchedule(slots=1), patience=40)
    window.add((1, 0, 0), key((1, 0, 0)))
    window.add((2, 0, 1), key((2, 0, 1)))
    gone = []
    for number in range(2, 100):
        window.add((1, 0, number), key((1, 0, number)))
        gone.append(window.take(0))
    assert gone.index((2, 0, 1)) == 41
    assert [prompt for prompt in gone if prompt != (2, 0, 1)] == [(1, 0, n) for n in (0, *range(2, 98))]


@given(prompts=PROMPTS, size=st.integers(10, 70), slots=st.integers(1, 4), seed=st.integers(0, 9))
def test_it_never_costs_more_than_the_order_of_arrival_but_for_a_prompt_to_a_slot(
    prompts: list[Prompt], size: int, slots: int, seed: int
) -> None:
    window: Window[Prompt] = Window(HeadSchedule(slots=slots), patience=4 * size)
    coming = iter(prompts)
    fifo = Slots(slots, seed).cost(lambda _: next(coming, None), len(prompts))
    cost = Slots(slots, seed).cost(from_window(prompts, window, size), len(prompts))
    assert cost <= fifo + slots * (HEAD + LEAD + TAIL)


@given(prompts=PROMPTS)
def test_with_one_slot_and_all_rows_in_the_window_the_cost_is_the_least_possible(
    prompts: list[Prompt],
) -> None:
    window: Window[Prompt] = Window(HeadSchedule(slots=1), patience=1000)
    heads, leads = {head for head, _, _ in prompts}, {prompt[:2] for prompt in prompts}
    least = HEAD * len(heads) + LEAD * len(leads) + TAIL * len(prompts)
    assert Slots(1, 0).cost(from_window(prompts, window, 1000), len(prompts)) == least


def test_many_heads_mixed_cost_less_than_half_as_much_on_as_few_slots() -> None:
    rng = random.Random(1)
    prompts = [(rng.randrange(20), rng.randrange(200), n) for n in range(4000)]
    for slots in (1, 4):
        coming = iter(prompts)
        window: Window[Prompt] = Window(HeadSchedule(slots=slots), patience=4 * 512)
        fifo = Slots(slots, 1).cost(lambda _, rows=coming: next(rows, None), len(prompts))
        cost = Slots(slots, 1).cost(from_window(prompts, window, 512), len(prompts))
        assert cost < fifo / 2
