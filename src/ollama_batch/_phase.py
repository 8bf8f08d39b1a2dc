"""One phase of a run: every pending row for one model, from its feed to the journal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ollama_batch._check import EngineCheck
from ollama_batch._failures import FailureWatch
from ollama_batch._feed import Feed
from ollama_batch._fitting import Composer, Fitter
from ollama_batch._gauge import PromptGauge
from ollama_batch._guarding import POWERLESS, Guarding, guarded
from ollama_batch._job import Job
from ollama_batch._lanes import Lanes
from ollama_batch._limits import LearnedLimit
from ollama_batch._meeting import Meeting, width_of
from ollama_batch._memory_notes import MemoryNotes
from ollama_batch._options import RunnerOptions
from ollama_batch._portal import portal
from ollama_batch._reading import AnswerReader
from ollama_batch._record import RecoveryRecord
from ollama_batch._recovery import Recovery
from ollama_batch._relief import Relief
from ollama_batch._room import DiskRoom
from ollama_batch._sender import Sender
from ollama_batch._settings import SendSettings
from ollama_batch._spill import Spill
from ollama_batch._steering import Steering
from ollama_batch._watch import watched
from ollama_batch._weights import Weights
from ollama_batch._workers import WorkerPool
from ollama_batch.events import Decision
from ollama_batch.journal import RunJournal
from ollama_batch.journal.data import Note
from ollama_batch.memory import MemorySample
from ollama_batch.retry import RetryPolicy
from ollama_batch.tokens.state import state_folder


async def send_rows(
    model: str,
    feed: Feed,
    meeting: Meeting,
    *,
    job: Job,
    journal: RunJournal,
    options: RunnerOptions,
    retry: RetryPolicy,
    failures: FailureWatch,
    total: Callable[[], int | None],
    noticed: Callable[..., None],
    troubles: Sequence[Note],
) -> None:
    """Send every pending row of `model`; returns early when the run is to end.

    `troubles` is what earlier sessions have noted of recovery.
    """
    run, limit = job.run, portal().limit(job.engine.address)
    settings = SendSettings.of(options, model=model, meeting=meeting)

    async def decide(kind: str, message: str, **data: Any) -> None:
        await journal.note(kind, {**data, "message": message})
        run._emit(Decision(kind=kind, message=message, data=data))

    weights = Weights(job.engine, info=meeting.info, stop=run._stop, decide=decide)
    steering = Steering(limit, info=meeting.info, emit=run._emit, note=journal.note, noticed=noticed)
    relief = Relief(
        job.engine,
        model=model,
        num_ctx=meeting.num_ctx,
        batch=limit.batch,
        run=run._stop,
        supervision=run._supervision,
        load_patience_s=options.load_timeout,
    )
    recovery = Recovery(
        check=EngineCheck(job.engine, settings=settings, limit=limit, loaded=weights.look),
        gate=run._gate,
        stop=run._stop,
        limit=limit,
        supervision=run._supervision,
        relief=relief,
        record=RecoveryRecord(troubles, emit=run._emit, note=journal.note),
        retry=retry,
        patience_s=options.recover_timeout,
        load_patience_s=options.load_timeout,
        emit=run._emit,
    )
    sender = Sender(
        engine=job.engine,
        settings=settings,
        retry=retry,
        limit=limit,
        steering=steering,
        recovery=recovery,
        gate=run._gate,
        stop=run._stop,
        emit=run._emit,
    )

    room = DiskRoom(gate=run._gate, stop=run._stop, patience_s=settings.patience_s)

    gauge = PromptGauge(
        info=meeting.info,
        allowed=meeting.context,
        sure=meeting.num_ctx is not None or meeting.info.context_fixed,
        base=options.counter,
        state_dir=options.state_dir,
        tokenizer=job.engine,
        asking=sender,
        decide=decide,
    )
    composer: Composer
    if options.policy is None:
        composer = Fitter(gauge, strategy=options.strategy, to_chat=settings.to_chat)
    else:
        assert options.strategy is not None  # noqa: S101 - conversations have a default
        composer = lanes = Lanes(
            gauge,
            journal=journal,
            room=room,
            policy=options.policy,
            strategy=options.strategy,
            learned=LearnedLimit(_conditions(meeting), folder=state_folder(options.state_dir)),
            to_chat=settings.to_chat,
            decide=decide,
            noticed=noticed,
        )
        await lanes.open()
        run._lanes = lanes
    pool = WorkerPool(
        width=width_of(options, meeting, spread=lambda: feed.spread, changed=steering.changed),
        feed=feed,
        composer=composer,
        reader=AnswerReader(options.form, retries=options.output_retries, composer=composer, emit=run._emit),
        sender=sender,
        journal=journal,
        settings=settings,
        recovery=recovery,
        weights=weights,
        limit=limit,
        room=room,
        stop=run._stop,
        emit=run._emit,
        failures=failures,
        total=total,
        names=[source.name for source in job.sources],
    )
    spill = Spill(model, num_ctx=meeting.num_ctx, note=journal.note, noticed=noticed)
    await spill.see_loaded(meeting.loaded)
    notes = MemoryNotes(journal.note)

    async def keep(sample: MemorySample) -> None:
        await spill.see(sample)
        await notes.see(sample)

    async def powerless(message: str) -> None:
        noticed(POWERLESS, message)
        await journal.note(POWERLESS, {"message": message})

    guarding = Guarding(
        options.guards,
        throttle=limit,
        gate=run._gate,
        stop=run._stop,
        trim=None if run._lanes is None else run._lanes.trim_all,
        reload=relief.reload_smaller,
        emit=run._emit,
        note=journal.note,
        answers=lambda: steering.answers,
        patience_s=settings.patience_s,
        keep=keep,
        powerless=powerless,
    )
    try:
        async with (
            steering.under_way(job.engine),
            watched(pool, engine=job.engine, model=model, gate=run._gate, recovery=recovery, emit=run._emit),
            guarded(guarding, engine=job.engine, model=model),
            weights.watched(),
        ):
            await pool.run()
    finally:
        await composer.close()


def _conditions(meeting: Meeting) -> dict[str, Any]:
    """What the longest prompt that works depends on."""
    info = meeting.info
    return {
        "engine": info.engine,
        "version": info.version,
        "model": info.model,
        "digest": info.digest,
        "context": meeting.context.tokens,
        "slots": info.slots,
    }
