"""The crash campaign: runs are killed by SIGKILL at random moments and at each named point of the write path.

Each run is resumed until it is done; a fake engine, alive in this process all the time, wrote down every
request, and its ledger says what was lost, doubled or asked again. Seeds are printed with every failure.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import harness
from harness import Goal, Outcome

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from crash_support import ELSEWHERE, Campaign, mode_for
from ollama_batch._points import POINTS

ROWS, POINT_ROWS, CONCURRENCY = 2000, 120, 16


def killed_at_random(seed: int, kills: int) -> dict[str, Any]:
    """One run, killed `kills` times before it may end."""
    with tempfile.TemporaryDirectory() as folder, Campaign(Path(folder), rows=ROWS) as campaign:
        campaign.finish(random.Random(seed), kills=kills)
        return counted(campaign, f"seed {seed}")


def killed_at(point: str, nth: int) -> dict[str, Any]:
    """One run, killed the `nth` time it reaches `point` (or the first, if it does so less often); resumed."""
    found = _killed_at(point, nth)
    return found if found["kills"] or nth == 1 else _killed_at(point, 1)


def _killed_at(point: str, nth: int) -> dict[str, Any]:
    with (
        tempfile.TemporaryDirectory() as folder,
        Campaign(Path(folder), rows=POINT_ROWS, mode=mode_for(point)) as campaign,
    ):
        if point == "result.before_replace":  # needs failed rows of an earlier session
            campaign.life()
        campaign.life(point=point, nth=nth)
        campaign.finish(random.Random(nth))
        return counted(campaign, f"{point} #{nth}")


def counted(campaign: Campaign, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "kills": campaign.kills,
        "ok_rows_sent_again": campaign.ok_rows_sent_again,
        "most_resent_at_one_kill": campaign.most_resent_at_one_kill,
        "problems": campaign.problems,
    }


def publish(
    name: str, what: str, taken: Sequence[dict[str, Any]], wanted: float, notes: list[str], *, quick: bool
) -> None:
    """Print and write what one kind of kills did."""
    kills = sum(one["kills"] for one in taken)
    problems = sum(len(one["problems"]) for one in taken)
    again = sum(one["ok_rows_sent_again"] for one in taken)
    most = max(one["most_resent_at_one_kill"] for one in taken)
    columns = ["killed at", "runs", "kills", "problems", "ok rows sent again", "most in flight sent again"]
    goals = [
        Goal(f"{what}: rows lost or doubled, or output wrong", float(problems), 0),
        Goal(f"{what}: ok rows sent again", float(again), 0),
        Goal(f"{what}: rows in flight sent again, at most at one kill", float(most), CONCURRENCY),
        Goal(f"{what}: kills", float(kills), wanted, at_least=True),
    ]
    rows = [[what, len(taken), kills, problems, again, most]]
    Outcome(name, harness.command_line(), columns, rows, goals, list(taken), notes, quick).publish()


def outcomes(futures: Sequence[Future[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The results, in order; what failed is told at once, with the seed that shows it again."""
    taken = []
    for future in futures:
        one = future.result()
        taken.append(one)
        if one["problems"] or one["ok_rows_sent_again"]:
            print(f"FAILED {one}", flush=True)
    return taken


def main() -> None:
    args = harness.parser(__doc__)
    args.add_argument("--only", choices=("random", "points"), help="one of the two campaigns")
    args.add_argument("--runs", type=int, default=60)
    args.add_argument("--kills", type=int, default=1000, help="random kills in all")
    args.add_argument("--per-point", type=int, default=5)
    args.add_argument("--jobs", type=int, default=2)
    args.add_argument("--seed", type=int, default=0)
    found = args.parse_args()
    runs, kills, per_point = (2, 10, 1) if found.quick else (found.runs, found.kills, found.per_point)
    each = -(-kills // runs)
    with ProcessPoolExecutor(found.jobs) as pool:
        if found.only != "points":
            futures = [pool.submit(killed_at_random, found.seed + n, each) for n in range(runs)]
            note = f"{runs} runs of {ROWS:,} rows, concurrency {CONCURRENCY}, each killed up to {each} times"
            publish("crash", "random moments", outcomes(futures), 0.95 * kills, [note], quick=found.quick)
        if found.only != "random":
            futures = [pool.submit(killed_at, p, n) for p in POINTS for n in range(1, per_point + 1)]
            note = (
                f"{len(POINTS)} points x {per_point} runs of {POINT_ROWS} rows; a plain run never reaches "
                f"{', '.join(ELSEWHERE)}"
            )
            wanted = float(per_point * (len(POINTS) - len(ELSEWHERE)))
            publish("crash_points", "named points", outcomes(futures), wanted, [note], quick=found.quick)


if __name__ == "__main__":
    main()
