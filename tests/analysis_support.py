"""Prepared runs for the tests of the analysis: their rows as plain data, and the files that hold them.

The rows are the oracle. What an analysis must find is counted from them here, or by hand in the tests, with
none of the code under test.
"""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollama_batch import BatchResult
from ollama_batch.journal import RunJournal
from ollama_batch.records import encode_result
from ollama_batch.types import RowError, RowRecord, Usage

LABELS = ("Strong Yes", "Yes", "Maybe", "No", "Strong No")
RATINGS = ("Great", "Good", "Average", "Weak", "None")
BEGAN = 1_790_000_000.0
HOSTILE = (
    '<script>document.title = "owned"</script>',
    '"><img src="http://127.0.0.1:9/x" onerror="document.title=1">',
    "</title></style><h1>broken</h1>",
    "{{ 7 * 7 }}{% raw %}",
    '=HYPERLINK("http://127.0.0.1:9","click")',
    "+1+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(A1:A9)",
    "\t=1+1",
    "'quoted",
    "\x1b[2J\x1b]0;owned\x07red\x1b[31m",
    "right\u202eto left",
    "javascript:alert(1)",
)
"""What a model could say to whoever opens a report, a spreadsheet or a terminal."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a prepared run; `session` and `at` (seconds after the beginning) are the journal's."""

    custom_id: str
    text: str | None = None
    code: str | None = None
    message: str = ""
    status: int | None = None
    prompt: int = 0
    completion: int = 0
    cached: int | None = None
    latency_s: float | None = None
    at: float = 0.0
    session: int = 1
    attempts: int = 1
    repaired: bool = False
    finish: str = "stop"

    @property
    def ok(self) -> bool:
        return self.code is None

    def result(self, index: int) -> BatchResult[Any]:
        error = None if self.code is None else RowError(self.code, self.message, self.status)
        usage = None
        if self.prompt:
            usage = Usage(
                prompt_tokens=self.prompt,
                completion_tokens=self.completion,
                cached_tokens=self.cached,
            )
        details = {} if self.cached is None else {"prompt_tokens_details": {"cached_tokens": self.cached}}
        body = None
        if self.text is not None:
            message = {"role": "assistant", "content": self.text}
            body = {
                "id": f"chatcmpl-{index}",
                "object": "chat.completion",
                "created": int(BEGAN + self.at),
                "model": "gemma3:12b",
                "choices": [{"index": 0, "finish_reason": self.finish, "message": message}],
                "usage": {
                    "prompt_tokens": self.prompt,
                    "completion_tokens": self.completion,
                    "total_tokens": self.prompt + self.completion,
                    **details,
                },
            }
        return BatchResult(
            custom_id=self.custom_id,
            ok=self.ok,
            output=self.text,
            error=error,
            usage=usage,
            finish_reason=None if self.text is None else self.finish,
            attempts=self.attempts,
            latency_s=self.latency_s,
            repaired=self.repaired,
            index=index,
            body=body,
        )


def answer(recommendation: str, rating: str, score: float | None) -> dict[str, Any]:
    """An evaluation as a model gives it."""
    return {
        "recommendation": recommendation,
        "reasoning": "Has built compilers for ten years; leads a team of five.",
        "analysis": {"trajectory": {"rating": rating, "reasoning": "Staff after nine years."}},
        "score": score,
    }


def prepared(count: int, *, seed: int = 7) -> list[Row]:
    """A run of two sessions with failed, unparsed, fenced, repaired and slow rows; the same for a seed."""
    rng = random.Random(seed)
    rows, now, session = [], 0.0, 1
    for n in range(count):
        if n == count * 3 // 5:
            now, session = now + 7200, 2
        load = 1 + 0.5 * (n > count * 0.8)
        latency = round(load * (1.4 + rng.lognormvariate(0, 0.45)), 3)
        if rng.random() < 0.002:
            latency += 45
        now += rng.expovariate(8 / load)
        name, at = f"cand-{n:05d}", round(now + latency, 3)
        drawn = rng.random()
        prompt = int(rng.gauss(1050, 130))
        common = {"custom_id": name, "at": at, "session": session, "latency_s": latency}
        if drawn < 0.012:
            rows.append(
                Row(
                    **common,
                    code="engine_error",
                    message=f"the runner ended with signal {n % 3 + 9}",
                    status=500,
                    attempts=4,
                )
            )
        elif drawn < 0.018:
            rows.append(Row(**common, code="connection_lost", message="the connection was reset", attempts=3))
        elif drawn < 0.026:
            rows.append(
                Row(
                    **common,
                    text='{"recommendation": "Yes", "reasoning": "goes on and',
                    code="output_truncated",
                    message="the answer was cut off after 512 tokens",
                    prompt=prompt,
                    completion=512,
                    cached=352,
                    finish="length",
                )
            )
        else:
            label = rng.choices(LABELS, (8, 24, 30, 28, 10))[0]
            level = 4 - LABELS.index(label)
            score = round(min(10, max(0, rng.gauss(2.2 * level + 0.6, 1.1))), 1)
            made = answer(
                label, rng.choices(RATINGS, (10, 30, 35, 20, 5))[0], score if rng.random() > 0.01 else None
            )
            text = json.dumps(made)
            if drawn < 0.04:
                text = f"```json\n{json.dumps(made, indent=1)}\n```"
            elif drawn < 0.05:
                text = f"I would say {label}: the profile is convincing in parts."
            rows.append(
                Row(
                    **common,
                    text=text,
                    prompt=prompt,
                    completion=int(rng.gauss(300, 55)),
                    cached=0 if n % 61 == 0 else 352,
                    repaired=0.05 <= drawn < 0.058,
                    attempts=1 + (rng.random() < 0.01),
                )
            )
    return rows


