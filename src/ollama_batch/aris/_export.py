"""An Aris export copied byte for byte, but for the values of one key of its candidates.

Nothing is written anew from what was understood: all that is outside those values goes from file to file as
it stands.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from json import JSONDecodeError
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, TypeAlias, TypeVar

from ollama_batch.aris._scan import (
    COMMA_OR_BRACE,
    ID,
    Candidate,
    Found,
    after_space,
    find_candidate,
    next_mark,
    one_of,
    pass_key,
    pass_value,
)
from ollama_batch.errors import InputError

CANDIDATES: Final = "candidates"

MAX_BYTES: Final = 64 * 2**20
"""No candidate, and no other value beside the list of candidates, may be longer."""

_CHUNK: Final = 2**20
_LINE: Final = 2**20  # so much of a first line is looked at as a whole
_GZIP: Final = b"\x1f\x8b"
_BOM: Final = "\xef\xbb\xbf"

Form: TypeAlias = Literal["document", "array", "lines"]

_T = TypeVar("_T")

Fill = Callable[[Candidate], bytes | None]
"""What a candidate's praxisData shall be, as JSON; None leaves it as it is."""


@dataclass(slots=True)
class Copied:
    """What a copy met: candidates, those among them without an id, lines that are no JSON object.

    `at` is the place of the candidate that `fill` is asked about: its number, or its line in JSONL, from 1.
    """

    candidates: int = 0
    nameless: int = 0
    unreadable: int = 0
    at: int = field(default=0, compare=False)


class _Window:
    """The part of an export that is in memory, with what was decided of it already on its way out."""

    def __init__(self, path: Path, file: _Source, write: Callable[[bytes], Any]) -> None:
        self._path, self._file, self._write = path, file, write
        self._text = ""
        self._at = 0  # what is before was passed
        self._kept = 0  # what is before was written
        self._offset = 0  # where in the file the text begins
        self.where = ""

    def take(self, read: Callable[[str, int], tuple[_T, int]]) -> _T:
        """What `read` finds at the present position, which moves behind it; as much is read as it takes."""
        while True:
            try:
                found, self._at = read(self._text, self._at)
                return found
            except EOFError:
                pass
            except JSONDecodeError as exc:
                raise self.fault(f"is no JSON: {exc.msg}", exc.pos) from exc
            except RecursionError as exc:
                raise self.fault("is nested too deeply", self._at) from exc
            if not self.more():
                raise self.fault("ends in the middle: it was cut off", len(self._text))

    def peek(self) -> str:
        """The next character that is not white space, which is next afterwards."""
        return self.take(next_mark)

    def more(self) -> bool:
        """Read on; False at the end of the file."""
        if len(self._text) - self._at > MAX_BYTES:
            raise self.fault(f"has a value of more than {MAX_BYTES // 2**20} MiB", self._at)
        new = self._file.read(max(_CHUNK, len(self._text) - self._at))
        self.flush()
        self._text = self._text[self._at :] + new.decode("latin-1")
        self._offset += self._at
        self._at = self._kept = 0
        return bool(new)

    def flush(self) -> None:
        """Write what was passed."""
        if self._kept < self._at:
            self._write(self._text[self._kept : self._at].encode("latin-1"))
            self._kept = self._at

    def edit(self, start: int, end: int, new: str) -> None:
        """Write up to `start`, then `new` instead of what is up to `end`, all of which was passed."""
        self._write((self._text[self._kept : start] + new).encode("latin-1"))
        self._kept = end

    def begin(self) -> None:
        """Pass what may stand before the first value. Raises InputError if there is nothing else."""
        while len(self._text) < len(_BOM) and self.more():
            pass
        if self._text.startswith(_BOM):
            self._at = len(_BOM)
        if self._only_space_follows():
            raise InputError(f"{self._path} is empty")

    def end(self) -> None:
        """Pass and write the white space behind the last value. Raises InputError if there is more."""
        if not self._only_space_follows():
            raise self.fault("goes on after its end", self._at)
        self.flush()

    def _only_space_follows(self) -> bool:
        while True:
            self._at = after_space(self._text, self._at)
            if self._at < len(self._text):
                return False
            if not self.more():
                return True

    def fault(self, what: str, at: int) -> InputError:
        """The error that says what is wrong with the file, and where."""
        return InputError(f"{self._path} {what} (byte {self._offset + at:,}{self.where})")


def copy_export(
    path: Path, write: Callable[[bytes], Any], fill: Fill, copied: Copied | None = None
) -> Copied:
    """Copy the export `path`, each candidate's praxisData as `fill` says; memory is bounded.

    Takes a JSON document with a list `candidates` at its top, such a list alone, or a candidate a line, as
    such or as gzip; what is written is not compressed. `fill` is asked once for every candidate; for one
    without an id its answer is not taken. `copied` is what is counted in, and returned. Of a document, all
    that is no JSON is refused; among lines it is copied as it is and counted.
    Raises InputError with the place.
    """
    form = _form(path)
    copied = Copied() if copied is None else copied
    with _opened(path) as file:
        if form == "lines":
            _copy_lines(path, file, write, fill, copied)
        else:
            _copy_json(_Window(path, file, write), fill, copied, form)
    if form == "lines" and copied.candidates == copied.nameless:
        raise InputError(
            f"{path} is no export of Aris: it has no list {CANDIDATES!r} and no line with an {ID!r}"
        )
    return copied


