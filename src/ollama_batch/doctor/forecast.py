"""The finding on the night: how long so many rows will take, and what that rests on."""

from __future__ import annotations

from ollama_batch._text import count, duration
from ollama_batch.doctor.finding import Finding, FindingLevel
from ollama_batch.doctor.night import Pace, Sample


def check_night(pace: Pace, sample: Sample, *, rows: int, hours: float) -> Finding:
    """Whether `rows` rows are done in `hours` hours at the pace that was seen."""
    found = pace.seconds_for(rows)
    share = f"{len(pace.failures)} of {pace.tried}"
    why = ", ".join(sorted(set(pace.failures)))
    if found is None:
        least = rows * pace.wall_s / pace.concurrency
        return Finding(
            check="night",
            level="problem",
            seen=f"none of {pace.tried} sampled rows was answered in {duration(pace.wall_s)} ({why})",
            costs=f"were each answered just after that, {count(rows)} rows would take {duration(least)}"
            if "timeout" in why
            else "no row of a run would be answered either",
            mend=("ollama-batch run IN -o OUT --limit 10",),
            numbers={"rows": rows, "tried": pace.tried, "answered": 0},
        )
    least, most = found
    span = duration(least) if duration(least) == duration(most) else f"{duration(least)} to {duration(most)}"
    assumed = [_kind(pace, sample), f"{pace.concurrency} out at a time, as when that was measured"]
    assumed += ["nobody else uses the engine, and no row is sent twice", "the model is loaded"]
    if pace.failures:
        assumed.append(f"{share} sampled rows failed ({why}) and are left out")
    slow = most > 3600 * hours
    level: FindingLevel = "problem" if least > 3600 * hours else "warning" if slow or pace.failures else "ok"
    failing = f"; {share} sampled rows failed ({why})" if pace.failures else ""
    return Finding(
        check="night",
        level=level,
        seen=f"{count(rows)} rows take {span}; the night has {hours:g} h{failing}",
        costs="it will not be done by morning; with --deadline it stops then, and the same line goes on the "
        "next night"
        if slow
        else None,
        mend=(f"ollama-batch run IN -o OUT --deadline {round(3600 * hours)}",) if slow else (),
        assumed=tuple(assumed),
        numbers={
            "rows": rows,
            "hours": hours,
            "least_s": least,
            "most_s": most,
            "tried": pace.tried,
            "answered": pace.done,
            "concurrency": pace.concurrency,
            "wall_s": pace.wall_s,
            "mean_s": pace.mean_s,
            "prompt_tokens": pace.prompt_tokens,
            "completion_tokens": pace.completion_tokens,
        },
    )


def _kind(pace: Pace, sample: Sample) -> str:
    sizes = "sizes not told"
    if pace.prompt_tokens is not None and pace.completion_tokens is not None:
        sizes = f"{pace.prompt_tokens:,.0f} tokens in, {pace.completion_tokens:,.0f} out on average"
    if sample.made_up:
        return f"rows like {pace.done} made-up ones ({sizes}); name the input file to measure with yours"
    return f"all rows are like {pace.done} taken from all over the input ({sizes})"