def write_journal(path: Path, rows: list[Row], *, num_ctx: int = 4096, memory: bool = True) -> Path:
    """The journal of a run that ended with `rows`, at their times."""

    async def fill() -> None:
        identity = {"model": "gemma3:12b", "mode": "independent", "max_tokens": 512}
        with RunJournal.open(path, identity=identity) as journal:
            journal.pin("num_ctx", num_ctx)
            await journal.add_rows(
                [RowRecord(n, 0, n + 1, row.custom_id, n.to_bytes(16, "big")) for n, row in enumerate(rows)]
            )
            records = [encode_result(row.result(n)) for n, row in enumerate(rows)]
            for start in range(0, len(records), 500):
                await asyncio.gather(*(journal.commit(record) for record in records[start : start + 500]))
            journal.put("intake", {})
            journal.put("engine", {"engine": "ollama", "version": "0.33.0"})
            journal.put("state", "finished")

    asyncio.run(fill())
    con = sqlite3.connect(path)
    # When the rows finished is part of what is prepared; the journal would not let it be changed.
    trigger = con.execute("SELECT sql FROM sqlite_master WHERE name = 'results_ok_stays'").fetchone()[0]
    con.execute("DROP TRIGGER results_ok_stays")
    con.executemany(
        "UPDATE results SET at = ?, session = ? WHERE idx = ?",
        [(BEGAN + row.at, row.session, n) for n, row in enumerate(rows)],
    )
    con.execute(trigger)
    if memory:
        last = max(row.at for row in rows)
        con.executemany(
            "INSERT INTO notes (at, kind, data) VALUES (?, 'memory', ?)",
            [
                (
                    BEGAN + at,
                    json.dumps({"vram_used_bytes": int(10.2e9 + 2e5 * at), "vram_total_bytes": 16 * 2**30}),
                )
                for at in range(0, int(last), 30)
            ],
        )
    con.commit()
    con.close()
    return path


def write_files(folder: Path, rows: list[Row], *, name: str = "results.jsonl") -> Path:
    """The result and error files of such a run."""
    output = folder / name
    errors = folder / f"{output.name.removesuffix('.jsonl')}.errors.jsonl"
    lines = [(row.ok, encode_result(row.result(n)).line) for n, row in enumerate(rows)]
    output.write_bytes(b"".join(line + b"\n" for ok, line in lines if ok))
    if not all(ok for ok, _ in lines):
        errors.write_bytes(b"".join(line + b"\n" for ok, line in lines if not ok))
    return output


def chat_line(custom_id: str, text: Any, **body: Any) -> dict[str, Any]:
    """A line as another server's batch output has it."""
    message = {"role": "assistant", "content": text}
    answered = {"choices": [{"index": 0, "finish_reason": "stop", "message": message}], **body}
    return {
        "id": "batch_req_1",
        "custom_id": custom_id,
        "response": {"status_code": 200, "request_id": "r", "body": answered},
        "error": None,
    }


def error_line(custom_id: str, status: int, code: str | None, message: str) -> dict[str, Any]:
    """A failed line as OpenAI writes it: a status, an error in the body, and no error beside."""
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return {
        "id": "batch_req_2",
        "custom_id": custom_id,
        "response": {"status_code": status, "request_id": "r", "body": {"error": error}},
        "error": None,
    }


def write_lines(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(f"{each if isinstance(each, str) else json.dumps(each)}\n" for each in lines))
    return path
