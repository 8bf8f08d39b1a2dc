"""A run may die at any moment: nothing done is lost, doubled or asked again."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from crash_support import ELSEWHERE, Campaign, mode_for
from ollama_batch._points import POINTS


@pytest.mark.slow
@pytest.mark.timeout(90)
@pytest.mark.parametrize("seed", range(6))
def test_ten_kills_at_random_moments_lose_nothing(tmp_path: Path, seed: int) -> None:
    with Campaign(tmp_path) as campaign:
        campaign.finish(random.Random(seed), kills=10)
    assert campaign.problems == []
    assert campaign.ok_rows_sent_again == 0
    assert campaign.most_resent_at_one_kill <= campaign.concurrency
    assert campaign.kills >= 8, "the run was over before it could be killed often enough"


AFTER_FAILURES = ("result.before_replace",)


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_every_named_point_loses_nothing(tmp_path: Path, point: str) -> None:
    with Campaign(tmp_path, rows=120, mode=mode_for(point)) as campaign:
        # A first session fails the flaky rows, so that the second has failed rows to replace.
        if point in AFTER_FAILURES:
            assert campaign.life()
        campaign.life(point=point, nth=1)
        if point not in ELSEWHERE:
            assert campaign.kills == 1, f"the run never reached {point}"
        campaign.finish(random.Random(0))
    assert campaign.problems == []
    assert campaign.ok_rows_sent_again == 0
    assert campaign.most_resent_at_one_kill <= campaign.concurrency
