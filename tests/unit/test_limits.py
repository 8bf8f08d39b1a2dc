"""What was seen to work and to fail moves the limit, and is kept between runs."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_batch._limits import FORGET_S, SETTLED, LearnedLimit
from ollama_batch.conversation import ConversationPolicy, Marks

KEY = {"digest": "sha256:1", "context": 8192}


def probe(limit: LearnedLimit, hidden: int, mark: int, rng: random.Random) -> int:
    """One conversation that grows until it reaches the mark; returns the mark it was held to."""
    held = min(mark, limit.ceiling or mark)
    tokens = held // 2
    while tokens <= held:
        if tokens > hidden:
            limit.failed(tokens)
            return held
        limit.worked(tokens)
        tokens += rng.randint(60, 300)
    return held


@pytest.mark.parametrize("seed", range(5))
def test_after_20_probes_it_lies_within_5_percent_below_a_hidden_limit(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    hidden = rng.randint(3000, 7000)
    first = LearnedLimit(KEY, folder=tmp_path)
    for _ in range(20):
        probe(first, hidden, 7168, rng)
    assert first.ceiling is not None
    assert 0.95 * hidden <= first.ceiling <= hidden
    first.save()
    again = LearnedLimit(KEY, folder=tmp_path)
    assert again.ceiling is not None
    assert 0.95 * hidden <= again.ceiling <= hidden
    assert again.ceiling == pytest.approx(0.99 * first.to_dict()["worked"], abs=1), "just below what worked"
    assert LearnedLimit({**KEY, "digest": "sha256:2"}, folder=tmp_path).ceiling is None
    assert LearnedLimit(KEY, folder=None).ceiling is None


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 10_000))))
def test_it_never_lies_at_or_above_what_failed(seen: list[tuple[bool, int]]) -> None:
    limit = LearnedLimit(KEY, folder=None)
    for worked, tokens in seen:
        (limit.worked if worked else limit.failed)(tokens)
        known = limit.to_dict()
        if known["failed"] is None:
            assert limit.ceiling is None
        else:
            assert limit.ceiling is not None
            assert min(known["worked"], 1) <= limit.ceiling < max(2, known["failed"])


def test_a_failure_is_over_once_a_clearly_longer_prompt_works() -> None:
    limit = LearnedLimit(KEY, folder=None)
    limit.failed(5000)
    assert limit.ceiling == 2500
    limit.worked(5251)
    assert limit.ceiling is None


def test_a_prompt_that_works_a_little_above_a_failure_says_that_the_failure_was_longer() -> None:
    limit = LearnedLimit(KEY, folder=None)
    limit.failed(5000)
    limit.worked(5200)
    assert limit.ceiling == 5148
    limit.worked(5300)
    assert limit.ceiling == 5247


def test_without_news_what_worked_is_the_limit() -> None:
    limit = LearnedLimit(KEY, folder=None)
    limit.worked(1000)
    limit.failed(2000)
    assert limit.ceiling == 1500
    for _ in range(SETTLED):
        limit.worked(900)
    assert limit.ceiling == 1500
    for _ in range(SETTLED):
        limit.worked(990)
    assert limit.ceiling == 990
    limit.worked(1200)
    assert limit.ceiling == 1600


def test_a_failure_is_forgotten_after_a_week(tmp_path: Path) -> None:
    now = 1_000_000.0
    limit = LearnedLimit(KEY, folder=tmp_path, now=lambda: now)
    limit.worked(1000)
    limit.failed(2000)
    limit.save()
    # Far apart: a later run searches on.
    assert LearnedLimit(KEY, folder=tmp_path, now=lambda: now + FORGET_S - 1).ceiling == 1500
    assert LearnedLimit(KEY, folder=tmp_path, now=lambda: now + FORGET_S).ceiling is None


def test_a_file_that_is_none_of_ours_is_ignored_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    limit = LearnedLimit(KEY, folder=tmp_path)
    limit.failed(2000)
    limit.save()
    (file,) = (tmp_path / "limits").iterdir()
    kept = json.loads(file.read_text())
    for wrong in ({**kept, "failed": "x"}, {**kept, "key": {}}, {"version": kept["version"]}, []):
        file.write_text(json.dumps(wrong))
        caplog.clear()
        assert LearnedLimit(KEY, folder=tmp_path).ceiling is None
        assert "ignored" in caplog.text


def test_a_limit_that_was_never_met_leaves_no_file(tmp_path: Path) -> None:
    limit = LearnedLimit(KEY, folder=tmp_path)
    limit.worked(1000)
    limit.save()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("policy", "room", "ceiling", "marks"),
    [
        (ConversationPolicy(), 8000, None, Marks(7000, 4000)),
        (ConversationPolicy(high=1, low=1), 8000, None, Marks(8000, 8000)),
        (ConversationPolicy(limit=4000), 8000, None, Marks(3500, 2000)),
        (ConversationPolicy(limit=9000), 8000, None, Marks(7000, 4000)),
        (ConversationPolicy(), 8000, 3500, Marks(3500, 2000)),
        (ConversationPolicy(), 8000, 7500, Marks(7000, 4000)),
        (ConversationPolicy.original(), 100_000, None, Marks(28_672, 28_672)),
    ],
)
def test_the_marks_are_shares_of_the_limit(
    policy: ConversationPolicy, room: int, ceiling: int | None, marks: Marks
) -> None:
    assert policy.marks(room, ceiling=ceiling) == marks
