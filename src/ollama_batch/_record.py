"""What the journal keeps of recovery, so that the next session knows it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from ollama_batch.control import Action, Do, History, Suspicion
from ollama_batch.errors import EngineError, JournalError
from ollama_batch.events import Decision, Event
from ollama_batch.journal.data import Note

log = logging.getLogger("ollama_batch.run")

KIND: Final = "recovery"
"""The kind of its decisions and notes."""

NOTED: Final = 200
"""So many decisions of a session are kept in its journal; all are told to hooks."""


class RecoveryRecord:
    """Tells and keeps what is decided about trouble. `history` begins with what `notes` say of earlier
    sessions: which rows were out when the engine died, and how often.
    """

    def __init__(
        self,
        notes: Sequence[Note],
        *,
        emit: Callable[[Event], None],
        note: Callable[[str, dict[str, Any]], Awaitable[None]],
    ) -> None:
        self.history = _restored(notes[-1].data) if notes else History()
        self._emit = emit
        self._note = note
        self._noted = 0
        self._noting: set[asyncio.Task[None]] = set()

    def keep(
        self,
        action: Action,
        history: History,
        error: EngineError | None = None,
        *,
        in_flight: int | None = None,
    ) -> None:
        """`action` was decided, after which the record is `history`; so many requests were out at it."""
        data = action.to_note()
        if in_flight is not None:
            data["in_flight"] = in_flight
        message = f"{action.do}: {action.reason}"
        if error is not None:
            data["code"] = error.code
            message += f" ({error.message})"
        log.warning("%s", message)
        self._emit(Decision(kind=KIND, message=message, data=data))
        if self._noted >= NOTED and action.do is not Do.STOP:
            return
        self._noted += 1
        suspicions = {str(row): each.crashes for row, each in history.suspicions.items()}
        state = {"suspicions": suspicions, "rungs": [rung.value for rung in history.rungs]}
        task = asyncio.ensure_future(self._write({**data, "message": message, "state": state}))
        self._noting.add(task)
        task.add_done_callback(self._noting.discard)

    async def kept(self) -> None:
        """Return when all is in the journal."""
        await asyncio.gather(*self._noting)

    async def _write(self, data: dict[str, Any]) -> None:
        try:
            await self._note(KIND, data)
        except JournalError as error:  # no room, or closed by now: rows have their own way to say that
            log.debug("a decision could not be noted: %s", type(error).__name__)


def _restored(data: Any) -> History:
    """The history with which a session begins, after one that ended with this note. No answer of that one
    counts: a row that is suspected is tried again after others.
    """
    state = data.get("state", {})
    suspicions = {int(row): Suspicion(int(n), 0) for row, n in state.get("suspicions", {}).items()}
    return History(suspicions=suspicions)
