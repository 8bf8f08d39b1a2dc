"""Findings on the server: does it answer, is it new enough, has it the model, what else has it loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ollama_batch._text import duration
from ollama_batch.doctor.finding import Finding
from ollama_batch.doctor.place import Place
from ollama_batch.doctor.server import Running
from ollama_batch.engines._ollama_wire import full_name
from ollama_batch.errors import (
    EngineAuthError,
    EngineConnectionError,
    EngineError,
    EngineTimeoutError,
    EngineUnreachableError,
)
from ollama_batch.memory.amounts import show

SLOW_S: Final = 1.0
"""An answer that needs no model and takes longer than this is slow."""

NAMED: Final = 5

OLD: Final[tuple[tuple[tuple[int, int], str], ...]] = (
    ((0, 5), "JSON schemas of answers (response_format) are not followed"),
    ((0, 9), "reasoning cannot be turned off (think), and takes its time and tokens"),
    ((0, 13), "prompts that are too long may be cut in silence (truncate came with the last of 0.12)"),
    ((0, 30), "it runs models in another way than this package knows: figures of memory and slots may err"),
)
"""What a server older than a version does not do."""


def unreachable(error: EngineError, place: Place, patience_s: float, *, openai: bool) -> Finding:
    """Nothing that works answers as Ollama does."""
    on = place.remote
    sets: dict[str, str] | None = {} if on is None else None
    if isinstance(error, EngineUnreachableError):
        seen, mend = f"nothing answers at {place.address}", place.start()
        if not place.installed:
            seen = f"{seen}, and no program ollama is installed on this machine (none is on the PATH)"
            mend = place.install()
    elif isinstance(error, EngineTimeoutError):
        seen = f"something takes connections at {place.address}, but does not answer within {patience_s:g} s"
        mend = place.restart()
    elif isinstance(error, EngineConnectionError):
        seen, mend = f"{place.address} breaks connections off", place.restart()
    elif isinstance(error, EngineAuthError):
        seen, mend, on = f"{place.address}: {error}", (place.doctor("--api-key-env", "NAME"),), None
        sets = None
    elif openai:
        seen = (
            f"{place.address} is no Ollama, but has the routes of OpenAI's API: this doctor knows Ollama only"
        )
        mend = (f"ollama-batch run IN -o OUT --api openai --base-url {place.address}/v1",)
        on = sets = None
    else:
        seen = f"what answers at {place.address} is no Ollama ({error})"
        mend = ("ollama-batch doctor --base-url http://HOST:11434",)
        on = sets = None
    return Finding(
        check="server",
        level="problem",
        seen=seen,
        costs="no request can be sent; a run ends at once",
        mend=mend,
        on=on,
        sets=sets,
    )


def reached(place: Place, took_s: float) -> Finding:
    """It answers, and how fast."""
    slow = took_s > SLOW_S
    return Finding(
        check="server",
        level="warning" if slow else "ok",
        seen=f"{place.address} answers in {1000 * took_s:,.0f} ms",
        costs="every request waits as long for its way there and back" if slow else None,
        mend=place.restart() if slow else (),
        on=place.remote if slow else None,
        numbers={"took_s": took_s},
        sets={} if slow else None,
    )


def tells_nothing(error: EngineError, place: Place) -> Finding:
    """It is there, but does not tell of its models."""
    return Finding(
        check="model",
        level="problem",
        seen=f"the server does not tell of its models: {error}",
        costs="a run asks the same, and ends at once",
        mend=place.restart(),
        on=place.remote,
        sets={},
    )


def check_version(version: str, place: Place) -> Finding:
    """Whether the server is new enough, and what for not."""
    found = re.match(r"(\d+)\.(\d+)", version)
    number = (int(found[1]), int(found[2])) if found else None
    if number is None or number == (0, 0):
        told = f"version {version!r}, a build of one's own" if version else "it does not tell its version"
        return Finding(check="version", level="unknown", seen=told)
    missing = [what for since, what in OLD if number < since]
    if not missing:
        return Finding(check="version", level="ok", seen=f"Ollama {version}")
    return Finding(
        check="version",
        # What came with 0.30 changes figures, what came before it answers.
        level="note" if len(missing) == 1 else "warning",
        seen=f"Ollama {version} is old",
        costs="; ".join(missing),
        mend=place.upgrade(),
        on=place.remote,
    )


def check_model(
    model: str | None, models: Mapping[str, Mapping[str, Any]], shown: Mapping[str, Any], place: Place
) -> Finding:
    """Whether the server has the model, and whether it can chat. `shown` is empty where it was not asked."""
    if model is None:
        names = sorted(models)[:NAMED]
        more = f" and {len(models) - len(names)} more" if len(models) > len(names) else ""
        there = f"; there are {', '.join(names)}{more}" if names else "; the server has none"
        return Finding(check="model", level="unknown", seen=f"no model was named (--model M){there}")
    entry = models.get(full_name(model))
    if entry is None:
        return Finding(
            check="model",
            level="problem",
            seen=f"the server does not have {model}",
            costs="a run ends at once",
            mend=(place.client("pull", model),),
        )
    details = entry.get("details")
    kind = details.get("quantization_level") if isinstance(details, Mapping) else None
    size, digest = entry.get("size"), entry.get("digest")
    parts = [show(size)] if isinstance(size, int) and size else []
    parts += [kind] if isinstance(kind, str) and kind else []
    parts += [f"digest {digest.removeprefix('sha256:')[:12]}"] if isinstance(digest, str) and digest else []
    seen = f"{model} is there" + (f" ({', '.join(parts)})" if parts else "")
    able = shown.get("capabilities")
    if isinstance(able, list) and able and "completion" not in able:
        return Finding(
            check="model",
            level="problem",
            seen=f"{seen}, but cannot chat (it can do: {', '.join(map(str, able))})",
            costs="every row fails",
            mend=(place.client("list"),),
        )
    if shown.get("remote_host"):
        return Finding(
            check="model",
            level="warning",
            seen=f"{model} runs at {shown['remote_host']}, not on your GPU",
            costs="prompts leave this machine, and its limits are those of the service",
            mend=(place.client("list"),),
        )
    return Finding(check="model", level="ok", seen=seen, numbers={"size_bytes": size, "digest": digest})


def check_others(running: Sequence[Running], model: str | None, place: Place) -> list[Finding]:
    """The models in memory beside the one that is wanted."""
    others = [each for each in running if model is None or not each.is_model(model)]
    others = [each for each in others if each.left_s is None or each.left_s >= 0]
    if not others:
        return [Finding(check="others", level="ok", seen="no other model is loaded")]
    findings = []
    for each in others:
        stay = "" if each.left_s is None else f" for {duration(each.left_s)} more"
        stay = " until it is unloaded" if each.for_ever else stay
        takes = f" and takes {show(each.vram)} of the GPU" if each.vram else ""
        findings.append(
            Finding(
                check="others",
                level="note" if model is None else "warning" if each.vram or each.vram is None else "note",
                seen=f"{each.name} is loaded{stay}{takes}",
                costs=None
                if model is None
                else f"{model} has less room: layers of it may be computed by the processor, or one pushes "
                "the other out at every request",
                mend=(place.client("stop", each.name),),
                numbers={"vram_bytes": each.vram},
            )
        )
    return findings


def check_stuck(before: Sequence[Running], after: Sequence[Running], place: Place) -> list[Finding]:
    """Models that were to be gone at the first look and are still there at the second ("Stopping...")."""
    late = {each.name for each in before if each.left_s is not None and each.left_s < 0}
    stuck = [each for each in after if each.name in late and each.left_s is not None and each.left_s < 0]
    return [
        Finding(
            check="stuck",
            level="problem",
            seen=f"{each.name} should have been unloaded {duration(-(each.left_s or 0))} ago and is still "
            'there ("Stopping..." in ollama ps)',
            costs=f"it holds {show(each.vram or each.size or 0)}, and requests may wait for it for ever",
            mend=place.restart(),
            on=place.remote,
            numbers={"size_bytes": each.size},
            sets={},
        )
        for each in stuck
    ]
