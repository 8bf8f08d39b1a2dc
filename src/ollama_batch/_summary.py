"""A report as a person reads it: at most 25 lines of text, or a small table."""

from __future__ import annotations

import html
import statistics
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ollama_batch._error_groups import ErrorKind
from ollama_batch._layout import MOST, WIDTH, Line, laid_out
from ollama_batch._memory_words import memory_in_words
from ollama_batch._next_steps import same_call
from ollama_batch._text import both_ends, count, duration, plain, rate, share
from ollama_batch._trouble_words import trouble_in_words
from ollama_batch.savings import HEADS_KEPT, HeadUsage

if TYPE_CHECKING:
    from ollama_batch.metrics import BatchMetrics
    from ollama_batch.report import BatchReport, ErrorExample

_LINES = 25
_ERRORS_SHOWN = 4
_NOTES_SHOWN = 4
_FILES_SHOWN = 2
_LABEL_WIDTH = 11
# A head is "far below the others" from this many rows on: of few rows, many come first in their slot.
_ENOUGH_ROWS = 20

NEW_RUN = "a new run (another output=, or overwrite=True)"
"""Where what changes answers can be changed: a run that goes on keeps to what it began with."""

_HINTS = {
    "unsupported_parameter": f"rows ask for what the engine cannot do: leave it out of them, or give them to "
    f"{NEW_RUN} with a model or an engine that can",
    "output_unparsed": "answers did not fit the response model: say in the prompt what they must be (see "
    f"docs/structured.md), in {NEW_RUN}",
}

_OWN_FILE = "as a file of their own, because a mended file is another input"

_LARGER = {
    "num_ctx": "a larger num_ctx=",
    "told": "a server that has a larger context, and its length as num_ctx=,",
    "trained": "a model that takes more than {context} tokens",
    "server": "a server that has a larger context",
}
"""What would hold longer prompts, by what limits them."""

_CONTEXT_WHY = {
    "told": "num_ctx as told, not sent: prompts are fitted to it",
    "trained": "the model was trained for no more",
    "server": "as the server has it",
}

_SAME_AGAIN = frozenset({"context_length_exceeded", "unsupported_parameter", "output_truncated"})
"""Rows that fail in the same way, or most likely so, however often this run sends them: they have a hint."""

_MEND = "{} {}: run the mended lines " + _OWN_FILE

_NO_REQUEST = ("row is no valid request", "rows are no valid requests")


def summary_text(report: BatchReport[Any]) -> str:
    """The report in at most 25 lines, values aligned."""
    lines = [_head(report)]
    last = ""
    for label, text in laid_out(_lines(report), most=_LINES - 1):
        lines.append(f"  {'' if label == last else label:<{_LABEL_WIDTH}}{text}")
        last = label
    return "\n".join(lines)


def summary_html(report: BatchReport[Any]) -> str:
    """The report as a table that inherits its colours; everything in it is escaped."""
    rows = []
    last = ""
    for label, text in ((each.label, both_ends(each.text, MOST * WIDTH)) for each in _lines(report)):
        name = "" if label == last else html.escape(label)
        last = label
        rows.append(
            f'<tr><th style="text-align:left;vertical-align:top;opacity:.7">{name}</th>'
            f'<td style="text-align:left;white-space:pre-wrap">{html.escape(text)}</td></tr>'
        )
    return (
        f'<table class="ollama-batch-report"><caption style="text-align:left;color:inherit">'
        f"<b>{html.escape(_head(report))}</b></caption><tbody>{''.join(rows)}</tbody></table>"
    )


def _head(report: BatchReport[Any]) -> str:
    counts = report.counts
    of = "" if counts.total is None else f" of {count(counts.total)}"
    failed = f", {count(counts.failed)} failed" if counts.failed else ""
    left = f", {count(counts.left)} left" if counts.left else ""
    run = f"Run {plain(report.run_id, 40)} {plain(report.outcome, 20)}"
    return f"{run}: {count(counts.ok)}{of} rows ok{failed}{left}"


def _lines(report: BatchReport[Any]) -> list[Line]:
    first = [*_what(report), *_figures(report), *_errors(report), *_places(report)]
    last = [Line("next", step, wrapped=True) for step in what_next(report)]
    # Notes give way: they are all in report.notes. Then what to do next, as far as it is not the first step.
    last = last[: max(1, _LINES - 2 - len(first))]
    room = max(1, min(_NOTES_SHOWN, _LINES - 1 - len(first) - len(last)))
    return [*first, *_notes(report, room), *last]


