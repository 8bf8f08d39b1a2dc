"""The bytes of an export: a file or a stream, packed or not, one document or a line for each candidate."""

from __future__ import annotations

import gzip
import io
import os
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, Final, Literal, TypeAlias

import orjson

from ollama_batch._chat_line import Limits
from ollama_batch.aris.depth import NestingWatch
from ollama_batch.errors import ConfigError, InputError, MissingExtraError

Form: TypeAlias = Literal["document", "array", "lines"]
"""`{"candidates": [...]}`, a bare list of candidates, or a candidate in each line."""

KEYS: Final = frozenset({"aristotleId", "gemData", "swarmData", "cvData", "praxisData"})

_CHUNK: Final = 64 * 1024
_HEAD: Final = 2**20
_GZIP: Final = b"\x1f\x8b"
_BOM: Final = b"\xef\xbb\xbf"


class ExportSource:
    """An open export. `position` of `size` bytes were taken from the file so far (`size` None: a stream).

    `identity` is what `os.stat` says of the file, None of what is none.
    """

    def __init__(self, export: str | os.PathLike[str] | BinaryIO, limits: Limits) -> None:
        self.limits = limits
        self.size: int | None = None
        self.identity: os.stat_result | None = None
        self._owned: BinaryIO | None = None
        file, self.name = self._open(export)
        self._bytes = _Chained(b"", file)
        try:
            with self.faults():
                start = self._bytes.take(len(_GZIP))
                self._bytes.back(start)
                plain: Any = (
                    gzip.GzipFile(fileobj=io.BufferedReader(self._bytes)) if start == _GZIP else self._bytes
                )
                self._text = _Chained(b"", plain)
                head = self._text.take(_HEAD).removeprefix(_BOM)
                self._text.back(head)
            self.form, self.metadata = _form(head, self.name)
        except BaseException:
            self.close()
            raise

    def _open(self, export: object) -> tuple[Any, str]:
        if isinstance(export, str | os.PathLike):
            path = Path(export)
            try:
                self._owned = path.open("rb")
                self.identity = os.fstat(self._owned.fileno())
                self.size = self.identity.st_size
            except OSError as exc:
                raise InputError(f"{path} cannot be read: {exc.strerror}") from exc
            return self._owned, str(path)
        if not hasattr(export, "read") or isinstance(export, io.TextIOBase):
            raise ConfigError("an export is a path, or a file opened in binary mode: open(path, 'rb')")
        with suppress(AttributeError, OSError, ValueError):  # in memory, or a stream of somebody's own
            self.identity = os.fstat(export.fileno())  # type: ignore[attr-defined]
        name = getattr(export, "name", None)
        return export, name if isinstance(name, str) else "<export>"

    @property
    def position(self) -> int:
        """Bytes taken from the file: packed ones, if it is packed."""
        return self._bytes.position

    def objects(self) -> Iterator[Any]:
        """The candidates of a document, decoded, one at a time.

        Raises InputError where the document breaks off, is no JSON, or a candidate is too large or too
        deep: what stands behind such a place cannot be told.
        """
        ijson = parser()
        watched = _Watched(self)
        prefix = "item" if self.form == "array" else "candidates.item"
        with self.faults():
            try:
                for found in ijson.items(watched, prefix, buf_size=_CHUNK):
                    watched.since = 0
                    watched.found += 1
                    yield found
            except ijson.JSONError as exc:
                # Its message goes on with a piece of the text.
                reason = str(exc).removeprefix("b'").removeprefix('b"').split("\\n")[0].splitlines()
                raise InputError(
                    f"{self.name} is no valid JSON behind candidate {watched.found}, after about "
                    f"{watched.taken:,} bytes: {reason[0] if reason else 'unreadable'}"
                ) from None
            except ArithmeticError:
                raise InputError(
                    f"{self.name}: candidate {watched.found + 1} has a number that is far too large"
                ) from None
        if not watched.found:
            raise InputError(f'{self.name} has no candidates: an export is {{"candidates": [...]}}')

    def lines(self) -> io.BufferedReader:
        """The text, to be read line by line."""
        return io.BufferedReader(self._text)

    def take(self) -> bytes:
        """The next bytes of the text, b"" at its end."""
        return self._text.take(_CHUNK, at_once=True)

    @contextmanager
    def faults(self) -> Iterator[None]:
        """What goes wrong with the file itself becomes InputError."""
        try:
            yield
        except (OSError, EOFError, zlib.error) as exc:
            packed = isinstance(exc, EOFError | zlib.error | gzip.BadGzipFile)
            why = "its gzip data is damaged or cut off" if packed else getattr(exc, "strerror", None) or exc
            raise InputError(f"{self.name} cannot be read: {why}") from exc

    def close(self) -> None:
        """Close the file, if it was opened here."""
        if self._owned is not None:
            self._owned.close()


