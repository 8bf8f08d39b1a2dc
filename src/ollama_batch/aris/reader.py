"""Candidates out of an Aris export, one at a time."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, BinaryIO, Final, Literal, Self

from pydantic import ValidationError

from ollama_batch._chat_line import Limits, LineError, check_id, json_name, usable_id
from ollama_batch.aris.candidate import Candidate
from ollama_batch.aris.depth import NestingWatch
from ollama_batch.aris.quality import DataQuality, QualityTally
from ollama_batch.aris.source import ExportSource
from ollama_batch.errors import ConfigError, InputError
from ollama_batch.jsonl import fingerprint, read_lines
from ollama_batch.types import InvalidRow

EVERY_ROWS: Final = 1_000
EVERY_S: Final = 5.0
KEPT_ERRORS: Final = 100

_WANTED: Final[Mapping[str, str]] = {
    "string_type": "text",
    "list_type": "an array",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "model_type": "an object",
    "dict_type": "an object",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadProgress:
    """How far a reading is: candidates handed out and broken ones, bytes of the file, seconds.

    `total_bytes` is None for a stream. Of a packed file the packed bytes count. `done`: nothing comes after.
    """

    candidates: int
    invalid: int
    read_bytes: int
    total_bytes: int | None
    elapsed_s: float
    done: bool = False


class CandidateReader(Iterator[Candidate]):
    """The candidates of an export in their order, and what has been seen of it so far.

    `metadata` is what the export says of itself, None if it does not in its first MiB. `invalid` are the
    first 100 broken candidates. Closes the file at the end, or as a context manager.
    """

    def __init__(
        self,
        source: ExportSource,
        *,
        on_invalid: Literal["fail", "skip"],
        progress: Callable[[ReadProgress], None] | None,
        clock: Callable[[], float],
    ) -> None:
        self.name = source.name
        self.metadata = source.metadata
        self.invalid: list[InvalidRow] = []
        self._source = source
        self._skip = on_invalid == "skip"
        self._progress = progress
        self._clock = clock
        self._tally = QualityTally()
        self._first_of: dict[bytes, int] = {}
        self._refused = self._given = 0
        self._candidates = self._read()

    @property
    def inputs(self) -> tuple[os.stat_result, ...]:
        """What `os.stat` says of the file that is read; empty for a stream that is none."""
        return () if self._source.identity is None else (self._source.identity,)

    @property
    def quality(self) -> DataQuality:
        """What the candidates read so far have and lack."""
        return self._tally.quality()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Candidate:
        return next(self._candidates)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading and close the file, if it was opened here."""
        self._candidates.close()
        self._source.close()

    def _read(self) -> Generator[Candidate, None, None]:
        started = told_at = self._clock()
        told = 0
        try:
            for number, candidate in self._checked():
                if candidate is not None and (self._skip or not self._refused):
                    self._given += 1
                    self._tally.add(candidate)
                    yield candidate
                if self._progress is not None:
                    now = self._clock()
                    if number - told >= EVERY_ROWS or now - told_at >= EVERY_S:
                        told, told_at = number, now
                        self._progress(self._standing(now - started))
            if self._progress is not None:
                self._progress(self._standing(self._clock() - started, done=True))
        finally:
            self._source.close()
        if self._refused and not self._skip:
            are = "1 candidate is" if self._refused == 1 else f"{self._refused:,} candidates are"
            raise InputError(
                f'{self.name}: {are} broken: mend the export, or leave out what is with on_invalid="skip"',
                self.invalid,
                self._refused,
            )

    def _standing(self, elapsed_s: float, *, done: bool = False) -> ReadProgress:
        return ReadProgress(
            candidates=self._given,
            invalid=self._refused,
            read_bytes=self._source.position,
            total_bytes=self._source.size,
            elapsed_s=elapsed_s,
            done=done,
        )

    def _checked(self) -> Iterator[tuple[int, Candidate | None]]:
        """Every candidate with its number from 1; None for a broken one."""
        for number, place, found in self._found():
            try:
                if isinstance(found, LineError):
                    raise found
                yield number, self._candidate(found, number)
            except LineError as error:
                self._refused += 1
                self._tally.refuse(error.code)
                if place:
                    error.field = f"{place}.{error.field}" if error.field else place
                if len(self.invalid) < KEPT_ERRORS:
                    self.invalid.append(error.at(self.name, number))
                yield number, None

    def _found(self) -> Iterator[tuple[int, str, Any]]:
        """(number or line from 1, where in the document, what is there or what is wrong with it)."""
        if self._source.form == "lines":
            with self._source.faults():
                for line in read_lines(self._source.lines(), limits=self._source.limits):
                    yield line.line, "", self._decoded(line.raw, line.too_long)
            return
        root = "" if self._source.form == "array" else "candidates"
        for index, found in enumerate(self._source.objects()):
            yield index + 1, f"{root}[{index}]", found

    def _decoded(self, raw: bytes, too_long: bool) -> Any:
        limits = self._source.limits
        if too_long:
            return LineError(
                "line_too_long", f"longer than the {limits.max_line_bytes:,} bytes of a candidate"
            )
        if NestingWatch(limits.max_depth).too_deep(raw):
            return LineError("invalid_json_line", f"nested deeper than {limits.max_depth} levels")
        try:
            return json.loads(raw, parse_float=Decimal, parse_constant=_refuse)
        except json.JSONDecodeError as exc:
            return LineError("invalid_json_line", f"not JSON: {exc.msg} (column {exc.pos + 1})")
        except UnicodeDecodeError as exc:
            return LineError("invalid_json_line", f"not UTF-8: byte {exc.start + 1} of the line")
        except (ValueError, ArithmeticError, RecursionError):
            return LineError("invalid_json_line", "a number that is none, or far too large")

    def _candidate(self, found: Any, number: int) -> Candidate:
        """The candidate that `found` is. Raises LineError, in which nothing of a person stands but the id."""
        if not isinstance(found, dict):
            raise LineError("invalid_type", f"a candidate is an object, not {json_name(found)}")
        limits, custom_id = self._source.limits, found.get("aristotleId")
        if custom_id is None or custom_id == "":
            raise LineError("missing_required_parameter", "a candidate needs its aristotleId", "aristotleId")
        try:
            check_id(custom_id, limits)
        except LineError as fault:
            message = fault.message.replace("custom_id", "aristotleId")
            raise LineError(fault.code, message, "aristotleId") from None
        key = fingerprint(custom_id.encode())
        first = self._first_of.setdefault(key, number)
        if first != number:
            what = "line" if self._source.form == "lines" else "candidate"
            message = f"{what} {first} has this aristotleId already"
            raise LineError("duplicate_custom_id", message, "aristotleId", usable_id(custom_id, limits))
        try:
            # A field called "cv" is one that we do not know: only Python code may leave the "Data" out.
            return Candidate.model_validate(found, by_alias=True, by_name=False)
        except ValidationError as exc:
            first_fault = exc.errors(include_url=False, include_context=False)[0]
            wanted = _WANTED.get(first_fault["type"], "something else")
            message = f"must be {wanted}, not {_kind(first_fault['input'])}"
            raise LineError("invalid_type", message, _path(first_fault["loc"]), custom_id) from None


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


