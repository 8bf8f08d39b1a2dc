"""Meeting the engine: who answers, with which weights, how wide; and the model loaded as rows need it."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal, TypeAlias, TypeVar

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_delay,
    wait_exponential_jitter,
)

from ollama_batch import __version__
from ollama_batch._context import UNKNOWN, Context
from ollama_batch._intake import Intake
from ollama_batch._learning import learn_memory
from ollama_batch._options import RunnerOptions
from ollama_batch._outage import Outage
from ollama_batch._portal import portal
from ollama_batch._sizes import next_bucket
from ollama_batch._stop import Stop
from ollama_batch._stuck import told_while_loading
from ollama_batch._summary import NEW_RUN
from ollama_batch._width import RunWidth
from ollama_batch.concurrency import Concurrency
from ollama_batch.control import LimitChange
from ollama_batch.engines.base import Engine, Loadable
from ollama_batch.errors import ConfigError, EngineBusyError, EngineError, EngineLoadingError
from ollama_batch.journal import RunJournal
from ollama_batch.journal.identity import DIGEST
from ollama_batch.tokens.state import state_folder
from ollama_batch.types import EngineInfo, LoadedModel

T = TypeVar("T")
Sleep: TypeAlias = Callable[[float], Awaitable[None]]

log = logging.getLogger("ollama_batch.run")

OLLAMA_WIDTH = 4
"""Ollama does not tell its slots (OLLAMA_NUM_PARALLEL, 1 unless set). More requests than slots only wait in
the server's own line, fewer leave slots idle; 4 fills the setting most people choose."""

OPENAI_WIDTH = 16
"""For servers that batch continuously and tell no limit, as vLLM does."""


NUM_CTX = "num_ctx"
"""What every request carries, pinned in the journal."""

TOLD = "told num_ctx"
"""What was said of a server that sets its context itself: rows are fitted to it. Pinned as well."""

EXTRA = "extra_body"
"""The fields that an engine lays under every request, pinned too."""

SLOTS_TIMES = 4
"""By itself a run never has more than so many requests out for each slot: more than any way there takes."""

TOO_LONG_NAMED = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Meeting:
    """What the run now knows about its engine."""

    info: EngineInfo
    num_ctx: int | None
    width: int
    context: Context = UNKNOWN
    """What prompt and answer may have together."""
    num_ctx_why: str | None = None
    """Why num_ctx="auto" is what it is; None where it was given."""
    loaded: LoadedModel | None = None
    """What the model takes, where that was asked and told."""

    def to_note(self, model: str) -> dict[str, Any]:
        """What the journal keeps about a session, beside the identity of the run."""
        return {
            "version": __version__,
            "model": model,
            "engine": dataclasses.asdict(self.info),
            "num_ctx": self.num_ctx,
            "concurrency": self.width,
        }


async def once_free(ask: Callable[[], Awaitable[T]], *, sleep: Sleep, patience_s: float) -> T:
    """The result of `ask()`, repeated for up to `patience_s` seconds while the engine is busy or loading."""
    began, outage = time.monotonic(), Outage(patience_s)

    def told(attempt: RetryCallState) -> None:
        error = None if attempt.outcome is None else attempt.outcome.exception()
        if isinstance(error, EngineError):
            outage.met(error, at=began)

    retrying = AsyncRetrying(
        retry=retry_if_exception_type((EngineBusyError, EngineLoadingError)),
        wait=wait_exponential_jitter(multiplier=0.5, max=30),
        stop=stop_after_delay(patience_s),
        sleep=sleep,
        before_sleep=told,
        reraise=True,
    )
    try:
        result: T = await retrying(ask)
        outage.over()
    finally:
        outage.rest()
    return result


def refuse_other_settings(journal: RunJournal, options: RunnerOptions, engine: Engine) -> None:
    """Raise JournalMismatchError where num_ctx= or the engine's own fields are not what the run began with.

    No engine is asked, so that it is said of a run as well that has nothing left to send.
    """
    began_with = journal.identity
    for pin in (NUM_CTX, TOLD):
        if pin in began_with and options.num_ctx != "auto":
            journal.pin(pin, options.num_ctx)
    extra = getattr(engine, "extra_body", None)  # engines that have it say so in their details as well
    if EXTRA in began_with and extra is not None:
        journal.pin(EXTRA, dict(extra))


