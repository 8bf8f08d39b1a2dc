"""OpenAI batch files, read strictly and lazily; works without the rest of the package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple, Protocol

import orjson

from ollama_batch._chat_line import Limits, LineError, check_line, usable_id
from ollama_batch._strict_json import JsonFault, lenient_value, loads, printable
from ollama_batch.types import BatchRequest

__all__ = [
    "Limits",
    "LineError",
    "OutputLine",
    "RawLine",
    "decode_line",
    "fingerprint",
    "parse_line",
    "parse_output_line",
    "read_lines",
]

_BOM = b"\xef\xbb\xbf"
_SKIP_BYTES = 2**20


class Readable(Protocol):
    """A binary file, as far as we need one."""

    def readline(self, size: int = -1, /) -> bytes:
        """The next line with its newline, cut at `size` bytes."""
        ...


class RawLine(NamedTuple):
    """One line that is not blank: `line` counts from 1, blank lines too.

    `raw` is the line without its line end, and starts at byte `offset` of the file. A line over the
    limit has `too_long` set and `raw` empty.
    """

    line: int
    offset: int
    raw: bytes
    too_long: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputLine:
    """One line of a result file, ours or anybody's: `ok` only if nothing says otherwise.

    `status` is None where there was no HTTP answer; `body` is the completion of an ok line.
    """

    custom_id: str
    ok: bool
    status: int | None
    body: Mapping[str, Any] | None
    error: Mapping[str, Any] | None


def fingerprint(raw: bytes) -> bytes:
    """A 16-byte BLAKE2b digest of `raw`: equal bytes, equal row."""
    return blake2b(raw, digest_size=16).digest()


def parse_line(raw: bytes, *, limits: Limits | None = None) -> BatchRequest:
    """The request in one line of an OpenAI batch file, every rule of the format checked.

    Raises LineError for the first rule broken, with the `custom_id` if it can still be told.
    """
    return _parse(raw, limits or Limits())


def _parse(raw: bytes, limits: Limits) -> BatchRequest:
    if len(raw) > limits.max_line_bytes:
        raise too_long(limits)
    try:
        line = loads(raw, max_depth=limits.max_depth)
    except JsonFault as exc:
        custom_id = usable_id(lenient_value(raw, "custom_id"), limits)
        field = None if exc.key is None else printable(exc.key[:64])
        raise LineError("invalid_json_line", exc.reason, field, custom_id) from exc
    return check_line(line, limits)


def too_long(limits: Limits) -> LineError:
    """The error for a line over `limits.max_line_bytes`."""
    return LineError("line_too_long", f"longer than the {limits.max_line_bytes} bytes that a line may have")


def decode_line(raw: bytes) -> BatchRequest:
    """The request in a line that `parse_line` has accepted before; checks nothing, and is fast."""
    return BatchRequest.from_openai(orjson.loads(raw))


def read_lines(file: Readable, *, limits: Limits | None = None) -> Iterator[RawLine]:
    """The lines of a binary file that are not blank, one at a time.

    A byte order mark at the start, CRLF, blank lines and a missing last line end are fine. Never
    holds more than `limits.max_line_bytes` of a line: the rest of a longer one is read and dropped.
    """
    limit = (limits or Limits()).max_line_bytes
    ask = limit + len(_BOM) + len(b"\r\n")
    readline = file.readline
    number = offset = 0
    while chunk := readline(ask):
        number += 1
        start = offset
        offset += len(chunk)
        ended = chunk.endswith(b"\n")
        if not ended and len(chunk) >= ask:
            chunk = b""  # freed before the rest of the line is read
            while rest := readline(_SKIP_BYTES):
                offset += len(rest)
                if rest.endswith(b"\n"):
                    break
            yield RawLine(number, start, b"", True)
            continue
        if number == 1 and chunk.startswith(_BOM):
            start += len(_BOM)
            chunk = chunk[len(_BOM) :]
        if ended:
            chunk = chunk[:-2] if chunk.endswith(b"\r\n") else chunk[:-1]
        if len(chunk) > limit:
            yield RawLine(number, start, b"", True)
        elif chunk.strip(b" \t\r\n"):
            yield RawLine(number, start, chunk)


def parse_output_line(raw: bytes) -> OutputLine:
    """One line of a result or error file in OpenAI's form.

    A line counts as ok only with status 200 and no error, which is how failed lines of OpenAI's own
    files are told from answers. Raises LineError if it is no such line.
    """
    try:
        line = orjson.loads(raw)
    except orjson.JSONDecodeError as exc:
        raise LineError("invalid_json_line", "not JSON") from exc
    custom_id = line.get("custom_id") if isinstance(line, dict) else None
    if not isinstance(custom_id, str) or not line.keys() & {"response", "error"}:
        raise LineError("invalid_json_line", "not a line of a batch result file")
    response = line.get("response")
    response = response if isinstance(response, dict) else {}
    status, body, error = response.get("status_code"), response.get("body"), line.get("error")
    ok = error is None and status == 200 and isinstance(body, dict)
    if error is None and not ok and isinstance(body, dict):
        error = body.get("error")
    return OutputLine(
        custom_id=custom_id,
        ok=ok,
        status=status if isinstance(status, int) else None,
        body=body if ok else None,
        error=error if isinstance(error, dict) else None if error is None else {"message": str(error)},
    )


def first_choice(body: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The first choice of an answer, and its message; each is empty where there is none of that form."""
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    choice = choice if isinstance(choice, Mapping) else {}
    message = choice.get("message")
    return choice, message if isinstance(message, Mapping) else {}


def fault_of(error: Any, status: Any, *, unnamed: str) -> tuple[str, str]:
    """Code and message of a failed line. Where a server leaves the code out, the type of the error stands for
    it, else the HTTP status, else `unnamed`; without a message it is what there is of an error, or empty.
    """
    told = error if isinstance(error, Mapping) else {}
    code = told.get("code")
    if code is None or code == "":
        code = told.get("type") or (f"http_{status}" if isinstance(status, int) else unnamed)
    message = told.get("message")
    return str(code), message if isinstance(message, str) else "" if error is None else str(error)
