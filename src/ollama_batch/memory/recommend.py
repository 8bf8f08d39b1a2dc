"""Which settings fit a card."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ollama_batch.errors import ConfigError
from ollama_batch.memory.amounts import MIB, Amount, parse_bytes
from ollama_batch.memory.plan import KV_BYTES, MemoryPlan, automatic_batch, plan_memory
from ollama_batch.memory.shape import ModelShape

FREE = 0.08
"""What a plan leaves free: with less a `VramGuard` would lower the concurrency once the model is loaded."""

LEAST_FREE = 512 * MIB

CONTEXTS = (4096, 8192, 16384, 32768, 65536, 131072)
SLOTS = (1, 2, 4, 8, 16)
KV_TYPES = ("f16", "q8_0", "q4_0")
BATCHES = (2048, 1024, 512)


def recommend(
    shape: ModelShape,
    card: int | str,
    *,
    num_ctx: int | Sequence[int] = CONTEXTS,
    slots: Sequence[int] = SLOTS,
    kv_types: Sequence[str] = KV_TYPES,
    in_use: int | str = 0,
    free: int | float | str = FREE,
    correct: Callable[[MemoryPlan], MemoryPlan] | None = None,
) -> tuple[MemoryPlan, ...]:
    """The settings with which a model of `shape` fits a card of `card` bytes ("16GiB") wholly.

    For each context length those with most slots come first; of equal slots the KV type with most bits. A
    plan is left out if another with the same context has as many slots or more and a KV type as good.
    Ollama's own num_batch is taken, or a smaller one where only that fits. `in_use` is what others take of
    the card, `free` (bytes or a share, never below 512 MiB) what is to stay free. `correct` is
    `LearnedMemory.correct`. Nothing fits: an empty tuple. Raises ConfigError for a wrong setting.
    """
    size = parse_bytes(card, "card")
    spare = Amount.of(free, "free").of_total(size) or 0
    room = size - max(spare, LEAST_FREE) - parse_bytes(in_use, "in_use")
    wrong = [kind for kind in kv_types if kind not in KV_BYTES]
    if wrong:
        raise ConfigError(f"kv_types has {wrong[0]!r}: there are {', '.join(KV_BYTES)}")
    contexts = (num_ctx,) if isinstance(num_ctx, int) else num_ctx
    if shape.context_length:
        contexts = sorted({min(each, shape.context_length) for each in contexts})
    counts = (1,) if shape.one_slot else slots
    chosen: list[MemoryPlan] = []
    for context in sorted(contexts):
        fits: list[MemoryPlan] = []
        for count in sorted(counts, reverse=True):
            for kind in sorted(kv_types, key=KV_BYTES.__getitem__, reverse=True):
                # One with more slots and as many bits was found already: this one is worse in all respects.
                if any(KV_BYTES[each.kv_type] >= KV_BYTES[kind] for each in fits):
                    continue
                found = _first_fit(shape, room, context, count, kind, correct)
                fits += [] if found is None else [found]
        chosen += fits
    return tuple(chosen)


def _first_fit(
    shape: ModelShape,
    room: int,
    num_ctx: int,
    slots: int,
    kv_type: str,
    correct: Callable[[MemoryPlan], MemoryPlan] | None,
) -> MemoryPlan | None:
    largest = automatic_batch(num_ctx, slots)
    batches: Iterable[int] = (each for each in BATCHES if each <= largest)
    for batch in batches:
        plan = plan_memory(shape, num_ctx=num_ctx, slots=slots, kv_type=kv_type, num_batch=batch)
        if correct is not None:
            plan = correct(plan)
        if plan.total_bytes <= room:
            return plan
    return None