async def meet_engine(
    engine: Engine, models: Sequence[str], *, options: RunnerOptions, journal: RunJournal, intake: Intake
) -> dict[str, Meeting]:
    """Ask who answers for each of `models` and compare with the journal; nothing is loaded yet.

    Raises JournalMismatchError if other weights, another kind of engine or another setting of it answer than
    when the run began, ConfigError if a model cannot do what the run wants, and EngineErrors.
    """
    meetings: dict[str, Meeting] = {}
    for model in models:
        info = await engine.describe(model)
        _refuse_no_thinker(info, options)
        journal.pin("engine", info.engine)
        journal.pin(f"{DIGEST}{model}", info.digest)
        if EXTRA in info.details:
            journal.pin(EXTRA, info.details[EXTRA])
        num_ctx = why = None
        if isinstance(engine, Loadable):
            recorded = journal.identity.get(NUM_CTX)
            num_ctx = choose_num_ctx(options, intake, info, recorded)
            why = why_num_ctx(options, intake, info, recorded)
            journal.pin(NUM_CTX, num_ctx)
        elif options.num_ctx != "auto" or TOLD not in journal.identity:
            journal.pin(TOLD, options.num_ctx)
        context = context_of(options, info, num_ctx, told=journal.identity.get(TOLD))
        meetings[model] = Meeting(info, num_ctx, choose_width(options, info), context, why)
    return meetings


async def load_model(
    engine: Engine,
    model: str,
    meeting: Meeting,
    *,
    options: RunnerOptions,
    journal: RunJournal,
    several_heads: bool = False,
) -> Meeting:
    """Have `model` loaded as its rows need it; returns what is known then. Raises EngineErrors.

    With `several_heads` there is one worker to a slot, so that each head stays cached where it is.
    """
    if isinstance(engine, Loadable):
        deadline = time.monotonic() + options.load_timeout
        loading = engine.load(model, num_ctx=meeting.num_ctx, deadline=deadline)
        info = await told_while_loading(loading, engine, model, patience_s=options.load_timeout)
        journal.pin(f"{DIGEST}{model}", info.digest)  # models before it may have taken hours
        context = context_of(options, info, meeting.num_ctx)
        width = choose_width(options, info)
        meeting = dataclasses.replace(meeting, info=info, width=width, context=context)
    if several_heads and not isinstance(options.concurrency, int) and meeting.info.slots is not None:
        meeting = dataclasses.replace(meeting, width=_within(options.concurrency, meeting.info.slots))
    journal.put("engine", dataclasses.asdict(meeting.info))
    await journal.note("session", meeting.to_note(model))
    loaded = await learn_memory(engine, meeting.info, folder=state_folder(options.state_dir))
    return dataclasses.replace(meeting, loaded=loaded)


def _refuse_no_thinker(info: EngineInfo, options: RunnerOptions) -> None:
    able = info.details.get("capabilities")
    if options.think and isinstance(able, list) and "thinking" not in able:
        raise ConfigError(
            f"think={options.think!r}: {info.model} cannot think (it can do: {', '.join(map(str, able))}); "
            "leave think out, or take another model"
        )


def choose_num_ctx(options: RunnerOptions, intake: Intake, info: EngineInfo, recorded: int | None) -> int:
    """The context length, in tokens, that every request of the run carries.

    "auto" keeps what a resumed run began with; else it is the engine's own where that is fixed, or the
    smallest bucket that holds all rows but one in a thousand, at most what the model was trained for.
    Of a stream whose end has not been seen it is the bucket above that.
    """
    if options.num_ctx != "auto":
        return options.num_ctx
    if recorded is not None:
        return recorded
    if info.context_fixed and info.context_length is not None:
        return info.context_length
    bucket = intake.sizes.bucket(conversation=options.mode == "conversation")
    if intake.total is None:
        bucket = next_bucket(bucket)
    return bucket if info.context_length is None else min(bucket, info.context_length)


