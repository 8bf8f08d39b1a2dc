"""The crash campaign: runs are killed by SIGKILL at random moments and at each named point of the write path.

Each run is resumed until it is done; a fake engine, alive in this process all the time, wrote down every
request, and its ledger says what was lost, doubled or asked again. Seeds are printed with every failure.
"""

from __future__ import annotations

import random
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import harness
from harness import Goal, Outcome

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from crash_support import Campaign
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
    with tempfile.TemporaryDirectory() as folder, Campaign(Path(folder), rows=POINT_ROWS) as campaign:
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


def main() -> None:
    args = harness.parser(__doc__)
    args.add_argument("--runs", type=int, default=60)
    args.add_argument("--kills", type=int, default=1000, help="random kills in all")
    args.add_argument("--per-point", type=int, default=5)
    args.add_argument("--jobs", type=int, default=2)
    args.add_argument("--seed", type=int, default=0)
    found = args.parse_args()
    runs, kills, per_point = (2, 10, 1) if found.quick else (found.runs, found.kills, found.per_point)
    each = -(-kills // runs)
    taken: dict[str, list[dict[str, Any]]] = {"random moments": [], "named points": []}
    with ProcessPoolExecutor(found.jobs) as pool:
        at_random = [pool.submit(killed_at_random, found.seed + n, each) for n in range(runs)]
        at_points = [pool.submit(killed_at, p, n) for p in POINTS for n in range(1, per_point + 1)]
        for kind, futures in zip(taken, (at_random, at_points), strict=True):
            for future in futures:
                one = future.result()
                taken[kind].append(one)
                if one["problems"] or one["ok_rows_sent_again"]:
                    print(f"FAILED {one}", flush=True)
            print(f"{kind}: {sum(one['kills'] for one in taken[kind])} kills", flush=True)
    rows = [
        [
            kind,
            len(all_of),
            sum(one["kills"] for one in all_of),
            sum(len(one["problems"]) for one in all_of),
            sum(one["ok_rows_sent_again"] for one in all_of),
            max(one["most_resent_at_one_kill"] for one in all_of),
        ]
        for kind, all_of in taken.items()
    ]
    goals = [
        Goal("rows lost or doubled, or output wrong", float(sum(row[3] for row in rows)), 0),
        Goal("ok rows sent again", float(sum(row[4] for row in rows)), 0),
        Goal(
            "rows in flight sent again, at most at one kill", float(max(row[5] for row in rows)), CONCURRENCY
        ),
        Goal("kills at random moments", float(rows[0][2]), 0.95 * kills, at_least=True),
    ]
    notes = [
        f"{runs} runs of {ROWS:,} rows, concurrency {CONCURRENCY}, each killed up to {each} times",
        f"{len(POINTS)} named points x {per_point}; points that a plain run never reaches count no kill",
    ]
    columns = ["killed at", "runs", "kills", "problems", "ok rows sent again", "most in flight sent again"]
    pairs = [one for all_of in taken.values() for one in all_of]
    Outcome("crash", harness.command_line(), columns, rows, goals, pairs, notes, found.quick).publish()


if __name__ == "__main__":
    main()
