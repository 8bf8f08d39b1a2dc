"""Findings on the rows: lines that are none, how long all take in a night, and what that rests on."""

from __future__ import annotations

from ollama_batch._text import count, duration
from ollama_batch.doctor.finding import Finding, FindingLevel
from ollama_batch.doctor.night import Pace, Sample
from ollama_batch.doctor.run_line import RunLine


def check_night(pace: Pace, sample: Sample, run: RunLine, *, rows: int, hours: float) -> Finding:
    """Whether `rows` rows are done in `hours` hours at the pace that was seen."""
    found = pace.seconds_for(rows)
    # The estimate holds for a run that has as many out.
    width = ("--concurrency", str(pace.concurrency))
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
            mend=(run.adding(*width, "--limit", "10"),),
            numbers={"rows": rows, "tried": pace.tried, "answered": 0},
        )
    least, most = found
    span = duration(least) if duration(least) == duration(most) else f"{duration(least)} to {duration(most)}"
    assumed = [_kind(pace, sample), f"{pace.concurrency} out at a time ({' '.join(width)})"]
    assumed += ["nobody else uses the engine, and no row is sent twice", "the model is loaded"]
    if pace.failures:
        assumed.append(
            "rows that fail take no time" if pace.done < pace.tried else "rows fail as late as seen"
        )
    slow = most > 3600 * hours
    many = 2 * len(pace.failures) >= pace.tried
    level: FindingLevel = "warning" if slow or pace.failures else "ok"
    if least > 3600 * hours or many:
        level = "problem"
    costs, mend = [], []
    if pace.failures:
        costs.append("rows of the run will fail likewise (the first ten say why)")
        mend.append(run.adding(*width, "--limit", "10"))
    if slow:
        will = "will" if least > 3600 * hours else "may"
        costs.append(f"it {will} not be done by morning; told to stop then, it goes on the next night")
        mend.append(run.adding(*width, "--deadline", str(round(3600 * hours))))
    failing = f"; {share} sampled rows failed ({why})" if pace.failures else ""
    return Finding(
        check="night",
        level=level,
        seen=f"{count(rows)} rows take {span}; the night has {hours:g} h{failing}",
        costs="; ".join(costs) or None,
        mend=tuple(mend),
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
            "error": pace.error,
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


def check_input(sample: Sample, run: RunLine) -> Finding:
    """Lines that are no requests."""
    return Finding(
        check="input",
        level="problem",
        seen=f"{sample.invalid:,} of {sample.invalid + (sample.rows or 0):,} lines are no valid requests; "
        f"the first: {sample.first_invalid}",
        costs="a run refuses the file and names them, or sets them aside",
        mend=(run.adding("--on-invalid", "skip"),),
    )