def why_num_ctx(options: RunnerOptions, intake: Intake, info: EngineInfo, recorded: int | None) -> str | None:
    """What decided num_ctx="auto", as `choose_num_ctx` goes by it; None where a number was given."""
    if options.num_ctx != "auto":
        return None
    if recorded is not None:
        return "as the run began"
    if info.context_fixed and info.context_length is not None:
        return "the engine was started with it"
    rows = intake.sizes.bucket()
    bucket = intake.sizes.bucket(conversation=options.mode == "conversation")
    if info.context_length is not None and info.context_length < bucket:
        return "the model was trained for no more"
    if bucket > rows:
        return "room for several rows and their answers in one conversation"
    return "holds the first rows, and one size more" if intake.total is None else "holds the rows"


def tell_context(
    intake: Intake, meeting: Meeting, *, options: RunnerOptions, noticed: Callable[..., None]
) -> None:
    """Say what is to be known of the context before rows are sent."""
    tell_num_ctx(meeting, options=options, noticed=noticed)
    tell_too_long(intake, meeting, options=options, noticed=noticed)


def tell_num_ctx(meeting: Meeting, *, options: RunnerOptions, noticed: Callable[..., None]) -> None:
    """Say what num_ctx="auto" has chosen, where the length of the rows did not decide it alone, and that
    the model takes less than num_ctx where that is so.
    """
    num_ctx, why, fixed = meeting.num_ctx, meeting.num_ctx_why, meeting.info.context_fixed
    if num_ctx is None:
        return
    context = meeting.context
    if context.source == "trained" and context.tokens is not None and context.tokens < num_ctx:
        noticed(
            "num_ctx",
            f"num_ctx {num_ctx:,} is more than {meeting.info.model} was trained for: prompt and answer have "
            f"{context.tokens:,} tokens together",
            num_ctx=num_ctx,
            context=context.tokens,
        )
    elif why is not None and (fixed or options.policy is not None):
        other = "an engine started with another" if fixed else "another"
        noticed(
            "num_ctx",
            f'num_ctx="auto" is {num_ctx:,} here: {why}; {other} num_ctx= makes {NEW_RUN}',
            num_ctx=num_ctx,
        )


def tell_too_long(
    intake: Intake, meeting: Meeting, *, options: RunnerOptions, noticed: Callable[..., None]
) -> None:
    """Name the rows that num_ctx="auto" has left out, as far as that can be told before they are counted."""
    beyond = (
        0 if meeting.num_ctx is None or options.num_ctx != "auto" else intake.sizes.beyond(meeting.num_ctx)
    )
    if not beyond:
        return
    longest = intake.sizes.longest[: min(beyond, TOO_LONG_NAMED)]
    named = ", ".join(f"{name} (up to {tokens:,} tokens)" for tokens, name in longest)
    more = f" and {beyond - len(longest)} more" if beyond > len(longest) else ""
    longer = meeting.context.source == "num_ctx"
    fate = f"fail if they do not fit ({NEW_RUN} with {'num_ctx= or ' if longer else ''}trim= mends that)"
    if options.strategy is not None:
        fate = "are trimmed if they do not fit"
        fate += f" ({NEW_RUN} with a larger num_ctx= avoids that)" if longer else ""
    noticed(
        "too_long",
        f"{beyond:,} of {intake.sizes.rows:,} rows may need more than num_ctx {meeting.num_ctx:,}: "
        f"{named}{more}; they are counted before they are sent, and {fate}",
        rows=beyond,
        num_ctx=meeting.num_ctx,
        longest=[name for _, name in intake.sizes.longest[:beyond]],
    )


