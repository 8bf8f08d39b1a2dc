"""What is done for a batch at each step of its life, every step recorded in one transaction."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

from ollama_batch._points import reached
from ollama_batch.errors import JournalCorruptError, ModelNotFoundError, OllamaBatchError
from ollama_batch.run import Run
from ollama_batch.runner import BatchRunner
from ollama_batch.server.engine import SharedEngine
from ollama_batch.server.fairness import Load
from ollama_batch.server.objects import Status, StoredBatch, StoredFile, new_id
from ollama_batch.server.outcome import Outcome, Rest, write_outcome
from ollama_batch.server.settings import ServerSettings
from ollama_batch.server.store import Store
from ollama_batch.server.tally import Tally
from ollama_batch.server.validation import Validated, models_of, validate
from ollama_batch.server.vault import Draft, Vault

T = TypeVar("T")

log = logging.getLogger("ollama_batch.server")

_ENDS: dict[str, tuple[Rest | None, Status]] = {
    "finalizing": (None, "completed"),
    "cancelling": ("batch_cancelled", "cancelled"),
    "validating": ("batch_expired", "expired"),
    "in_progress": ("batch_expired", "expired"),
}
"""How a batch ends from each status: what becomes of lines that were not run, and the status then."""


def progress_of(batch: StoredBatch) -> str:
    """How far a batch is, in words."""
    return f"{batch.completed:,} of {_counted(batch.total, 'line')} done, {batch.failed:,} failed"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


class Heavy(Protocol):
    """Does blocking work in a thread."""

    def __call__(self, work: Callable[[], T]) -> Awaitable[T]:
        """The result of `work`."""
        ...


class Steps:
    """Checking an input, starting its run, writing its files. Each step may be repeated after a kill."""

    def __init__(
        self,
        store: Store,
        vault: Vault,
        engine: SharedEngine,
        settings: ServerSettings,
        clock: Callable[[], float],
        heavy: Heavy,
    ) -> None:
        self._store = store
        self._vault = vault
        self._engine = engine
        self._settings = settings
        self._clock = clock
        self._heavy = heavy
        self._found: dict[str, Validated] = {}

    async def check(self, batch: StoredBatch, stopped: Callable[[], bool]) -> None:
        """Check the input of a new batch: it fails, or is in progress. Raises EngineErrors; then again."""
        path = self._vault.input(batch.id)
        found = self._found.get(batch.id)
        if found is None and not path.exists():
            found = Validated()
            message = f"Cannot find file {batch.input_file_id}, or you do not have access to it."
            found.add("invalid_request", message, param="file_id")
        if found is None:
            tokens = self._settings.runner.get("max_tokens", 1024)
            found = await self._heavy(
                lambda: validate(path, self._settings, max_tokens=tokens, stopped=stopped)
            )
        if found is None:
            return  # it was cancelled
        self._found[batch.id] = found  # not checked once more if the engine is down
        needs = None
        if not found.wrong:
            needs = await self._ask_models(found)
        at = batch.moment(self._clock())
        if found.wrong:
            values: dict[str, Any] = {"status": "failed", "failed_at": at, "errors": found.error_list()}
        else:
            values = {
                "status": "in_progress",
                "in_progress_at": at,
                "total": found.total,
                "models": models_of(found),
                "needs": needs,
            }
        changed = await self._change(batch, ("validating",), **values)
        del self._found[batch.id]
        if changed is not None and changed.over:
            log.info("%s failed: %s in its input, nothing was run", batch.id, _counted(found.wrong, "fault"))
            await asyncio.to_thread(self._vault.end_run, batch.id)

    async def _ask_models(self, found: Validated) -> int | None:
        """Whether the engine has every model; the context length to load it with, where that is ours."""
        wanted = self._settings.num_ctx
        length: int | None = found.sizes.bucket() if wanted == "auto" else int(wanted)
        for model, line in found.first_lines.items():
            try:
                info = await self._engine.describe(model)
            except ModelNotFoundError:
                names = await self._engine.names()
                message = f"The provided model '{model[:200]}' is not supported by the Batch API.{names}"
                found.add("model_not_found", message, line=line, param="body.model")
                continue
            if wanted == "auto" and info.context_length is not None and length is not None:
                length = info.context_length if info.context_fixed else min(length, info.context_length)
        return length if self._engine.loads else None

    async def start(self, batch: StoredBatch, load: Load, tally: Tally) -> Run:
        """Begin or resume the run of a batch. Raises ConfigError, InputError."""
        if batch.num_ctx is None and load.num_ctx is not None:
            # Kept first: a run is only resumed with the context length that it began with.
            await self._change(batch, ("in_progress",), num_ctx=load.num_ctx)
        own = self._settings.num_ctx if load.num_ctx is None else load.num_ctx
        runner: BatchRunner = BatchRunner(
            model=batch.models[0],
            allow_models=batch.models[1:],
            engine=self._engine.engine,
            num_ctx=own,
            on_length="keep",
            hooks=(tally,),
            progress="none",
            **self._settings.runner,
        )
        return runner.start(
            self._vault.input(batch.id),
            journal=self._vault.journal(batch.id),
            on_invalid="skip",
            # No share of failed lines ends a batch: all of them may.
            max_failures=self._settings.max_lines + 1,
        )

    async def keep_counts(self, batch: StoredBatch, tally: Tally) -> None:
        """Record how far a run came that goes on later."""
        if tally.completed is not None:
            await self._change(
                batch, ("in_progress", "cancelling"), completed=tally.completed, failed=tally.failed or 0
            )

    async def ran(self, batch: StoredBatch, tally: Tally) -> None:
        """Every line of a batch has a result."""
        await self.keep_counts(batch, tally)
        at = batch.moment(self._clock())
        await self._change(batch, ("in_progress",), status="finalizing", finalizing_at=at)

    async def conclude(self, batch: StoredBatch) -> None:
        """Write the files of a batch and end it. If it is cancelled meanwhile, nothing is done."""
        rest, status = _ENDS[batch.status]
        outcome = Outcome()
        if batch.in_progress_at is not None:
            outcome = await self._heavy(
                lambda: write_outcome(
                    self._vault, batch.id, rest=rest, max_line_bytes=self._settings.max_line_bytes
                )
            )
        if rest is None and outcome.completed + outcome.failed != batch.total:
            outcome.discard()
            done = outcome.completed + outcome.failed
            raise JournalCorruptError(f"the journal of {batch.id} has {done:,} of {batch.total:,} results")
        at = batch.moment(self._clock())
        made: list[StoredFile] = []
        try:
            output = await self._publish(batch, outcome.output, "output", at, made)
            errors = await self._publish(batch, outcome.errors, "error", at, made)
            changed = await self._change(
                batch,
                (batch.status,),
                files=made,
                status=status,
                completed=outcome.completed,
                failed=outcome.failed,
                usage=outcome.usage_object(),
                output_file_id=output,
                error_file_id=errors,
                **{f"{status}_at": at},
            )
        except BaseException:
            self._forget(outcome, made)
            raise
        if changed is None:
            self._forget(outcome, made)
            return
        log.info("%s %s: %s", batch.id, status, progress_of(changed))
        await asyncio.to_thread(self._vault.end_run, batch.id)
        self._found.pop(batch.id, None)

    async def fail(self, batch: StoredBatch, error: OllamaBatchError) -> None:
        """End a batch that cannot be gone on with."""
        message = f"The server could not go on with this batch ({type(error).__name__}); its log says more."
        told = {"code": "internal_error", "line": None, "message": message, "param": None}
        at = batch.moment(self._clock())
        await self._change(
            batch,
            ("validating", "in_progress", "finalizing", "cancelling"),
            status="failed",
            failed_at=at,
            errors={"object": "list", "data": [told]},
        )
        await asyncio.to_thread(self._vault.end_run, batch.id)

    def forget_run(self, batch: StoredBatch) -> None:
        """Begin anew: other weights answer now, and answers of both must not be mixed."""
        reached("server.before_forget")
        journal = self._vault.journal(batch.id)
        for suffix in ("", "-wal", "-shm"):
            journal.with_name(journal.name + suffix).unlink(missing_ok=True)

    def sweep(self, now: float) -> None:
        """Remove files and parts whose time is over."""
        for file_id in self._store.expire_files(now):
            self._vault.remove(file_id)
        for part_id in self._store.expire_uploads(now):
            self._vault.remove_part(part_id)

    async def _publish(
        self, batch: StoredBatch, draft: Draft | None, kind: str, at: int, made: list[StoredFile]
    ) -> str | None:
        """Put a result file in its place; it is known to nobody until it is recorded."""
        if draft is None:
            return None
        expires = None if batch.output_expires_s is None else at + batch.output_expires_s
        file = StoredFile(
            id=new_id("file-"),
            owner=batch.owner,
            purpose="batch_output",
            filename=f"{batch.id}_{kind}.jsonl",
            bytes=draft.size,
            created_at=at,
            expires_at=expires,
        )
        made.append(file)
        await asyncio.to_thread(self._vault.publish, draft, file.id)
        return file.id

    def _forget(self, outcome: Outcome, made: Sequence[StoredFile]) -> None:
        outcome.discard()
        for file in made:
            self._vault.remove(file.id)

    async def _change(
        self, batch: StoredBatch, when: Sequence[Status], files: Sequence[StoredFile] = (), **values: Any
    ) -> StoredBatch | None:
        return await asyncio.to_thread(self._store.change, batch, when=when, files=files, **values)
