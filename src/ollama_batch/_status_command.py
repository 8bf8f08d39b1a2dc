"""`ollama-batch status` and `watch`: how a run stands, read from its journal."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from ollama_batch._ending import ending_of
from ollama_batch._spelling import as_options
from ollama_batch._text import both_ends, duration

if TYPE_CHECKING:
    from ollama_batch.journal import ReadOnlyJournal

WATCH_S: Final = 2.0

TOLD: Final = 500
"""Of a text from elsewhere, such as an engine's words, so many characters are shown."""

DONE: Final = 0
"""The exit code of both, however the run fares."""


def status(arguments: Namespace) -> int:
    """Print how the run of a journal stands."""
    from ollama_batch.journal import RunJournal

    with RunJournal.open_readonly(arguments.journal) as journal:
        print(state_line(journal))
        for line in _ending_lines(journal):
            print(line)
        print(f"  {_mode_line(journal)}")
        for line in _load_lines(journal):
            print(f"  {as_options(line)}")
        codes, pace = journal.counts().codes, journal.pace()
    if pace.last_at is not None:
        ago = duration(max(0.0, time.time() - pace.last_at))
        print(f"  last result {ago} ago, {pace.recent:,} in the last minute")
    for code, count in sorted(codes.items(), key=lambda item: -item[1]):
        print(f"  {count:>9,}  {code}")
    return DONE


def watch(arguments: Namespace) -> int:
    """Print how it stands whenever that changes, until it does not run any more."""
    from ollama_batch.journal import RunJournal

    said = ""
    with RunJournal.open_readonly(arguments.journal) as journal:
        while True:
            line = state_line(journal)
            if line != said:
                print(line, flush=True)
            said = line
            if not line.startswith("running"):
                for each in _ending_lines(journal):
                    print(each, flush=True)
                return DONE
            time.sleep(WATCH_S)


def state_line(journal: ReadOnlyJournal) -> str:
    """How many rows are done and how; of a paused run, in a second line, why, since when and until when."""
    counts, state = journal.counts(), journal.state
    known = state == "finished" or journal.get("intake") is not None
    total = f"{counts.rows:,}" if known else f"{counts.rows:,} so far"
    activity = journal.get("activity") if state == "running" else None
    paused = f"\n  paused: {_why(**activity)}" if activity else ""
    return (
        f"{state}: {counts.done:,} of {total} rows done, {counts.ok:,} ok, "
        f"{counts.failed:,} failed, {counts.pending:,} left (run {journal.run_id[:8]}){paused}"
    )


def _ending_lines(journal: ReadOnlyJournal) -> Iterator[str]:
    """Why the run does not go on, and what to do about that."""
    reason, steps = ending_of(journal) or ("", [])
    if reason:
        # A run that has finished needs none for what it is: rows that had failed were to be sent again.
        what = "last call" if journal.state == "finished" else "reason"
        yield f"  {what}: {as_options(both_ends(reason, TOLD))}"
    for step in steps:
        yield f"  next: {as_options(both_ends(step, TOLD))}"


def _mode_line(journal: ReadOnlyJournal) -> str:
    """How rows were sent, and what trimming left out of them."""
    identity = journal.identity
    line = f"mode {identity.get('mode')}"
    policy = identity.get("conversation")
    if policy is not None:
        line += ", 1 lane" if policy["lanes"] == 1 else f", {policy['lanes']:,} lanes"
    if identity.get("trim") is None:
        return line
    trims = journal.trims()
    rows = "1 row" if trims.rows == 1 else f"{trims.rows:,} rows"
    left_out = "" if trims.tokens is None else f", {trims.tokens:,} tokens left out"
    return f"{line}; {rows} trimmed{left_out}"


def _load_lines(journal: ReadOnlyJournal) -> Iterator[str]:
    """What memory was in use when that was last noted, and what trouble there was in all sessions."""
    from ollama_batch._memory_words import amount

    memory = journal.notes("memory")[-1:]
    for at, data in ((note.at, note.data) for note in memory):
        vram, ram = data.get("vram_used_bytes"), data.get("ram_used_bytes")
        told = (
            *(() if vram is None else (f"{amount(vram, data.get('vram_total_bytes'))} of VRAM",)),
            *(() if ram is None else (f"{amount(ram)} of RAM",)),
        )
        if told:
            yield f"{', '.join(told)} in use {duration(max(0.0, time.time() - at))} ago"
    yield from _trouble_lines(journal)


def _trouble_lines(journal: ReadOnlyJournal) -> Iterator[str]:
    for said in dict.fromkeys(str(note.data.get("message")) for note in journal.notes("powerless_guard")):
        yield both_ends(said, TOLD)
    for note in journal.notes("spilled")[-1:]:
        yield both_ends(str(note.data.get("message")), TOLD)
    recoveries = sum(note.data.get("do") == "pause" for note in journal.notes("recovery"))
    restarts = sum(note.data.get("outcome") == "ok" for note in journal.notes("restart"))
    if recoveries or restarts:
        yield (
            f"{'1 recovery' if recoveries == 1 else f'{recoveries:,} recoveries'} of the engine, "
            f"{'1 restart' if restarts == 1 else f'{restarts:,} restarts'}"
        )
    pauses = [note for note in journal.notes("memory_guard") if "pause" in note.data.get("actions", ())]
    if pauses:
        times = "once" if len(pauses) == 1 else f"{len(pauses):,} times"
        latest = both_ends(str(pauses[-1].data.get("reason")), TOLD)
        yield f"paused {times} by a memory guard, last at {_clock(pauses[-1].at)}: {latest}"
    refused = sum(note.data.get("refused") or 0 for note in journal.notes("load"))
    if refused:
        yield f"{'1 request' if refused == 1 else f'{refused:,} requests'} refused, as the engine was busy"


def _why(
    reason: str, message: str, since: float | None = None, stops_at: float | None = None, **_: Any
) -> str:
    why = "by the program that runs it" if reason == "user" else as_options(both_ends(message, TOLD))
    begun = "" if since is None else f"since {_clock(since)}: "
    end = "it goes on when that is over"
    if reason == "user":
        end = "it waits until it is told to go on"
    elif stops_at is not None:
        end += f", or stops at {_clock(stops_at)} and can be resumed"
    return f"{begun}{why}; {end}" if since is not None else why


def _clock(at: float) -> str:
    """A moment in local time, with the day if that is not today."""
    moment, now = time.localtime(at), time.localtime()
    today = moment[:3] == now[:3]
    return time.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S", moment)