def _what(report: BatchReport[Any]) -> list[Line]:
    counts, m = report.counts, report.metrics
    lines = []
    if report.reason is not None:
        lines.append(Line("reason", report.reason, wrapped=True))
    tries = f" ({count(m.retried)} more tries)" if m.retried else ""
    told = (("asked again", m.asked_again), ("repaired", m.repaired))
    mended = "".join(f", {count(number)} {what}" for what, number in told if number)
    sent = f"{count(counts.sent)} sent{tries}, {count(counts.resumed)} from the journal{mended}"
    lines.append(Line("rows", sent))
    engine = report.engine
    who = ""
    if engine is not None:
        version = "" if engine.version is None else f" {engine.version}"
        who = f" on {engine.engine}{version} at {engine.address}"
    lines.append(Line("model", plain(f"{report.model}{who}", 120)))
    auto = "" if report.num_ctx_why is None else f" (auto: {plain(report.num_ctx_why, 80)})"
    whose = f" ({_CONTEXT_WHY[report.context_by]})" if report.context_by in _CONTEXT_WHY else ""
    settings = [
        f"{name} {count(value)}{why}"
        for name, value, why in (
            ("concurrency", m.concurrency if m.concurrency_changes else report.concurrency, ""),
            ("num_ctx", report.num_ctx, auto),
            ("context", report.context if report.context != report.num_ctx else None, whose),
            ("max_tokens", report.max_tokens, _own_limits(report)),
            ("lanes", report.lanes, ""),
        )
        if value is not None
    ]
    if settings and m.concurrency_changes:
        settings[0] += (
            f" at the end (from {count(m.concurrency_min or 0)} to {count(m.concurrency_max or 0)})"
        )
    if settings:
        lines.append(Line("settings", ", ".join(settings)))
    spent = f"{duration(report.duration_s)} in all"
    if m.requests_per_s:
        # One clock for the pace: checking the input and loading the model come before it starts.
        sending, pace = duration(m.elapsed_s), rate(m.requests_per_s)
        if m.paused_s:  # the rate is of all of it: answers come in while a run is paused, too
            spent += (
                f", {sending} sending, pauses of {duration(m.paused_s)} included, {pace} requests/s with them"
            )
        else:
            spent += f", {sending} sending, {pace} requests/s while sending"
        if m.earlier_answers:
            spent += f" ({rate(m.rows_per_s)} rows/s)"
    elif m.paused_s:
        spent += f", {duration(m.paused_s)} of it paused"
    lines.append(Line("time", spent))
    if counts.sent:
        lines.append(Line("memory", memory_in_words(m)))
    return [*lines, *(Line("trouble", each, wrapped=True) for each in trouble_in_words(m))]


def _own_limits(report: BatchReport[Any]) -> str:
    """Whether the run's max_tokens is that of its rows."""
    own, total = report.own_max_tokens, report.counts.total
    if not own:
        return ""
    if own == total:
        return " (not used: every row has its own)"
    return " (1 row has its own)" if own == 1 else f" ({count(own)} rows have their own)"


def _figures(report: BatchReport[Any]) -> list[Line]:
    m = report.metrics
    lines = []
    session = " (this session)" if report.counts.resumed else ""
    if m.answers:
        estimated = f"; {count(m.estimated)} of {count(m.answers)} answers estimated" if m.estimated else ""
        of = "request" if m.earlier_answers else "row"
        prompt = f"{count(m.prompt_tokens)} prompt ({rate(m.prompt_tokens_mean)} a {of})"
        answer = f"{count(m.completion_tokens)} answer ({rate(m.completion_tokens_mean)} a {of})"
        pace = f"{rate(m.completion_tokens_per_s)} answer tokens/s"
        again = f"; with {count(m.earlier_answers)} asked for again" if m.earlier_answers else ""
        lines.append(Line("tokens", f"{prompt}, {answer}, {pace}{session}{again}{estimated}"))
        lines.append(Line("cached", _cached(m)))
        if m.heads_total > 1:
            lines.append(Line("heads", _heads(m)))
        limit = "" if m.context_limit is None else f" of {count(m.context_limit)}"
        cuts = "1 trim" if m.trims == 1 else f"{count(m.trims)} trims"
        saved = "" if m.trim_saved_tokens is None else f" saved {count(m.trim_saved_tokens)} tokens"
        trims = f"; {cuts}{saved}" if m.trims else ""
        lines.append(Line("context", f"{count(m.context_peak or 0)}{limit} tokens at most{trims}"))
    if m.latency_mean_s is not None:
        parts = (
            ("mean", m.latency_mean_s),
            ("p50", m.latency_p50_s),
            ("p90", m.latency_p90_s),
            ("p95", m.latency_p95_s),
            ("p99", m.latency_p99_s),
            ("max", m.latency_max_s),
        )
        told = ", ".join(f"{name} {duration(value)}" for name, value in parts)
        lines.append(Line("latency", f"{told}; percentiles to 1 %"))
    if m.answers:
        lines.append(Line("waits", _waits(m)))
    return lines


