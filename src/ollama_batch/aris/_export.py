"""An Aris export copied byte for byte, but for the values of one key of its candidates.

Nothing is written anew from what was understood: everything outside those values goes from file to file as it
stands. To find them the text is taken as Latin-1, where a character is a byte and JSON's own marks are what
they are, and each value is passed over by Python's JSON scanner: what is no JSON is refused.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, TypeVar

from ollama_batch.errors import InputError

ID: Final = "aristotleId"
FILLED: Final = "praxisData"
CANDIDATES: Final = "candidates"

MAX_BYTES: Final = 64 * 2**20
"""No candidate, and no other value beside the list of candidates, may be longer."""

_CHUNK: Final = 2**20
_GZIP: Final = b"\x1f\x8b"
_BOM: Final = "\xef\xbb\xbf"
_MARGIN: Final = 16  # longer than any literal or escape that the end of the text may cut

_T = TypeVar("_T")
_space = re.compile(r"[ \t\r\n]*+").match
# Numbers are not converted: nobody looks at them.
_scan = json.JSONDecoder(parse_int=len, parse_float=len, parse_constant=len).raw_decode


class Candidate(NamedTuple):
    """A candidate of an export: its id as UTF-8 (None: it has none), and whether it was evaluated before."""

    custom_id: bytes | None
    evaluated: bool


Fill = Callable[[Candidate], bytes | None]
"""What a candidate's praxisData shall be, as JSON; None leaves it as it is."""


@dataclass(slots=True)
class Copied:
    """What a copy met: candidates, those among them without an id, lines that are no JSON object."""

    candidates: int = 0
    nameless: int = 0
    unreadable: int = 0


class _Found(NamedTuple):
    """Where in the text the parts of a candidate are."""

    candidate: Candidate
    filled: list[tuple[int, int]]
    last: int
    layout: tuple[str, str]

    def edits(self, new: str) -> Iterator[tuple[int, int, str]]:
        """Start and end of each part to be replaced, and by what."""
        if self.filled:
            yield from ((start, end, new) for start, end in self.filled)
        else:
            gap, colon = self.layout  # as the last member has them: an indented file stays one
            yield self.last, self.last, f',{gap}"{FILLED}"{colon}{new}'


# Parts of JSON in a text that may end anywhere: each takes a position and gives a value and the position
# behind it; EOFError says that the text ends before that can be told, JSONDecodeError that it is no JSON.


def _after_space(text: str, at: int) -> int:
    found = _space(text, at)
    return at if found is None else found.end()


def _mark(text: str, at: int) -> tuple[str, int]:
    """The next character that is not white space, and where it is."""
    mark = text[at : at + 1]
    if mark > " ":  # nearly always
        return mark, at
    at = _after_space(text, at)
    if at == len(text):
        raise EOFError
    return text[at], at


def _value(text: str, at: int) -> tuple[Any, int]:
    try:
        value, end = _scan(text, at)
    except JSONDecodeError as exc:
        if exc.pos > len(text) - _MARGIN or exc.msg.startswith("Unterminated string"):
            raise EOFError from exc
        raise
    if end == len(text):  # a number may go on
        raise EOFError
    return value, end


def _key(text: str, at: int) -> tuple[tuple[str, int], int]:
    """A key and where it ends; then where its value begins."""
    mark, at = _mark(text, at)
    if mark != '"':
        raise JSONDecodeError("Expecting a key in double quotes", text, at)
    key, end = _value(text, at)
    mark, at = _mark(text, end)
    if mark != ":":
        raise JSONDecodeError("Expecting ':'", text, at)
    return (key, end), _mark(text, at + 1)[1]


def _one_of(marks: str) -> Callable[[str, int], tuple[str, int]]:
    def read(text: str, at: int) -> tuple[str, int]:
        mark, at = _mark(text, at)
        if mark not in marks:
            raise JSONDecodeError(f"Expecting {' or '.join(map(repr, marks))}", text, at)
        return mark, at + 1

    return read


_comma_or_brace = _one_of(",}")


def _candidate(text: str, at: int) -> tuple[_Found, int]:
    """The candidate whose object begins at `at`."""
    custom_id: bytes | None = None
    evaluated = False
    filled: list[tuple[int, int]] = []
    gap, end, layout = at + 1, at + 1, ("", "")
    mark, at = _mark(text, gap)
    if mark == "}":
        return _Found(Candidate(None, False), [], end, layout), at + 1
    while True:
        (key, colon), start = _key(text, at)
        value, end = _value(text, start)
        if key == FILLED:
            filled.append((start, end))
            evaluated = value is not None
        elif key == ID:
            custom_id = _id_of(text[start:end])
        layout = text[gap:at], text[colon:start]
        mark, gap = _comma_or_brace(text, end)
        if mark == "}":
            return _Found(Candidate(custom_id, evaluated), filled, end, layout), gap
        at = _mark(text, gap)[1]


