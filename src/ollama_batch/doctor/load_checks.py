"""Findings on the loaded model: how long is its context, how many slots has it, would another load fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from ollama_batch.doctor.finding import Finding
from ollama_batch.doctor.measure import Parallel
from ollama_batch.doctor.place import PARALLEL, Place
from ollama_batch.doctor.server import Running
from ollama_batch.errors import EngineError, EngineOutOfMemoryError
from ollama_batch.memory.amounts import show
from ollama_batch.memory.plan import MemoryPlan
from ollama_batch.memory.recommend import KV_TYPES, recommend
from ollama_batch.memory.sample import DeviceMemory
from ollama_batch.memory.shape import ModelShape

WANTED_SLOTS: Final = 4
LONG_WAIT_S: Final = 0.25
BUSY_PERCENT: Final = 20
LEAST_CTX: Final = 1024
"""No shorter context is advised: hardly a row fits it."""


@dataclass(frozen=True, slots=True)
class Card:
    """The GPU memory there is for the model: all of the cards, and what others have of it; bytes."""

    total: int
    others: int

    @classmethod
    def of(cls, devices: Sequence[DeviceMemory], model_bytes: int) -> Card | None:
        """What the devices tell, where the model has `model_bytes` of them; None if one does not tell."""
        rooms = [each.room for each in devices]
        if not rooms or any(not room.used.known or not room.total.known for room in rooms):
            return None
        used = sum(room.used.get() for room in rooms)
        return cls(sum(room.total.get() for room in rooms), max(0, used - model_bytes))


def best_plan(
    shape: ModelShape | None,
    card: Card | None,
    num_ctx: int | None,
    kinds: Sequence[str] = KV_TYPES,
    *,
    correct: Callable[[MemoryPlan], MemoryPlan],
) -> MemoryPlan | None:
    """The settings that fit the card: with most bits of the KV cache, of these with most slots.

    `correct` lays what was learned on a plan. None: nothing fits, or it is not known how large the model or
    the card is.
    """
    if shape is None or card is None or num_ctx is None:
        return None
    # What others take is gone; a plan leaves 8 % of the card free beside that.
    plans = recommend(
        shape,
        card.total,
        num_ctx=num_ctx,
        slots=(1, 2, 4, 8),
        kv_types=kinds,
        in_use=card.others,
        correct=lambda plan: no_smaller(correct(plan)),
    )
    return next((plan for kind in kinds for plan in plans if plan.kv_type == kind), None)


def no_smaller(plan: MemoryPlan) -> MemoryPlan:
    """`plan`, for no less than was predicted: too many slots cost more than too few."""
    return plan if plan.correction >= 1.0 else plan.corrected(1.0)


def failed_to_load(error: EngineError, model: str, num_ctx: int | None, place: Place) -> Finding:
    """The model could not be loaded."""
    mend: tuple[str, ...] = place.restart()
    on = place.remote
    sets: dict[str, str] | None = {}
    if isinstance(error, EngineOutOfMemoryError):
        on = sets = None
        smaller = 4096 if num_ctx is None or num_ctx > 8192 else num_ctx // 2
        mend = (place.doctor("--model", model, "--num-ctx", str(smaller)),) if smaller >= LEAST_CTX else ()
    least = "" if mend else "; what helps is a smaller model, or a smaller quantisation of it"
    return Finding(
        check="load",
        level="problem",
        seen=f"{model} cannot be loaded: {error}",
        costs=f"a run ends at once, or stops when it has to load the model again{least}",
        mend=mend,
        on=on,
        sets=sets,
    )


def check_context(
    loaded: Running,
    *,
    asked: int | None,
    by_rows: bool = False,
    batch: bool = False,
    fresh: bool,
    trained: int | None,
    place: Place,
    fits: Callable[[int], bool | None],
    plan: Callable[[int], MemoryPlan | None] = lambda _: None,
) -> list[Finding]:
    """How long the context is, and what happens to longer prompts.

    `by_rows`: `asked` is what a run chooses for its rows. `batch`: it is about a run, whose requests all ask
    for a context; then the server's default is told and not to be set. `fresh`: it was loaded by us; with
    `asked` None then by the server's own default. `fits`: whether another
    context length does (None: not known), `plan` what is taken with it.
    """
    context = loaded.context
    findings = []
    if asked is not None and trained is not None and asked > trained:
        findings.append(
            Finding(
                check="context",
                level="warning",
                seen=f"num_ctx {asked:,} is more than the {trained:,} tokens it was trained for",
                costs="Ollama lowers it; rows that need more fail by name",
                mend=(place.doctor("--model", loaded.name, "--num-ctx", str(trained)),),
            )
        )
        asked = trained
    if context is None:
        told = "the server does not tell the context length, as older releases"
        return [*findings, Finding(check="context", level="unknown", seen=told)]
    numbers = {"num_ctx": context, "trained": trained}
    of = f" of {trained:,} it was trained for" if trained else ""
    if asked is not None and context != asked:
        findings.append(
            Finding(
                check="context",
                level="note",
                seen=f"somebody has it loaded with num_ctx {context:,}; a run with {asked:,} loads it anew",
                costs="one load, once their requests are done; measured here as it is",
                numbers=numbers,
            )
        )
    elif asked is not None:
        findings.append(
            Finding(
                check="context",
                level="ok",
                seen=f"{context:,} tokens{of}, as {'a run chooses for these rows' if by_rows else 'asked'}",
                numbers=numbers,
            )
        )
    elif not fresh:
        findings.append(
            Finding(
                check="context",
                level="unknown",
                seen=f"it was loaded already, with {context:,} tokens: the server's default shows only when "
                "a model is loaded",
                mend=(place.client("stop", loaded.name),),
                numbers=numbers,
            )
        )
    else:
        better = min(trained or 32768, 32768)
        room = fits(better)
        worth = not batch and context < better and room is not False
        sets = {"OLLAMA_CONTEXT_LENGTH": str(better)} if worth else None
        planned = plan(better) if worth else None
        if planned is not None:
            numbers["needs_bytes"] = planned.total_bytes
        findings.append(
            Finding(
                check="context",
                level="note",
                seen=f"the server's default context is {context:,} tokens{of}",
                costs="programs that ask for none (all that use /v1) lose the beginning of longer prompts in "
                "silence; runs of ollama-batch ask for theirs (--num-ctx): rows that do not fit fail by name",
                mend=() if sets is None else place.serve_with(sets),
                on=place.remote if worth else None,
                assumed=(f"that the card has room for it{_size(planned)}",) if worth and room is None else (),
                numbers=numbers,
                sets=sets,
            )
        )
    return findings


def _size(plan: MemoryPlan | None) -> str:
    if plan is None:
        return ""
    slots = "1 slot" if plan.slots == 1 else f"{plan.slots} slots"
    return f": about {show(plan.total_bytes)} with {slots}"


def check_fit(
    plan: MemoryPlan, card: Card | None, place: Place, best: MemoryPlan | None, single: MemoryPlan | None
) -> Finding:
    """Whether a load that was not tried would fit. `single`: one with one slot, where it is not known how
    many the server has now, and `plan` has those of the latest load that was seen (None: it is known).
    """
    about = f"num_ctx {plan.num_ctx:,} x {plan.slots}: about {show(plan.total_bytes)}"
    numbers = {"total_bytes": plan.total_bytes, "num_ctx": plan.num_ctx, "slots": plan.slots}
    assumed = plan.notes if plan.correction == 1.0 else (*plan.notes, "corrected by an earlier load")
    if plan.measured:
        assumed = ("measured in an earlier load",)
    if single is not None and plan.slots > single.slots:
        had = f"that there are {plan.slots} slots, as the latest load that was seen had: with one"
        assumed = (*assumed, f"{had} (Ollama's default) about {show(single.total_bytes)}")
    if card is None:
        return Finding(
            check="load",
            level="unknown",
            seen=f"{about}, and how much the card has cannot be read from here",
            assumed=assumed,
            numbers=numbers,
        )
    room = card.total - card.others
    if plan.total_bytes <= room:
        seen = f"{about}, of the {show(room)} that the GPU has for it"
        return Finding(check="load", level="ok", seen=seen, assumed=assumed, numbers=numbers)
    if best is not None:
        numbers["needs_bytes"] = best.total_bytes
    return Finding(
        check="load",
        level="problem" if single is None or single.total_bytes > room else "warning",
        seen=f"{about} will not fit: the GPU has {show(room)} for it",
        costs="layers of it will be computed by the processor, or the load fails",
        mend=() if best is None else place.serve_with(best.environment),
        on=place.remote,
        assumed=assumed,
        numbers=numbers,
        sets=None if best is None else best.environment,
    )


def check_slots(
    found: Parallel,
    place: Place,
    *,
    shape: ModelShape | None,
    reckoned: bool,
    best: MemoryPlan | None,
    quantized: MemoryPlan | None,
    num_ctx: int | None,
    choices: Sequence[MemoryPlan] = (),
    longer: bool = False,
) -> Finding:
    """How many requests the server works on at once.

    `choices` are plans with more slots, `longer` says that a longer context is advised. `best` and
    `quantized` are what fits the card with a context of `num_ctx`, with a KV cache as exact as can be and
    with one of q8_0, if that was `reckoned`.
    """
    numbers: dict[str, float | int | None] = {
        "slots": found.slots,
        "sent": found.sent,
        "tokens_per_s_alone": found.alone,
        "tokens_per_s_together": found.together,
    }
    if found.slots is None:
        return Finding(check="slots", level="unknown", seen=found.unknown or "", numbers=numbers)
    gain = ""
    if found.gain is not None:
        gain = f": {found.alone:.0f} tokens/s alone, {found.together:.0f} side by side"
    many = f"{found.slots} or more" if found.slots >= found.sent else str(found.slots)
    if found.slots > 1:
        level = "ok" if found.slots >= WANTED_SLOTS else "note"
        seen = f"{many} requests are worked on at once{gain}"
        if level == "ok":
            return Finding(check="slots", level="ok", seen=seen, numbers=numbers)
    else:
        seen, level = f"one request is worked on at a time, {found.sent} were sent{gain}", "warning"
    if shape is not None and shape.one_slot:
        return Finding(
            check="slots",
            level="note",
            seen=f"{seen}: Ollama gives {shape.architecture} models one slot, whatever is set",
            costs="the others wait in line; no setting of Ollama mends it",
            numbers=numbers,
        )
    slots = best.slots if best is not None else 0 if reckoned else WANTED_SLOTS
    if slots <= found.slots:
        wider = quantized if quantized is not None and quantized.slots > found.slots else None
        more = "" if wider is None else f"; {wider.slots} would, in q8_0, which changes answers a little"
        context = "this context" if num_ctx is None else f"a context of {num_ctx:,}"
        if wider is not None:
            numbers["needs_bytes"] = wider.total_bytes
        return Finding(
            check="slots",
            level="note",
            seen=f"{seen}; more do not fit the card with {context}{more}",
            costs="the others wait in line",
            mend=() if wider is None else place.serve_with(_slots_of(wider)),
            on=None if wider is None else place.remote,
            numbers=numbers,
            sets=None if wider is None else _slots_of(wider),
        )
    costs = (
        "the others wait in line; a GPU that answers several at once reads the weights once for all of them "
        "(1.6 times the tokens with 8 slots, 2.4 times with 16, as one user measured of gpt-oss:120b)"
    )
    choices = [each for each in choices if each.slots > found.slots] if best is None else [best]
    sizes = ", ".join(f"{each.slots} slots take about {show(each.total_bytes)}" for each in choices)
    if best is None and longer:
        told = f"{sizes} with a context of {num_ctx:,}" if sizes else "no size is known of more slots"
        # Both at once are what a card has no room for, and nobody sees this one.
        return Finding(
            check="slots",
            level="warning" if found.slots == 1 else "note",
            seen=seen,
            costs=f"{costs}; {told}: not advised beside a longer context, as no card can be read. Where "
            "yours has so much, set OLLAMA_NUM_PARALLEL too",
            numbers=numbers,
        )
    if choices:
        numbers["needs_bytes"] = choices[-1].total_bytes
    environment = {PARALLEL: str(slots)} if best is None else _slots_of(best)
    length = "" if num_ctx is None else f" of {num_ctx:,} tokens"
    return Finding(
        check="slots",
        level="warning" if found.slots == 1 else "note",
        seen=seen,
        costs=costs if best is None else f"{costs}; {sizes} with contexts{length}",
        mend=place.serve_with(environment),
        on=place.remote,
        assumed=()
        if best is not None
        else (f"that the card has room for {slots} contexts{length}" + (f": {sizes}" if sizes else ""),),
        numbers=numbers,
        sets=environment,
    )


def _slots_of(plan: MemoryPlan) -> dict[str, str]:
    """The variables that give the server the slots of `plan`; the context is what requests ask for."""
    if plan.kv_type == "f16":
        return {PARALLEL: str(plan.slots)}
    return {name: value for name, value in plan.environment.items() if name != "OLLAMA_CONTEXT_LENGTH"}


def check_idle(place: Place, busy_percent: int | None, unread: str, found: Parallel | None) -> Finding:
    """Whether somebody else uses the engine: by the GPU before we began, and by how long we waited."""
    waited = None if found is None else found.waited_s
    numbers = {"busy_percent": busy_percent, "waited_s": waited}
    signs = []
    if busy_percent is not None and busy_percent >= BUSY_PERCENT:
        signs.append(f"the GPU was {busy_percent} % busy before anything was sent")
    if found is not None and waited is not None and waited > max(LONG_WAIT_S, 0.25 * found.took_s):
        signs.append(f"a request sent alone waited {waited:.1f} s for its turn")
    if signs:
        return Finding(
            check="idle",
            level="warning",
            seen="; ".join(signs),
            costs="somebody else uses the engine: both are slower, and what is measured here is too",
            mend=(place.client("ps"),),
            numbers=numbers,
        )
    seen = [] if busy_percent is None else [f"the GPU was {busy_percent} % busy"]
    seen += [] if waited is None else ["a request sent alone did not wait"]
    if not seen:
        return Finding(check="idle", level="unknown", seen=unread, numbers=numbers)
    return Finding(check="idle", level="ok", seen="; ".join(seen), numbers=numbers)
