"""A run may die at any moment: nothing done is lost, doubled or asked again."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from crash_support import ELSEWHERE, Campaign, mode_for
from ollama_batch import RunJournal
from ollama_batch._points import POINTS


@pytest.mark.slow
@pytest.mark.timeout(90)
@pytest.mark.parametrize("seed", range(6))
def test_ten_kills_at_random_moments_lose_nothing(tmp_path: Path, seed: int) -> None:
    with Campaign(tmp_path, rows=1000) as campaign:
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


CROWDED = {"num_ctx": 1024, "max_tokens": 64, "state_dir": None}
"""A context that a lane of the campaign fills again and again."""


@pytest.mark.slow
@pytest.mark.timeout(90)
@pytest.mark.parametrize("seed", range(3))
def test_a_killed_conversation_goes_on_as_if_nothing_had_happened(tmp_path: Path, seed: int) -> None:
    (tmp_path / "unbroken").mkdir()
    (tmp_path / "broken").mkdir()
    with Campaign(tmp_path / "unbroken", rows=240, mode="conversation", options=CROWDED) as unbroken:
        assert unbroken.life()
        wanted = unbroken.prompts()
    with Campaign(tmp_path / "broken", rows=240, mode="conversation", options=CROWDED) as broken:
        broken.finish(random.Random(seed), kills=8)
    assert broken.problems == []
    assert broken.kills >= 5, "the run was over before it could be killed often enough"
    assert broken.ok_rows_sent_again == 0
    assert all(len(digests) == 1 for digests in wanted.values())
    assert broken.prompts() == wanted
    with RunJournal.open_readonly(broken.output.with_name("out.jsonl.run.db")) as journal:
        cut = sum(b'"why"' in record.line for _, record in journal.results())
    assert cut >= 4, "every lane was cut"
