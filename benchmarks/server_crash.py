"""The batch server is killed by SIGKILL in every state of a batch, 20 times each, and started again.

Each kill comes some write points after the newest batch has reached the state; all batches so far go on in
the next life, which is killed in turn. At the end every line of every batch is looked for.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import harness
from harness import Goal, Outcome

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from server_crash_support import STATES, ServerCampaign


def killed_in(state: str, kills: int) -> dict[str, Any]:
    """One campaign: the `n`-th kill comes `n` points behind the state."""
    with tempfile.TemporaryDirectory() as folder, ServerCampaign(Path(folder) / "data") as campaign:
        for after in range(kills):
            campaign.kill_in(state, after)
        campaign.finish()
        return {"state": state, "kills": campaign.kills, "problems": campaign.problems}


def main() -> None:
    args = harness.parser(__doc__)
    args.add_argument("--kills", type=int, default=20, help="in each state (20)")
    found = args.parse_args()
    kills = 2 if found.quick else found.kills
    taken = []
    for state in STATES:
        taken.append(killed_in(state, kills))
        print(taken[-1], flush=True)
    goals = [
        Goal(
            "lines lost or doubled, ids changed, batches stuck",
            float(sum(len(t["problems"]) for t in taken)),
            0,
        ),
        Goal("kills", float(sum(t["kills"] for t in taken)), float(kills * len(STATES)), at_least=True),
    ]
    rows = [[t["state"], t["kills"], len(t["problems"])] for t in taken]
    notes = [
        "24 lines a batch; some batches have passed the state before so many points: those are killed after"
    ]
    Outcome(
        "server_crash", harness.command_line(), ["killed in", "kills", "problems"], rows, goals, taken, notes,
        found.quick,
    ).publish()  # fmt: skip


if __name__ == "__main__":
    main()
