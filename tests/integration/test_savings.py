"""What a report says of cached tokens against what the server computed, and against the replies."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from ollama_batch import BatchReport
from ollama_batch.testing import CostModel, FakeOllama
from runner_support import line, read_lines, runner_on, write_lines

HEAD_WORDS = 300
SPEED = CostModel(prefill_tps=300_000)


def requests(path: Path, *per_head: int) -> dict[str, str]:
    """Rows of as many heads, shuffled; the head of each by its id."""
    chance = random.Random(2)
    rows, heads = [], {}
    for head, number in enumerate(per_head):
        text = f"criteria-{head} " + " ".join(f"w{head}x{n}" for n in range(HEAD_WORDS * (head + 1)))
        for n in range(number):
            row = line(f"h{head}-{n}", " ".join(f"t{chance.random()}" for _ in range(20)))
            row["body"]["messages"].insert(0, {"role": "system", "content": text})
            rows.append(row)
            heads[row["custom_id"]] = text
    chance.shuffle(rows)
    write_lines(path, rows)
    return heads


def run(fake: FakeOllama, folder: Path, output: str, **options: Any) -> BatchReport[Any]:
    return runner_on(fake, num_ctx=8192, **options).run(folder / "in.jsonl", output=folder / output)


def test_figures_per_head_are_the_sums_of_the_replies(tmp_path: Path) -> None:
    heads = requests(tmp_path / "in.jsonl", 12, 8, 5, 1)
    with FakeOllama(slots=2, speed=SPEED, tokenizer="words", reports_cached=True) as fake:
        report = run(fake, tmp_path, "out.jsonl", concurrency=2)
    assert report.ok
    m = report.metrics
    sums: dict[str, dict[str, Any]] = {}
    for result in report.results():
        assert result.usage is not None
        own = sums.setdefault(heads[result.custom_id], {"ids": set(), "prompt": 0, "cached": 0, "told": 0})
        own["ids"].add(result.custom_id)
        own["prompt"] += result.usage.prompt_tokens
        own["cached"] += result.usage.cached_tokens or 0
        own["told"] += result.usage.cached_tokens is not None
    assert m.heads_total == len(m.heads) == len(sums) == 4
    assert len({usage.head for usage in m.heads}) == 4
    for usage in m.heads:
        own = sums[heads[usage.custom_id]]
        assert (usage.rows, usage.prompt_tokens) == (len(own["ids"]), own["prompt"])
        assert (usage.cached_tokens or 0, usage.cached_reported) == (own["cached"], own["told"])
    assert m.cached_tokens == sum(own["cached"] for own in sums.values()) > 0
    # The same figures stand in the output file, as the server gave them.
    bodies = [each["response"]["body"]["usage"] for each in read_lines(tmp_path / "out.jsonl")]
    told = [
        body["prompt_tokens_details"]["cached_tokens"] for body in bodies if "prompt_tokens_details" in body
    ]
    assert (sum(told), len(told)) == (m.cached_tokens, m.cached_reported)
    assert m.prompt_tokens == sum(body["prompt_tokens"] for body in bodies)
    # Most rows took their head from the cache; a head that begins may displace another from its slot.
    assert m.cached_tokens >= 0.5 * sum(len(heads[row].split()) for row in heads)
    assert f"  cached     {m.cached_tokens:,} prompt tokens (" in str(report)
    assert "  heads      4 heads; largest" in str(report)
    assert m.cached_estimate is None


def test_a_silent_engine_is_called_silent_and_its_times_give_an_estimate(tmp_path: Path) -> None:
    requests(tmp_path / "in.jsonl", *[4] * 12)
    reports = {}
    for tells in (True, False):
        with FakeOllama(slots=1, speed=SPEED, tokenizer="words", reports_cached=tells) as fake:
            reports[tells] = run(fake, tmp_path, f"{tells}.jsonl", concurrency=1)
    saved = reports[True].metrics.cached_tokens
    m = reports[False].metrics
    assert saved is not None
    assert (m.cached_tokens, m.cached_reported, m.cached_share) == (None, 0, None)
    assert m.cached_estimate is not None
    assert abs(m.cached_estimate - saved) < 0.03 * m.prompt_tokens
    assert all(usage.cached_tokens is None and usage.cached_share is None for usage in m.heads)
    share = round(100 * m.cached_estimate / m.prompt_tokens)
    text = str(reports[False])
    assert f"not reported by the engine; about {share}% by prompt-evaluation time (estimate)" in text
    assert "% cached" not in text
