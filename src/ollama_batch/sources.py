"""Where requests come from: regular files, read by offset again and again, and everything else, read once."""

from __future__ import annotations

import asyncio
import glob
import os
import stat
from collections.abc import AsyncIterable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO, TypeAlias

from ollama_batch._items import Check, ScannedRow, checked, duplicate_row, row_of_line
from ollama_batch._stream_source import StreamSource, empty_input
from ollama_batch.errors import ConfigError, InputChangedError, InputError
from ollama_batch.jsonl import Limits, RawLine, decode_line, fingerprint, read_lines
from ollama_batch.types import BatchRequest, InvalidRow, RowRecord

__all__ = ["Check", "FileSource", "Requests", "ScannedRow", "Source", "StreamSource", "open_sources"]

Requests: TypeAlias = (
    str
    | os.PathLike[str]
    | BinaryIO
    | TextIO
    | Iterable[str | os.PathLike[str] | Mapping[str, Any] | BatchRequest]
    | AsyncIterable[str | Mapping[str, Any] | BatchRequest]
)
"""What a run takes its requests from; see `open_sources`."""

_SPAN_BYTES = 4 * 2**20
_FILE_SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")


class FileSource:
    """A regular file in OpenAI batch form. Not for use from two threads at once."""

    def __init__(self, path: str | os.PathLike[str], *, limits: Limits | None = None) -> None:
        self.path = Path(path)
        self.name = str(path)
        self.limits = limits or Limits()
        self._file: BinaryIO | None = None

    def stat(self) -> tuple[int, int]:
        """(size in bytes, time of the last change in ns). Raises InputChangedError if the file is gone."""
        try:
            found = self.path.stat()
        except OSError as exc:
            raise self._changed(f"it cannot be read any more ({exc.strerror})") from exc
        return found.st_size, found.st_mtime_ns

    def scan(self, *, check: Check | None = None) -> Iterator[ScannedRow | InvalidRow]:
        """Every line of the file that is not blank, checked, in order; one line in memory at a time.

        `check` has the last word on a body (an engine's `check_params`). Two lines with one custom_id
        are for the journal to find, see `duplicate`. Raises
        InputError if the file cannot be read or has no lines.
        """
        empty = True
        try:
            with self.path.open("rb") as file:
                for line in read_lines(file, limits=self.limits):
                    empty = False
                    yield checked(self.name, line.line, check, self._row, line)
        except OSError as exc:
            raise InputError(f"{self.name} cannot be read: {exc.strerror}") from exc
        if empty:
            raise empty_input(self.name)

    def _row(self, line: RawLine) -> ScannedRow:
        return row_of_line(line, self.limits, offset=line.offset, length=len(line.raw))

    def read(self, rows: Sequence[RowRecord]) -> list[BatchRequest]:
        """The requests of `rows`, in that order; see `lines`."""
        return [decode_line(raw) for raw in self.lines(rows)]

    def lines(self, rows: Sequence[RowRecord]) -> Iterator[bytes]:
        """The bytes of `rows`, in that order, read again from where `scan` found them.

        Rows that lie close together are read in one go. Raises InputChangedError if a row's bytes
        are not those that were scanned.
        """
        start = 0
        while start < len(rows):
            first = rows[start]
            base, end, stop = first.offset, first.offset + first.length, start + 1
            # Rows with nothing but line ends and a few blank lines between them are one span.
            while stop < len(rows) and 0 <= rows[stop].offset - end <= 4096:
                if rows[stop].offset + rows[stop].length - base > _SPAN_BYTES:
                    break
                end = rows[stop].offset + rows[stop].length
                stop += 1
            span = self._read_at(base, end - base, first)
            for row in rows[start:stop]:
                raw = span[row.offset - base : row.offset - base + row.length]
                if len(raw) != row.length or fingerprint(raw) != row.fingerprint:
                    raise self._changed("the line is not the one that was validated", row)
                yield raw
            start = stop

    def _read_at(self, offset: int, length: int, row: RowRecord) -> bytes:
        try:
            if self._file is None:
                self._file = self.path.open("rb", buffering=0)
            self._file.seek(offset)
            parts: list[bytes] = []
            while length > 0 and (part := self._file.read(length)):
                parts.append(part)
                length -= len(part)
        except OSError as exc:
            raise self._changed(f"it cannot be read any more ({exc.strerror})", row) from exc
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _changed(self, reason: str, row: RowRecord | None = None) -> InputChangedError:
        where = self.name if row is None else f"{self.name}:{row.line}"
        message = f"{where} has changed since it was validated: {reason}; restore it and run again to go on"
        if row is None:
            return InputChangedError(message)
        return InputChangedError(
            message, [InvalidRow(self.name, row.line, "input_changed", reason, row.custom_id)]
        )

    def duplicate(self, row: RowRecord, first_line: int) -> InvalidRow:
        """The InvalidRow for `row`, whose custom_id line `first_line` has already."""
        return duplicate_row(self.name, row, first_line)

    async def aclose(self) -> None:
        """Close the file; `read` opens it again. May be repeated."""
        self.close()

    def close(self) -> None:
        """`aclose` for code that is not async."""
        if self._file is not None:
            self._file.close()
            self._file = None


