"""Which feed a run has: by what its input is, and by the order it asks for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

from ollama_batch._feed import Feed
from ollama_batch._file_feed import FileFeed, PrefixFeed
from ollama_batch._intake import Intake
from ollama_batch._items import Check
from ollama_batch._lane_feed import FileLanes, StreamLanes, tell_alone
from ollama_batch._options import RunnerOptions, RunOptions
from ollama_batch._sizes import needed_tokens
from ollama_batch._stream_feed import STREAM_ROWS, StreamFeed, WindowFeed
from ollama_batch.engines.base import Engine, Loadable
from ollama_batch.journal import RunJournal
from ollama_batch.ordering import GROUP_BYTES
from ollama_batch.sources import FileSource, Source, StreamSource
from ollama_batch.types import BatchResult

SINGLE = 2
"""One group and the rows that are alone: nothing to be gained from another order than the input's."""

SAMPLE_ROWS, SAMPLE_S = 1000, 1.0
"""So many rows of a stream say how long its rows are, or those that come within so many seconds."""


async def make_feed(
    journal: RunJournal,
    sources: Sequence[Source],
    options: RunOptions,
    *,
    model: str,
    runner: RunnerOptions,
    check: Check,
    found: Callable[[int, bool, int], None],
    failed: Callable[[BatchResult[Any]], None],
    noticed: Callable[..., None],
) -> Feed:
    """The feed of the rows of `model`: of files, or of streams (which have one model)."""
    by_prefix = runner.order == "prefix"
    lanes = 0 if runner.policy is None else runner.policy.lanes
    files = [source for source in sources if isinstance(source, FileSource)]
    if lanes:
        await journal.turns.assign(lanes)
        await journal.turns.requeue(options.retry)
        if files and journal.counts().pending:
            tell_alone(journal.turns, noticed)
    if len(files) == len(sources):
        phases = bool(runner.allow_models)
        wanted = (lambda request: (request.params.get("model") or runner.model) == model) if phases else None
        validated = [(source["size"], source["mtime_ns"]) for source in journal.get("sources")]
        if lanes:
            return FileLanes(journal, files, retry=options.retry, validated=validated, lanes=lanes)
        groups = await journal.pending_groups(GROUP_BYTES, options.retry) if by_prefix else {}
        if len(groups) > SINGLE:
            return PrefixFeed(
                journal, files, retry=options.retry, validated=validated, groups=groups, wanted=wanted
            )
        return FileFeed(
            journal, files, retry=options.retry, validated=validated, wanted=wanted, warm_up=by_prefix
        )
    kind: Callable[..., Feed] = WindowFeed if by_prefix else StreamFeed
    return (partial(StreamLanes, lanes=lanes) if lanes else kind)(
        journal,
        [source for source in sources if isinstance(source, StreamSource)],
        retry=options.retry,
        at_once=max(STREAM_ROWS, runner.concurrency) if isinstance(runner.concurrency, int) else STREAM_ROWS,
        check=check,
        skip_invalid=options.on_invalid == "skip",
        limit=options.limit,
        found=found,
        failed=failed,
        noticed=noticed,
    )


async def look_ahead(
    feeds: Collection[Feed], intake: Intake, *, options: RunnerOptions, journal: RunJournal, engine: Engine
) -> None:
    """See how long the first rows of a stream are, where num_ctx="auto" has to go by them."""
    if options.num_ctx != "auto" or not isinstance(engine, Loadable) or "num_ctx" in journal.identity:
        return
    for feed in feeds:
        for row, request in await feed.look_ahead(SAMPLE_ROWS, SAMPLE_S):
            tokens = needed_tokens(request, options.max_tokens, options.defaults.get("tools"))
            intake.sizes.add(str(row.custom_id), tokens)
