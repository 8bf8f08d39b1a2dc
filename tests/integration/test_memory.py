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


def peak_rss_bytes(folder: Path, url: str, rows: int) -> int:
    source = folder / f"{rows}.jsonl"
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
    settings = {"input": str(source), "output": f"{source}.out", "url": url, "concurrency": 8}
    child = subprocess.run(
        [sys.executable, str(CHILD), json.dumps(settings)], capture_output=True, check=True, timeout=100
    )
    told = json.loads(child.stdout)
    assert told["ok"] == rows
    return int(told["peak_rss_bytes"])


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_four_times_the_rows_need_at_most_4_mib_more(tmp_path: Path) -> None:
    with FakeOllama.spawn(ledger=tmp_path / "ledger.jsonl") as fake:
        few = peak_rss_bytes(tmp_path, fake.url, 5_000)
        many = peak_rss_bytes(tmp_path, fake.url, 20_000)
    assert many - few <= 4 * MIB
