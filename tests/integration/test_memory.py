"""Memory does not grow with the number of rows."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from ollama_batch.testing import FakeOllama

MIB = 2**20
CHILD = Path(__file__).parents[1] / "run_child.py"


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_four_times_the_rows_need_at_most_4_mib_more(tmp_path: Path) -> None:
    rows = 20_000
    source = tmp_path / "in.jsonl"
    filler = "".join(random.Random(rows).choices("abcdefgh ", k=4000))
    with source.open("w") as file:
        for n in range(rows):
            body = {"messages": [{"role": "user", "content": f"row-{n}\n{filler}"}]}
            line = {
                "custom_id": f"id-{n * 7919 % rows}-{n}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": body,
            }
            file.write(json.dumps(line) + "\n")
    with FakeOllama.spawn(ledger=tmp_path / "ledger.jsonl") as fake:
        settings = {"input": str(source), "output": f"{source}.out", "url": fake.url}
        settings |= {"early_rows": rows // 4}
        child = subprocess.run(
            [sys.executable, str(CHILD), json.dumps(settings)], capture_output=True, check=True, timeout=280
        )
    told = json.loads(child.stdout)
    assert told["ok"] == rows
    # In one process: two of them differ by some MiB in how their memory is cut up.
    assert 0 < told["early_peak_rss_bytes"] <= told["peak_rss_bytes"]
    assert told["peak_rss_bytes"] - told["early_peak_rss_bytes"] <= 4 * MIB