def _form(path: Path) -> Form:
    with _opened(path) as file:
        line = _candidate_of(file.readline(_LINE).decode("latin-1").removeprefix(_BOM), 0)
        if line is not None and line.candidate.custom_id is not None:
            return "lines"
    try:
        with _opened(path) as file:
            return _form_of(_Window(path, file, lambda _: None))
    except InputError:
        if path.name.lower().removesuffix(".gz").endswith((".jsonl", ".ndjson")):
            return "lines"  # of which the first is broken
        raise


def _form_of(window: _Window) -> Form:
    """Whether the first object has the list of candidates, or is one that is longer than was looked at."""
    window.begin()
    mark = window.take(one_of("{["))
    if mark == "[":
        return "array"
    if window.peek() == "}":
        return "lines"
    while True:
        key, _ = window.take(pass_key)
        if key == ID:
            return "lines"
        if key == CANDIDATES and window.peek() == "[":
            return "document"
        window.take(pass_value)
        if window.take(COMMA_OR_BRACE) == "}":
            return "lines"


def _copy_json(window: _Window, fill: Fill, copied: Copied, form: Form) -> None:
    window.begin()
    if form == "array":
        _copy_list(window, fill, copied)
    else:
        window.take(one_of("{"))
        while True:
            key, _ = window.take(pass_key)
            if key == CANDIDATES and window.peek() == "[":
                _copy_list(window, fill, copied)
            else:
                window.take(pass_value)
            if window.take(COMMA_OR_BRACE) == "}":
                break
    window.end()


def _copy_list(window: _Window, fill: Fill, copied: Copied) -> None:
    window.take(one_of("["))
    if window.peek() == "]":
        window.take(one_of("]"))
        return
    while True:
        window.where = f", candidate {copied.candidates + 1:,}"
        copied.candidates += 1
        copied.at = copied.candidates
        if window.peek() == "{":
            found = window.take(find_candidate)
            copied.nameless += found.candidate.custom_id is None
            new = fill(found.candidate)
            if new is not None:
                for edit in found.edits(new.decode("latin-1")):
                    window.edit(*edit)
        else:
            window.take(pass_value)
            copied.nameless += 1
            fill(Candidate(None, evaluated=False))
        if window.take(one_of(",]")) == "]":
            window.where = ""
            return


def _copy_lines(path: Path, file: _Source, write: Callable[[bytes], Any], fill: Fill, copied: Copied) -> None:
    for number, line in enumerate(iter(lambda: file.readline(MAX_BYTES + 1), b""), start=1):
        if len(line) > MAX_BYTES:
            raise InputError(f"{path} has a line of more than {MAX_BYTES // 2**20} MiB (line {number:,})")
        text = line.decode("latin-1")
        found = _candidate_of(text, len(_BOM) if number == 1 and text.startswith(_BOM) else 0)
        if found is None:
            copied.unreadable += not text.removeprefix(_BOM).isspace()
        else:
            copied.candidates += 1
            copied.at = number
            copied.nameless += found.candidate.custom_id is None
            new = fill(found.candidate)
            if new is not None:
                kept = 0
                for start, end, part in found.edits(new.decode("latin-1")):
                    write((text[kept:start] + part).encode("latin-1"))
                    kept = end
                line = line[kept:]
        write(line)


def _candidate_of(text: str, at: int) -> Found | None:
    """The candidate that a line consists of; None if it is no object."""
    try:
        mark, at = next_mark(text, at)
        if mark != "{":
            return None
        found, end = find_candidate(text, at)
    except (EOFError, JSONDecodeError, RecursionError):
        return None
    return found if after_space(text, end) == len(text) else None


class _Source:
    """A file to read, unpacked if it is gzip; what goes wrong in that is an InputError."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        packed = file.read(len(_GZIP)) == _GZIP
        file.seek(0)
        self._file = gzip.GzipFile(fileobj=file) if packed else file

    def read(self, size: int) -> bytes:
        """As much of `size` bytes as there is."""
        return self._checked(self._file.read, size)

    def readline(self, size: int) -> bytes:
        """The next line, at most `size` bytes of it."""
        return self._checked(self._file.readline, size)

    def _checked(self, read: Callable[[int], bytes], size: int) -> bytes:
        try:
            return read(size)
        except (EOFError, zlib.error, gzip.BadGzipFile) as exc:
            raise InputError(f"{self._path} is damaged, or was cut off: {exc}") from exc
        except OSError as exc:
            raise InputError(f"{self._path} cannot be read: {exc.strerror or exc}") from exc


@contextmanager
def _opened(path: Path) -> Iterator[_Source]:
    try:
        file = path.open("rb")
    except OSError as exc:
        raise InputError(f"{path} cannot be read: {exc.strerror or exc}") from exc
    with file:
        yield _Source(path, file)