def _waits(m: BatchMetrics) -> str:
    """How long answers waited for a slot, and how busy the engine was kept."""
    parts = ["for a slot: not reported by the engine"]
    if m.queue_mean_s is not None:
        waited = f"{duration(m.queue_mean_s)} for a slot on average"
        parts = [f"{waited}, {share(m.queue_share)} of the time of answers"]
    if m.served_mean is not None:
        parts.append(f"{rate(m.served_mean)} in work at once")
    if m.engine_idle_share is not None:
        parts.append(f"engine idle {share(m.engine_idle_share)} of the time")
    return "; ".join(parts)


def _cached(m: BatchMetrics) -> str:
    """What the engine reused, and against what; a guess only where the engine is silent."""
    if m.cached_tokens is None:
        guess = m.cached_estimate_share
        about = "" if guess is None else f"; about {100 * guess:.0f}% by prompt-evaluation time (estimate)"
        return f"not reported by the engine{about}"
    whose = "the prompts"
    if m.cached_reported < m.answers:
        whose += f" of the {count(m.cached_reported)} of {count(m.answers)} answers that told"
    baseline = f"{share(m.cached_share)} of {whose}; without reuse they would be evaluated anew"
    return f"{count(m.cached_tokens)} prompt tokens ({baseline})"


def _heads(m: BatchMetrics) -> str:
    """How many heads the prompts have, and how the largest and the least cached of them fared."""
    rows = m.answers - m.earlier_answers
    if m.heads_total == rows:
        return f"{count(m.heads_total)} heads for {count(rows)} rows: each row has its own"
    many = f"more than {count(HEADS_KEPT)}" if m.heads_total > HEADS_KEPT else count(m.heads_total)
    named = [head for head in m.heads if head.head is not None]
    shares = sorted((head.cached_share, n) for n, head in enumerate(named) if head.cached_share is not None)
    if len(shares) < 2:
        return f"{many} heads; largest ({_fared(named[0])})"
    (lowest, place), *others = shares
    least = named[place]
    far = least.rows >= _ENOUGH_ROWS and lowest < statistics.median(each for each, _ in others) / 2
    note = ", far below the others" if far else ""
    of = f" of the {len(named)} largest" if m.heads_total > len(named) else ""
    if place == 0:
        return f"{many} heads; largest, and least cached{of} ({_fared(least)}){note}"
    return f"{many} heads; largest ({_fared(named[0])}), least cached{of} ({_fared(least)}){note}"


def _fared(head: HeadUsage) -> str:
    rows = "1 row" if head.rows == 1 else f"{count(head.rows)} rows"
    silent = head.cached_share is None
    told = f"{count(head.prompt_tokens)} prompt tokens" if silent else f"{share(head.cached_share)} cached"
    return f"of row {plain(head.custom_id, 30)}: {rows}, {told}"


def _errors(report: BatchReport[Any]) -> list[Line]:
    examples = sorted(report.error_examples, key=lambda example: -example.count)
    told = examples[:_ERRORS_SHOWN]
    lines, rest = [], 0
    room = _ERRORS_SHOWN - len(told)  # for further messages, those of the most frequent codes first
    for example in told:
        kinds = example.kinds or (ErrorKind(example.message, example.count, tuple(example.custom_ids)),)
        shown = kinds[: 1 + room]
        room -= len(shown) - 1
        lines += [Line("failed", _kind(example.code, kind), wrapped=True) for kind in shown]
        rest += example.count - sum(kind.count for kind in shown)
    others = examples[_ERRORS_SHOWN:]
    left = [
        *([f"{count(rest)} more with these codes"] if rest else []),
        *([f"{count(sum(e.count for e in others))} with {len(others)} other codes"] if others else []),
    ]
    return [*lines, *([Line("failed", ", ".join(left))] if left else [])]


