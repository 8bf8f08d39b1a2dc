"""The finding on where the loaded model is: all of it on the GPU, or what would have it there."""

from __future__ import annotations

from collections.abc import Sequence

from ollama_batch._text import share
from ollama_batch.doctor.finding import Finding
from ollama_batch.doctor.load_checks import LEAST_CTX, Card
from ollama_batch.doctor.place import Place
from ollama_batch.doctor.server import Running
from ollama_batch.memory.amounts import show
from ollama_batch.memory.plan import MemoryPlan
from ollama_batch.memory.shape import ModelShape


def check_spill(
    loaded: Running,
    place: Place,
    *,
    has_gpu: bool | None,
    plan: MemoryPlan | None,
    running: Sequence[Running] = (),
    asked: int | None = None,
    shape: ModelShape | None = None,
    card: Card | None = None,
) -> Finding:
    """Whether all of the model is on the GPU. Where others of those `running` are, they are to go first.

    `plan` is what fits the card (None: nothing, or it is not known), `asked` the context that was asked for.
    """
    numbers = {"size_bytes": loaded.size, "vram_bytes": loaded.vram}
    if loaded.size is None or loaded.vram is None:
        return Finding(check="load", level="unknown", seen="the server does not say how much memory it takes")
    takes = f"{loaded.name} takes {show(loaded.size)}"
    spilled = loaded.size - loaded.vram
    if spilled <= 0:
        return Finding(check="load", level="ok", seen=f"{takes}, all of it on the GPU", numbers=numbers)
    mend = () if plan is None else place.serve_with(plan.environment)
    sets = None if plan is None else plan.environment
    part = f"{takes}, of which {show(spilled)} ({share(spilled / loaded.size)}) did not fit on the GPU"
    costs = "the processor computes those layers, and the GPU waits for it at every token"
    others = [each.name for each in running if each.vram and not each.is_model(loaded.name)]
    if others and has_gpu is not False:
        return Finding(
            check="load",
            level="problem",
            seen=f"{part} beside {', '.join(others)}",
            costs=costs,
            # It stays where it is until it is loaded again.
            mend=(
                *(place.client("stop", name) for name in (*others, loaded.name)),
                place.doctor("--model", loaded.name),
            ),
            numbers=numbers,
        )
    if plan is not None:
        numbers["needs_bytes"] = plan.total_bytes
    if loaded.vram == 0:
        return Finding(
            check="load",
            level="problem" if has_gpu else "warning",
            seen=f"{takes}, none of it on a GPU",
            costs="everything is computed by the processor, which is far slower",
            mend=mend or (place.restart() if has_gpu else ()),
            on=place.remote,
            numbers=numbers,
            sets={} if has_gpu and sets is None else sets,
        )
    if plan is None:
        helps, mend = _what_helps(loaded, place, asked, shape, card)
        costs = f"{costs}; {helps}"
    return Finding(
        check="load",
        level="problem",
        seen=part,
        costs=costs,
        mend=mend,
        on=None if plan is None else place.remote,
        numbers=numbers,
        sets=sets,
    )


def _what_helps(
    loaded: Running, place: Place, asked: int | None, shape: ModelShape | None, card: Card | None
) -> tuple[str, tuple[str, ...]]:
    """What has all of the model on the GPU where no plan is known that does: in words, and the commands."""
    other = "a smaller model, or a smaller quantisation of it"
    weights = None if shape is None else shape.weights_bytes
    # The card may have more room than the layers that are there take.
    room = max(loaded.vram or 0, 0 if card is None else card.total - card.others)
    if weights and weights > room:
        alone = f"its weights alone take {show(weights)}, and the GPU holds {show(room)}"
        return f"{alone}: no context, slots or KV type mend that; what helps is {other}", ()
    now = loaded.context or 8192
    smaller = asked if asked is not None and asked < now else now // 2
    ways = f"fewer slots (OLLAMA_NUM_PARALLEL), OLLAMA_FLASH_ATTENTION=1 OLLAMA_KV_CACHE_TYPE=q8_0, {other}"
    if smaller < LEAST_CTX:
        return f"what helps is {ways}", ()
    # It stays loaded with the context it has, and would be measured with that again.
    again = place.doctor("--model", loaded.name, "--num-ctx", str(smaller))
    return f"a smaller context may help, or {ways}", (place.client("stop", loaded.name), again)