def _id_of(literal: str) -> bytes | None:
    """The id in a JSON literal: text, or a number as it is written; None for all else, and for no text."""
    if literal[0] == '"':
        try:
            text: str = json.loads(literal.encode("latin-1"))
        except UnicodeDecodeError:
            return None
        return text.encode("utf-8", "surrogatepass") or None
    return literal.encode() if literal[0] in "-0123456789" else None


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
        return self.take(_mark)

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

    def skip_mark(self, mark: str) -> None:
        """Pass `mark` if it is next."""
        if self._text.startswith(mark, self._at):
            self._at += len(mark)

    def ended(self) -> bool:
        """Whether nothing but white space follows; passes that."""
        while True:
            self._at = _after_space(self._text, self._at)
            if self._at < len(self._text):
                return False
            if not self.more():
                return True

    def fault(self, what: str, at: int) -> InputError:
        """The error that says what is wrong with the file, and where."""
        return InputError(f"{self._path} {what} (byte {self._offset + at:,}{self.where})")


def copy_export(path: Path, write: Callable[[bytes], Any], fill: Fill) -> Copied:
    """Copy the export `path`, each candidate's praxisData as `fill` says; memory is bounded.

    Takes one JSON document with a list `candidates` at its top, or a candidate a line, as such or as gzip;
    what is written is not compressed. `fill` is asked once for every candidate that is an object. Of a
    document, all that is no JSON is refused; among lines it is copied as it is and counted. Raises InputError
    with the place.
    """
    with _opened(path) as file:
        document = _is_document(path, file)
    with _opened(path) as file:
        copied = Copied()
        if document:
            _copy_document(_Window(path, file, write), fill, copied)
        else:
            _copy_lines(path, file, write, fill, copied)
            if copied.candidates == copied.nameless:
                raise InputError(
                    f"{path} is no export of Aris: it has no list {CANDIDATES!r} and no line with an {ID!r}"
                )
    return copied


def _is_document(path: Path, file: _Source) -> bool:
    """Whether the first object has the list of candidates, rather than being one."""
    window = _Window(path, file, lambda _: None)
    if window.ended():
        raise InputError(f"{path} is empty")
    window.skip_mark(_BOM)
    if window.peek() != "{":
        raise window.fault("is no export of Aris: it begins with no object", 0)
    window.take(_one_of("{"))
    if window.peek() == "}":
        return False
    while True:
        key, _ = window.take(_key)
        if key == ID:
            return False
        if key == CANDIDATES and window.peek() == "[":
            return True
        window.take(_value)
        if window.take(_comma_or_brace) == "}":
            return False


def _copy_document(window: _Window, fill: Fill, copied: Copied) -> None:
    window.more()
    window.skip_mark(_BOM)
    window.take(_one_of("{"))
    while True:
        key, _ = window.take(_key)
        if key == CANDIDATES and window.peek() == "[":
            _copy_list(window, fill, copied)
        else:
            window.take(_value)
        if window.take(_comma_or_brace) == "}":
            break
    if not window.ended():
        raise window.fault("goes on after its end", window._at)
    window.flush()


def _copy_list(window: _Window, fill: Fill, copied: Copied) -> None:
    window.take(_one_of("["))
    if window.peek() == "]":
        window.take(_one_of("]"))
        return
    while True:
        window.where = f", candidate {copied.candidates + 1:,}"
        copied.candidates += 1
        if window.peek() == "{":
            found = window.take(_candidate)
            copied.nameless += found.candidate.custom_id is None
            new = fill(found.candidate)
            if new is not None:
                for edit in found.edits(new.decode("latin-1")):
                    window.edit(*edit)
        else:
            window.take(_value)
            copied.nameless += 1
        if window.take(_one_of(",]")) == "]":
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
            copied.nameless += found.candidate.custom_id is None
            new = fill(found.candidate)
            if new is not None:
                kept = 0
                for start, end, part in found.edits(new.decode("latin-1")):
                    write((text[kept:start] + part).encode("latin-1"))
                    kept = end
                line = line[kept:]
        write(line)


def _candidate_of(text: str, at: int) -> _Found | None:
    """The candidate that a line consists of; None if it is no object."""
    try:
        mark, at = _mark(text, at)
        if mark != "{":
            return None
        found, end = _candidate(text, at)
    except (EOFError, JSONDecodeError, RecursionError):
        return None
    return found if _after_space(text, end) == len(text) else None


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
