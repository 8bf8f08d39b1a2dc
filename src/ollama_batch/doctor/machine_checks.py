"""Findings on this machine: who else has memory of the GPUs, RAM and swap, room on the disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ollama_batch._text import count
from ollama_batch.doctor.finding import Finding
from ollama_batch.doctor.machine import Disk
from ollama_batch.doctor.place import Place
from ollama_batch.doctor.run_line import RunLine
from ollama_batch.memory.amounts import GIB, MIB, show
from ollama_batch.memory.guards import RamGuard
from ollama_batch.memory.levels import Level
from ollama_batch.memory.processes import GpuProcess
from ollama_batch.memory.sample import MemorySample, Reading

SMALL: Final = 256 * MIB
"""What others have of a card up to here is a desktop's share."""

LITTLE_FREE: Final = 0.12
"""Where a `VramGuard` begins to warn."""

PROMPT_CACHE: Final = 8 * GIB
SWAPPED: Final = GIB
LEAST_DISK: Final = GIB
LOG_BYTES: Final = 64 * MIB
DEFAULT_ROW_BYTES: Final = 8000
"""A row's journal and output where no answer was seen: one of some 1,500 letters."""


def elsewhere(check: str, place: Place) -> Finding:
    """What cannot be seen, as the engine is another machine's."""
    return Finding(
        check=check,
        level="unknown",
        seen=f"the engine is on {place.remote}, whose memory cannot be seen from here",
        mend=(place.doctor_there(),),
        on=place.remote,
    )


def check_card(
    sample: MemorySample, users: Sequence[GpuProcess] | str, model_bytes: int | None
) -> list[Finding]:
    """How much of each GPU is free, and who beside the engine has memory of it.

    `users` is the reason where it is not known. `model_bytes`: what the engine says its models have.
    """
    if not sample.devices:
        seen = f"no GPU can be read: {sample.devices_unknown}"
        return [Finding(check="card", level="unknown", seen=seen)]
    findings = []
    for device in sample.devices:
        room = device.room
        if not room.used.known or not room.total.known:
            reason = room.used.reason or room.total.reason
            findings.append(Finding(check="card", level="unknown", seen=f"{device.name}: {reason}"))
            continue
        free, total = room.free.get(), room.total.get()
        seen = f"{device.name}: {show(free)} of {show(total)} free"
        numbers = {"device": device.id, "free_bytes": free, "total_bytes": total}
        tight = free < LITTLE_FREE * total
        findings.append(
            Finding(
                check="card",
                level="note" if tight else "ok",
                seen=seen,
                costs="little is left to grow: a run's guard holds its concurrency" if tight else None,
                numbers=numbers,
            )
        )
    if isinstance(users, str):
        findings.append(Finding(check="card", level="unknown", seen=f"who uses it is not told: {users}"))
        return findings
    findings += [_other(each) for each in users if not each.engine]
    findings += _unaccounted(sample, users, model_bytes)
    return findings


def _other(user: GpuProcess) -> Finding:
    """What somebody beside the engine has of a card. Only what this user computes with is to be killed."""
    name = user.name or "a process not seen from here"
    takes = "memory (how much is not told)" if user.used.value is None else show(user.used.value)
    seen = f"{name} ({user.pid}) has {takes} of {user.device}"
    if user.draws:
        seen += ": a program of the desktop, or one that draws"
    elif not user.own:
        seen += f", run by {user.owner or 'somebody who is not told'}"
    numbers = {"pid": user.pid, "used_bytes": user.used.value, "owner": user.owner, "draws": user.draws}
    if user.used.value is None or user.used.value <= SMALL:
        return Finding(check="card", level="note", seen=seen, numbers=numbers)
    costs = "the model has that much less, and what it takes in mid-run may end the engine"
    mine = user.own and not user.draws and user.name is not None
    return Finding(
        check="card",
        level="warning",
        seen=seen,
        costs=costs if mine else f"{costs}; closing it frees {takes}",
        mend=(f"kill {user.pid}",) if mine else (),
        numbers=numbers,
    )