def context_of(
    options: RunnerOptions,
    info: EngineInfo,
    num_ctx: int | None,
    *,
    told: int | Literal["auto"] | None = None,
) -> Context:
    """The room of prompt and answer: the least of what is sent, what the user says (or has `told` when the
    run began), and what the server was started with or, where it is sent a num_ctx, can do at most (Ollama
    lowers what is beyond).

    Raises ConfigError in conversation mode if nobody knows.
    """
    sent = num_ctx is not None
    most = info.context_length if info.context_fixed or sent else None
    said = num_ctx
    if not sent:
        given = told if options.num_ctx == "auto" else options.num_ctx
        said = None if given == "auto" else given
    own = sent and info.context_fixed  # it can be started with another num_ctx
    if said is not None and (most is None or said < most or (own and said == most)):
        return Context(said, "num_ctx" if sent else "told", None if own else most)
    if most is not None:
        return Context(most, "trained" if sent else "server")
    if options.mode == "conversation":
        raise ConfigError(
            f"a conversation needs to know how long it may be, and {info.address} does not tell its context "
            "length: give num_ctx= as the server was started with"
        )
    return UNKNOWN


def choose_width(options: RunnerOptions, info: EngineInfo) -> int:
    """How many requests are out at a time, at first where the run is to find that out: one more than the
    slots, so that none waits for our round trip.

    Of conversations as many as there are slots, and never more than there are lanes: two that took turns at
    one slot would displace each other from its cache.
    """
    asked, lanes = options.concurrency, None if options.policy is None else options.policy.lanes
    if isinstance(asked, int):
        return asked if lanes is None else min(lanes, asked)
    if lanes is not None:
        return min(lanes, _within(asked, info.slots or lanes))
    if info.slots is not None:
        return _within(asked, info.slots + 1)
    return _within(asked, OLLAMA_WIDTH if info.engine == "ollama" else OPENAI_WIDTH)


def width_of(
    options: RunnerOptions,
    meeting: Meeting,
    *,
    spread: Callable[[], bool],
    changed: Callable[[int, int, LimitChange | None], None],
) -> RunWidth:
    """The width of one phase of a run: fixed, or from where `choose_width` begins, within the bounds.

    `spread` and `changed` as for RunWidth; slots that share their cache are never wanted singly.
    """
    asked, info = options.concurrency, meeting.info
    if isinstance(asked, int):
        return RunWidth(meeting.width, changed=changed)
    bounds = asked if isinstance(asked, Concurrency) else Concurrency()
    highest = bounds.max
    if asked == "auto" and info.slots is not None:
        highest = min(highest, max(meeting.width, SLOTS_TIMES * info.slots))
    if options.policy is not None:
        highest = min(highest, options.policy.lanes)
    return RunWidth(
        meeting.width,
        steered=True,
        lowest=min(bounds.min, highest),
        highest=highest,
        slots=info.slots,
        spread=(lambda: False) if info.shares_prefixes else spread,
        changed=changed,
    )


def _within(asked: Literal["auto"] | Concurrency, wanted: int) -> int:
    """`wanted`, made to fit the user's bounds."""
    return wanted if asked == "auto" else min(max(wanted, asked.min), asked.max)


@asynccontextmanager
async def visited(
    engine: Engine, model: str, *, num_ctx: int | None, options: RunnerOptions, stop: Stop
) -> AsyncIterator[None]:
    """Have the run of `stop` use `engine` for `model` in the block; afterwards the server may have its memory
    back, and the engine is as it was, however the block ends.
    """
    limit = portal().limit(engine.address)
    limit.batch.join(stop, engine)
    try:
        yield
    finally:
        try:
            # Others at this address may be using the model.
            unload = options.unload_after and not limit.in_use
            await stop.or_soon(_part_from(engine, model, num_ctx=num_ctx, unload=unload))
        finally:
            limit.batch.leave(stop)  # after the goodbye, which must not load the model anew


async def _part_from(engine: Engine, model: str, *, num_ctx: int | None, unload: bool) -> None:
    """Let the server have its memory back in its own time; a server that is gone needs no goodbye."""
    if isinstance(engine, Loadable):
        try:
            await engine.release(model, num_ctx=num_ctx, unload=unload)
        except EngineError as error:
            log.debug("the engine could not be told that the run is over: %s", type(error).__name__)
