"""Why a run ended early and how it goes on, kept in its journal for those who look at it later."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ollama_batch._next_steps import same_call
from ollama_batch._text import both_ends
from ollama_batch.errors import JournalError, JournalMismatchError, OllamaBatchError

if TYPE_CHECKING:
    from ollama_batch.journal import ReadOnlyJournal, RunJournal

log = logging.getLogger("ollama_batch.run")

ENDING = "ending"
"""The journal's key: an object with `session` (the number of the session that ended early), `reason` and
`next_steps` (texts, the first first). It is of no use for any other session."""

KEPT = 2000
"""Of a reason, which may have an engine's words in it, so many characters are kept."""

UNSAID = "it ended without saying why: it was killed, or there was no room to note it"


def note_ending(journal: RunJournal, reason: str, next_steps: Sequence[str]) -> None:
    """Keep why the present session ends early, for `ending_of`; a journal that cannot be written is left."""
    kept = {
        "session": journal.session,
        "reason": both_ends(reason, KEPT),
        "next_steps": [both_ends(step, KEPT) for step in next_steps],
    }
    try:
        journal.put(ENDING, kept)
    except JournalError as error:  # no room, or closed by now: the report says it too
        log.debug("why the run ended could not be noted: %s", type(error).__name__)


def note_fault(journal: RunJournal, error: BaseException) -> None:
    """`note_ending` for what keeps a run from going on and is no orderly stop, so that it has no report."""
    if isinstance(error, JournalMismatchError):
        # What it says shows settings, of which a system prompt may be one.
        reason = "the last call was refused: it has other settings or rows than the run began with"
        step = "run it with what it began with, or begin a new one (another output=, or overwrite=True)"
    elif isinstance(error, OllamaBatchError):
        reason, step = str(error), f"mend what the reason says, then run {same_call(None)}"
    else:  # from code that is not ours, perhaps: its words may be anything
        reason, step = f"it broke off with {type(error).__name__}", f"run {same_call(None)}"
    note_ending(journal, reason, [step])


def ending_of(journal: ReadOnlyJournal) -> tuple[str, list[str]] | None:
    """The reason and the next steps of the latest session, if that is over and ended early.

    Of a session that was killed nothing is known but that the same call goes on. None for a run that is
    under way, and for one that has finished, unless a later session of it (for rows that had failed, say)
    ended early.
    """
    state = journal.state
    if state == "running":
        return None
    kept: dict[str, Any] = journal.get(ENDING) or {}
    if kept.get("session") == journal.session:
        return kept["reason"], kept["next_steps"]
    if state == "finished":
        return None
    left = journal.counts().pending if journal.get("intake") is not None else None
    return UNSAID, [f"run {same_call(left)}"]