class _Chained(io.RawIOBase):
    """A file behind bytes that were read from it before; counts what was taken."""

    def __init__(self, head: bytes, file: Any) -> None:
        self._head = memoryview(head)
        self._file = file
        self.position = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        room = len(buffer)
        data: Any
        if self._head:
            data, self._head = self._head[:room], self._head[room:]
        else:
            data = self._file.read(room) or b""
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)

    def take(self, size: int, *, at_once: bool = False) -> bytes:
        """`size` bytes, fewer at the end, or those of one reading (`at_once`)."""
        parts: list[bytes] = []
        while size > 0 and (part := self.read(min(size, _CHUNK))):
            parts.append(part)
            size -= len(part)
            if at_once:
                break
        return b"".join(parts)

    def back(self, data: bytes) -> None:
        """Put `data`, which was taken last, back."""
        self._head = memoryview(data + bytes(self._head))
        self.position -= len(data)


class _Watched:
    """What ijson reads from: bounds the size and the depth of a candidate."""

    def __init__(self, source: ExportSource) -> None:
        self._source = source
        self._watch = NestingWatch(source.limits.max_depth + 2)  # a candidate is two levels deep
        self.found = self.since = self.taken = 0

    def read(self, size: int = -1) -> bytes:
        if size == 0:
            return b""  # ijson asks what kind of file this is
        chunk = self._source.take()
        self.since += len(chunk)
        self.taken += len(chunk)
        limits, number = self._source.limits, self.found + 1
        if self.since > limits.max_line_bytes + _CHUNK:
            raise InputError(
                f"{self._source.name}: candidate {number} is longer than the {limits.max_line_bytes:,} bytes "
                "that one may have"
            )
        if self._watch.too_deep(chunk):
            raise InputError(
                f"{self._source.name}: candidate {number}, or one of the next few, nests deeper than the "
                f"{limits.max_depth} levels that are allowed"
            )
        return chunk


def _form(head: bytes, name: str) -> tuple[Form, dict[str, Any] | None]:
    """The form of the text that begins with `head`, and the metadata of a document where they come first."""
    start = head.lstrip()
    if not start:
        raise InputError(f"{name} is empty")
    if start.startswith(b"["):
        return "array", None
    try:
        first = orjson.loads(start.splitlines()[0])
    except orjson.JSONDecodeError:
        first = None
    if isinstance(first, dict) and "candidates" not in first:
        if first and not first.keys() & KEYS:
            raise InputError(
                f'{name} is no Aris export: expected {{"candidates": [...]}}, or lines with aristotleId'
            )
        return "lines", None
    if first is None and _has_line_suffix(name):
        return "lines", None
    return "document", _metadata(head)


def _has_line_suffix(name: str) -> bool:
    return name.lower().removesuffix(".gz").endswith((".jsonl", ".ndjson"))


def _metadata(head: bytes) -> dict[str, Any] | None:
    if NestingWatch(64).too_deep(head):
        return None  # the reading says so in a moment
    ijson = parser()
    try:
        found = next(ijson.items(io.BytesIO(head), "metadata"), None)
    except (ijson.JSONError, ArithmeticError):
        return None  # only the beginning was looked at; the reading meets what is wrong
    return found if isinstance(found, dict) else None


@cache
def parser() -> ModuleType:
    """Ijson with its C backend; with another one a warning says, once, that reading takes long.

    Raises MissingExtraError if it is not installed.
    """
    try:
        import ijson
    except ImportError as exc:
        raise MissingExtraError(
            "reading an Aris document needs ijson, which is not installed: install the extra, "
            'pip install ".[aris]" in the project\'s folder (or: pip install ijson)'
        ) from exc
    if ijson.backend != "yajl2_c":
        warnings.warn(
            f"ijson has only its {ijson.backend!r} backend here, not the one in C (yajl2_c): reading an "
            "export takes up to 30 times as long. Install ijson from a wheel, or with the headers of yajl",
            RuntimeWarning,
            stacklevel=2,
        )
    module: ModuleType = ijson
    return module