Source: TypeAlias = FileSource | StreamSource


def open_sources(
    requests: object,
    *,
    limits: Limits | None = None,
    loop: asyncio.AbstractEventLoop | None = None,
) -> list[Source]:
    """The sources that `requests` stands for, nothing of them read yet.

    Takes the path of a file, a glob pattern, a list or tuple of these, an open file, or a (possibly
    async) iterable of BatchRequest, dict or str, a DataFrame column for instance. Each regular file
    is a source of its own, in the order given, those of a pattern sorted. A list of str is one of
    prompts, unless all of them name files. `loop` is where an async iterable lives, the running loop
    if None. Raises InputError or ConfigError.
    """
    limits = limits or Limits()
    if isinstance(requests, str | os.PathLike):
        return _files([requests], limits)
    if isinstance(requests, list | tuple) and _are_paths(requests):
        return _files(requests, limits)
    kind = type(requests).__name__
    if isinstance(requests, BatchRequest | Mapping | bytes | bytearray) or requests is None:
        raise ConfigError(f"requests must be a path or an iterable, not a {kind}: put one request in a list")
    if hasattr(requests, "iloc") or hasattr(requests, "get_column"):
        if hasattr(requests, "columns"):
            raise ConfigError("requests is a DataFrame: pass the column with the prompts, df['column']")
        kind = "Series"
    if hasattr(requests, "readline"):
        if hasattr(requests, "__aiter__"):
            raise ConfigError("an async file is not supported: pass its path, or a file from open()")
        name = getattr(requests, "name", None)
        name = name if isinstance(name, str) else f"<{kind}>"
        return [StreamSource.of_file(requests, name=name, limits=limits)]
    if isinstance(requests, AsyncIterable | Iterable):
        return [StreamSource(requests, name=f"<{kind}>", limits=limits, loop=loop)]
    raise ConfigError(f"requests must be a path, an open file or an iterable of requests, not a {kind}")


def _are_paths(items: Sequence[object]) -> bool:
    """Whether a list is one of paths. Raises InputError where some items are and others are not."""
    if not items or not all(isinstance(item, str | os.PathLike) for item in items):
        return False
    if any(isinstance(item, os.PathLike) for item in items):
        return True
    texts = [item for item in items if isinstance(item, str)]
    if all(_has_file_suffix(text) or _is_file(text) for text in texts):
        return True
    named = [text for text in texts if _has_file_suffix(text)]
    if named:
        raise InputError(
            f"a list of str is one of prompts, but {len(named)} of its {len(items)} items look like files "
            f"({named[0]!r}): pass files as pathlib.Path, or prompts as BatchRequest.chat(text)"
        )
    return False


def _has_file_suffix(text: str) -> bool:
    return len(text) < 4096 and "\n" not in text and text.lower().endswith(_FILE_SUFFIXES)


def _is_file(text: str) -> bool:
    # os.path.isfile says False where Path.is_file raises: prompts are too long for a name, or hold NUL.
    return os.path.isfile(text)  # noqa: PTH113 - see above


def _files(items: Iterable[object], limits: Limits) -> list[Source]:
    sources: list[Source] = []
    seen: dict[tuple[int, int], str] = {}
    for path in _expanded(items):
        try:
            found = path.stat()
            mode = found.st_mode
            if stat.S_ISDIR(mode):
                raise InputError(f"{path} is a directory: pass its files, for instance '{path}/*.jsonl'")
            if not os.access(path, os.R_OK):
                raise InputError(f"{path} cannot be read: permission denied")
        except OSError as exc:
            raise InputError(f"{path} cannot be read: {exc.strerror}") from exc
        if path.suffix.lower() in _COMPRESSED:
            raise InputError(f"{path} is compressed, which is not supported: unpack it first")
        earlier = seen.setdefault((found.st_dev, found.st_ino), str(path))
        if len(seen) == len(sources):
            raise InputError(f"{path} is the same file as {earlier}: pass it once")
        if not stat.S_ISREG(mode):
            sources.append(StreamSource.of_path(path, limits=limits))
        elif found.st_size == 0:
            raise empty_input(str(path))
        else:
            sources.append(FileSource(path, limits=limits))
    return sources


def _expanded(items: Iterable[object]) -> Iterator[Path]:
    for item in items:
        text = os.fspath(item) if isinstance(item, str | os.PathLike) else ""
        if not isinstance(text, str) or not text or "\x00" in text:
            raise InputError(f"{text!r} is not the path of a file")
        if len(text) < 4096 and os.path.lexists(text):
            yield Path(text)
        elif glob.has_magic(text):
            found = sorted(glob.glob(text, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute patterns
            if not found:
                raise InputError(f"no file matches {text!r}")
            yield from map(Path, found)
        else:
            shown = text if len(text) <= 100 else text[:100] + "..."
            raise InputError(f"the file {shown!r} does not exist; a single prompt goes in a list: [prompt]")