def _unaccounted(sample: MemorySample, users: Sequence[GpuProcess], model_bytes: int | None) -> list[Finding]:
    """Memory in use of which nobody is known to have it: processes outside a container are not seen."""
    rooms = [device.room for device in sample.devices if not device.unified]
    if not rooms or any(not room.used.known for room in rooms) or any(not each.used.known for each in users):
        return []
    used = sum(room.used.get() for room in rooms)
    engines = sum(each.used.get() for each in users if each.engine)
    known = sum(each.used.get() for each in users if not each.engine) + max(engines, model_bytes or 0)
    if used - known <= max(GIB, 0.05 * used):
        return []
    return [
        Finding(
            check="card",
            level="note",
            seen=f"{show(used - known)} of the GPU are in use by nobody who is seen from here",
            costs="a program outside this container, another user's, or a model that did not let go",
            mend=("nvidia-smi",),
            numbers={"used_bytes": used, "known_bytes": known},
        )
    ]


def check_ram(sample: MemorySample, swap: Reading, place: Place) -> Finding:
    """Whether there is RAM enough for the engine's saved prompts and the rest."""
    host = sample.host
    if not host.available.known or not host.total.known:
        return Finding(check="ram", level="unknown", seen=host.room.used.reason or "RAM cannot be read")
    available, total = host.available.get(), host.total.get()
    limit = ", a control group's limit" if host.group_limit.value == total else ""
    seen = f"{show(available)} of {show(total)}{limit} available"
    numbers = {"available_bytes": available, "total_bytes": total, "swap_used_bytes": swap.value}
    level = RamGuard().decide(sample).level
    if swap.value is not None and swap.value > SWAPPED:
        seen += f", {show(swap.value)} swapped out"
        level = max(level, Level.WARN)
    if level is Level.OK and available >= PROMPT_CACHE:
        return Finding(check="ram", level="ok", seen=seen, numbers=numbers)
    sets = {"LLAMA_ARG_CACHE_RAM": str(max(0, available // 4 // MIB))}
    return Finding(
        check="ram",
        level="problem" if level is Level.CRITICAL else "warning" if level is not Level.OK else "note",
        seen=seen,
        costs="the engine keeps up to 8 GiB of prompts in RAM; without room for them the system swaps, or "
        "ends a process",
        mend=place.serve_with(sets),
        numbers=numbers,
        sets=sets,
    )


def check_disk(disk: Disk, run: RunLine, *, rows: int | None, row_bytes: int | None) -> Finding:
    """Whether a journal can be there, and has room."""
    where = f"{disk.folder}" + (f" ({disk.kind})" if disk.kind else "")
    if disk.refused is not None:
        return Finding(
            check="disk",
            level="problem",
            seen=f"no journal can be in {where}: {disk.refused}",
            costs="a run is refused at once",
            mend=(run.adding(output="/OTHER/DISK/OUT"),),
        )
    if not disk.free.known:
        return Finding(check="disk", level="unknown", seen=f"{where}: {disk.free.reason}")
    free = disk.free.get()
    need = None if rows is None else LOG_BYTES + rows * (row_bytes or DEFAULT_ROW_BYTES)
    numbers = {"free_bytes": free, "needed_bytes": need}
    seen = f"{show(free)} free in {where}"
    assumed: tuple[str, ...] = ()
    if need is not None and rows is not None:
        seen += f"; {count(rows)} rows take about {show(need)} for journal and output"
        how = "as the answers seen" if row_bytes is not None else "no answer was seen"
        assumed = (f"{count(row_bytes or DEFAULT_ROW_BYTES)} bytes a row ({how})",)
    short = need is not None and free < need
    close = free < LEAST_DISK or (need is not None and free < 2 * need)
    return Finding(
        check="disk",
        level="problem" if short else "warning" if close else "ok",
        seen=seen,
        costs="the run stops, resumably, when the disk is full" if short or close else None,
        mend=(run.adding(output="/OTHER/DISK/OUT"),) if short or close else (),
        assumed=assumed,
        numbers=numbers,
    )