def _kind(value: Any) -> str:
    """What `value` is, and never what it says."""
    return "a number" if isinstance(value, Decimal) else json_name(value)


def _path(where: tuple[int | str, ...]) -> str:
    # Only names of ours and positions: pydantic's own steps through a union are left out.
    path = ""
    for step in where:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
    return path


def read_candidates(
    export: str | os.PathLike[str] | BinaryIO,
    *,
    on_invalid: Literal["fail", "skip"] = "fail",
    progress: Callable[[ReadProgress], None] | None = None,
    limits: Limits | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> CandidateReader:
    """Read the candidates of an Aris export, one at a time, in memory that does not grow with the file.

    `export` is a path or a file open in binary mode: the one document `{"candidates": [...]}`, a bare list,
    or a candidate in each line; packed by gzip or not. (About 130 bytes a candidate are kept, for its id.)

    A broken candidate (no object, no or a repeated aristotleId, a list where a text belongs ...) is never
    handed out. With "fail" the first one ends the handing out; the rest is still checked, and InputError
    tells the first 100 with their positions. With "skip" they are left out and stand in `invalid`. No
    message has anything of a person in it but the aristotleId.

    `progress` is called after every 1,000 candidates, when 5 s have passed, and at the end. Raises
    InputError for a file that cannot be read or is no export, at its place in the file, MissingExtraError
    without ijson (documents only), ConfigError for a wrong argument.
    """
    if on_invalid not in ("fail", "skip"):
        raise ConfigError(f'on_invalid={on_invalid!r}: must be "fail" or "skip"')
    source = ExportSource(export, limits or Limits())
    return CandidateReader(source, on_invalid=on_invalid, progress=progress, clock=clock)