def _kind(code: str, kind: ErrorKind) -> str:
    ids = ", ".join(plain(custom_id, 30) for custom_id in kind.custom_ids[:3])
    more = ", ..." if kind.count > len(kind.custom_ids[:3]) else ""
    where = f" ({ids}{more})" if ids else ""
    why = f": {both_ends(kind.message, 600)}" if kind.message else ""
    return f"{count(kind.count)} {plain(code, 40)}{where}{why}"


def _places(report: BatchReport[Any]) -> list[Line]:
    lines = []
    for label in ("output", "errors", "partial"):
        paths = [path for path in (getattr(files, label) for files in report.files) if path is not None]
        if paths:
            more = f" and {len(paths) - _FILES_SHOWN} more" if len(paths) > _FILES_SHOWN else ""
            lines.append(Line(label, ", ".join(plain(path, 200) for path in paths[:_FILES_SHOWN]) + more))
    if report.journal is not None:
        lines.append(Line("journal", plain(report.journal, 200)))
    return lines


def _notes(report: BatchReport[Any], most: int) -> list[Line]:
    notes: Sequence[str] = report.notes
    if not report.durable and not any("not durable" in note for note in notes):
        notes = ["not durable: results are in memory only", *notes]
    room = most if len(notes) <= most else most - 1
    lines = [Line("note", note, wrapped=True) for note in notes[:room]]
    if len(notes) > room:
        more = f"and {len(notes) - room} more" if room else f"{len(notes)}"
        lines.append(Line("note", f"{more} in report.notes"))
    return lines


def what_next(report: BatchReport[Any]) -> list[str]:
    """What to do now: go on with a run that stopped, or send the failed rows of a finished one again."""
    counts = report.counts
    steps: list[str] = []
    hints = _hints(report)
    if report.hopeless:
        return hints or [f"mend what made them fail and begin {NEW_RUN}"]
    if report.outcome != "completed":
        if report.durable and report.next_steps:
            steps += report.next_steps
        elif report.durable:
            steps.append(f"run {same_call(counts.left)}")
        else:
            steps.append("start over with output=...: then a stopped run can be resumed")
    elif counts.total == 0:
        steps.append("the input had no rows: an iterator that was read before is used up")
    elif counts.failed and report.durable:
        invalid = sum(example.count for example in report.error_examples if not example.valid)
        same = sum(e.count for e in report.error_examples if e.valid and e.code in _SAME_AGAIN)
        again = counts.failed - invalid - same
        if again:
            rows = "failed row" if again == 1 else f"{count(again)} failed rows"
            how = "retry_failed=True"
            steps.append(f"to send the {rows} again: {how}")
        if invalid:
            steps.append(_MEND.format(count(invalid), _NO_REQUEST[invalid != 1]))
    elif counts.failed:
        steps.append("give output=... next time: then failed rows can be sent again on their own")
    return [*steps, *hints]


def _hints(report: BatchReport[Any]) -> list[str]:
    """What helps rows that failed for a reason that another setting or another row would take away."""
    failed_by = {example.code: example for example in report.error_examples if example.valid}
    hints = list(_cut_off(failed_by["output_truncated"])) if "output_truncated" in failed_by else []
    hints += [hint for code, hint in _HINTS.items() if code in failed_by]
    return [*hints, _did_not_fit(report)] if "context_length_exceeded" in failed_by else hints


def _cut_off(example: ErrorExample) -> Iterator[str]:
    """What helps answers that were cut off: by the limit of the run, or by those of their rows."""
    own = example.params.get("max_tokens", 0)
    if not own or own < sum(kind.count for kind in example.kinds):
        yield f"answers were cut off: {NEW_RUN} with a larger max_tokens= helps"
    if own:
        yield f"answers were cut off by max_tokens of their rows: run these with a larger one {_OWN_FILE}"


def _did_not_fit(report: BatchReport[Any]) -> str:
    """What helps rows that are too long for what it is that limits them here."""
    context = 0 if report.context is None else report.context
    larger = _LARGER[report.context_by or "num_ctx"].format(context=count(context))
    limit = report.conversation_limit
    if limit is not None and (report.context is None or limit <= context - (report.max_tokens or 0)):
        larger = "a larger ConversationPolicy(limit=...)"
    if report.lanes is not None:
        what = "rows did not fit, even at the beginning of a conversation"
    else:
        what = "prompts did not fit" + ("" if report.trim is None else ", shortened as far as they can be")
    if report.trim is None:
        ways = f"{larger} or with trim=, which shortens them, helps"
        last = "a single message that is too long has to be made shorter"
    else:
        ways, last = f"{larger} helps", "else they have to be made shorter"
    return f"{what}: {NEW_RUN} with {ways}; {last}"
