"""The output and error file of a batch, from its input and its journal, however it ended."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import orjson

from ollama_batch.journal import RunJournal
from ollama_batch.jsonl import Limits, read_lines
from ollama_batch.server.objects import new_id
from ollama_batch.server.validation import plain_param
from ollama_batch.server.vault import Draft, Vault
from ollama_batch.types import ResultRecord

Rest = Literal["batch_cancelled", "batch_expired"]

_REST_SAYS = {
    "batch_cancelled": "This request was not run: the batch was cancelled before.",
    "batch_expired": "This request could not be executed before the completion window expired.",
}
_BUFFER = 1 << 20
_REQUEST = re.compile(rb'^\{"id":"batch_req_([0-9a-f]{24})"')
_REFUSED = ("unsupported_parameter", "context_length_exceeded")
"""What is wrong with a line itself, whether that was found out before asking the engine or by asking."""
_FIELDS = {"think": "reasoning_effort"}
"""What a line calls a setting of the library."""


@dataclass(slots=True)
class Outcome:
    """The two files in the making, and what is in them; a file without lines is none (None)."""

    completed: int = 0
    failed: int = 0
    output: Draft | None = None
    errors: Draft | None = None
    usage: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("input", "cached", "output", "reasoning"), 0)
    )

    def usage_object(self) -> dict[str, Any]:
        """The sum over the output lines; what an engine does not report counts as 0."""
        usage = self.usage
        return {
            "input_tokens": usage["input"],
            "input_tokens_details": {"cached_tokens": usage["cached"]},
            "output_tokens": usage["output"],
            "output_tokens_details": {"reasoning_tokens": usage["reasoning"]},
            "total_tokens": usage["input"] + usage["output"],
        }

    def discard(self) -> None:
        """Remove both files."""
        for draft in (self.output, self.errors):
            if draft is not None:
                draft.discard()


class _Lines:
    """Lines on their way into a draft that is made with the first of them."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._buffer = bytearray()
        self.draft: Draft | None = None

    def add(self, line: bytes) -> None:
        if self.draft is None:
            self.draft = self._vault.draft()
        self._buffer += line
        self._buffer += b"\n"
        if len(self._buffer) >= _BUFFER:
            self._write()

    def finish(self) -> Draft | None:
        if self.draft is not None:
            self._write()
            self.draft.finish()
        return self.draft

    def _write(self) -> None:
        if self.draft is not None:
            self.draft.write(bytes(self._buffer))
        self._buffer.clear()


def write_outcome(vault: Vault, batch_id: str, *, rest: Rest | None, max_line_bytes: int) -> Outcome:
    """Write what is known of every line of a batch, in input order, each in one of two files.

    Lines without a result get an error line with the code `rest`; None says that there are none. Both files
    are whole and durable when this returns. Raises JournalError, OSError; then nothing is left.
    """
    outcome = Outcome()
    good, bad = _Lines(vault), _Lines(vault)
    source = str(vault.input(batch_id))
    try:
        results = _results(vault.journal(batch_id), batch_id)
        if rest is None:
            for _, record in results:
                _add(outcome, record, good, bad, source)
        else:
            _merge(outcome, results, good, bad, vault.input(batch_id), rest, max_line_bytes)
        outcome.output, outcome.errors = good.finish(), bad.finish()
    except BaseException:
        for lines in (good, bad):
            if lines.draft is not None:
                lines.draft.discard()
        raise
    return outcome


def _results(journal: Path, batch_id: str) -> Iterator[tuple[int, ResultRecord]]:
    """The results by their place in the input, each with an id that no line of another batch has."""

    def renamed(found: re.Match[bytes]) -> bytes:
        own = blake2b(found[1], key=batch_id.encode(), digest_size=12)
        return b'{"id":"batch_req_' + own.hexdigest().encode() + b'"'

    if not journal.exists():
        return
    with RunJournal.open_readonly(journal) as opened:
        for row, record in opened.results():
            yield row.index, replace(record, line=_REQUEST.sub(renamed, record.line, 1))


def _merge(
    outcome: Outcome,
    results: Iterator[tuple[int, ResultRecord]],
    good: _Lines,
    bad: _Lines,
    path: Path,
    rest: Rest,
    max_line_bytes: int,
) -> None:
    """Every line of the input with its result, or with `rest`."""
    following = next(results, None)
    with path.open("rb") as file:
        for index, line in enumerate(read_lines(file, limits=Limits(max_line_bytes=max_line_bytes))):
            if following is not None and following[0] == index:
                _add(outcome, following[1], good, bad, str(path))
                following = next(results, None)
                continue
            custom_id = orjson.loads(line.raw)["custom_id"]
            told = {
                "id": new_id("batch_req_"),
                "custom_id": custom_id,
                "response": None,
                "error": {"code": rest, "message": _REST_SAYS[rest]},
            }
            bad.add(orjson.dumps(told))


def _add(outcome: Outcome, record: ResultRecord, good: _Lines, bad: _Lines, source: str) -> None:
    if record.ok:
        outcome.completed += 1
        _count(outcome.usage, record.line)
        good.add(record.line)
    else:
        outcome.failed += 1
        bad.add(_error_line(record, source))


def _count(usage: dict[str, int], line: bytes) -> None:
    told = orjson.loads(line)["response"]["body"].get("usage")
    if not isinstance(told, dict):
        return
    inner, outer = told.get("prompt_tokens_details"), told.get("completion_tokens_details")
    for name, value in (
        ("input", told.get("prompt_tokens")),
        ("output", told.get("completion_tokens")),
        ("cached", inner.get("cached_tokens") if isinstance(inner, dict) else None),
        ("reasoning", outer.get("reasoning_tokens") if isinstance(outer, dict) else None),
    ):
        if isinstance(value, int):
            usage[name] += value


def _error_line(record: ResultRecord, source: str) -> bytes:
    """A failed line as clients are to see it: fields by their own names, and no path of this machine."""
    line = orjson.loads(record.line)
    response, told = line["response"], line["error"]
    if response is None and told["code"] in _REFUSED:
        param = (orjson.loads(record.info).get("error") or {}).get("param") or ""
        named = {"param": _FIELDS.get(param, param) or None, "code": told["code"]}
        body = {"error": {"message": told["message"], "type": "invalid_request_error", **named}}
        response = line["response"] = {"status_code": 400, "request_id": "", "body": body}
        line["error"] = None
    if response is None or response["status_code"] < 400:
        return record.line
    # Never asked about, it has no request of its own.
    response["request_id"] = response["request_id"] or str(line["id"]).replace("batch_req_", "req_", 1)
    fault = response["body"]["error"]
    fault["param"] = plain_param(fault["param"])
    message = str(fault["message"])
    if message.startswith(source):
        # Of a line that no engine was asked about: "FILE:LINE [ID] FIELD: what is wrong (CODE)".
        message = message.partition(f"{fault['param']}: ")[2] or message[len(source) :].lstrip(":0123456789 ")
        message = message.removesuffix(f" ({fault['code']})")
        fault["message"] = f"Unsupported parameter: '{fault['param']}': {message}"
    try:
        return orjson.dumps(line)
    except orjson.JSONEncodeError:
        return json.dumps(line, ensure_ascii=True).encode()
