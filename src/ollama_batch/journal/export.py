"""Output and error files from the journal: in input order, whole or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ollama_batch._points import reached
from ollama_batch.errors import DiskFullError, OutputError
from ollama_batch.journal.data import ExportCounts
from ollama_batch.journal.faults import free_bytes, is_disk_full
from ollama_batch.journal.place import create_private, put_in_place, remove_file, sync_file, sync_folder
from ollama_batch.journal.results import Pair

Mark = Mapping[str, Any]
"""What an exported file was when it was written: `size`, `sha256`, `mtime_ns`, `inode`."""


@dataclass(slots=True)
class _Draft:
    """A file in the making, beside the place it is meant for."""

    final: Path
    temporary: Path
    rows: int = 0
    size: int = 0
    file: BinaryIO | None = None
    digest: Any = field(default_factory=hashlib.sha256)

    def begin(self) -> None:
        if self.file is None:
            reached("export.begin")
            remove_file(self.temporary)  # what a killed export left
            self.file = os.fdopen(create_private(self.temporary), "wb", buffering=1 << 20)

    def add(self, line: bytes) -> None:
        self.begin()
        assert self.file is not None  # noqa: S101 - begin() opened it
        data = line + b"\n"
        self.file.write(data)
        self.digest.update(data)
        self.size += len(data)
        self.rows += 1

    def finish(self) -> Mark | None:
        """Sync what was written; returns its mark, or None if there is no file."""
        if self.file is None:
            return None
        reached("export.before_flush")
        self.file.flush()
        sync_file(self.file.fileno())
        stat = os.fstat(self.file.fileno())
        self.file.close()
        return {
            "size": self.size,
            "sha256": self.digest.hexdigest(),
            "mtime_ns": stat.st_mtime_ns,
            "inode": stat.st_ino,
        }

    def abandon(self) -> None:
        if self.file is not None:
            try:
                self.file.close()
            except OSError:
                pass  # what is buffered has no room either; the file goes anyway
            remove_file(self.temporary)


def write_export(
    pairs: Iterable[Pair],
    output: Path,
    errors: Path | None,
    *,
    tag: str,
    announce: Callable[[Sequence[Mark]], None],
    owns: Callable[[Path], bool],
) -> ExportCounts:
    """Write good rows to `output` and failed ones to `errors`, each atomically.

    `announce` is given the marks before any name changes: a kill in between leaves no unknown file.
    Without failed rows no error file is made, and one that `owns` knows is removed.
    Raises DiskFullError or OutputError; both leave the old files as they were.
    """
    good = _draft(output, tag)
    bad = None if errors is None else _draft(errors, tag)
    failed = 0
    try:
        try:
            good.begin()  # an output file is made even if it stays empty
            for _, record in pairs:
                if record.ok:
                    good.add(record.line)
                else:
                    failed += 1
                    if bad is not None:
                        bad.add(record.line)
            marks = [
                mark for draft in (good, bad) if draft is not None and (mark := draft.finish()) is not None
            ]
            announce(marks)
            made_errors = bad is not None and bad.rows > 0
            if bad is not None and made_errors:
                put_in_place(bad.temporary, bad.final)
            elif errors is not None and errors.exists() and owns(errors):
                remove_file(errors)
                sync_folder(errors.parent)
            # Last: an output file in place says that the error file is as well.
            put_in_place(good.temporary, good.final)
        except BaseException:
            good.abandon()
            if bad is not None:
                bad.abandon()
            raise
    except OSError as exc:
        if is_disk_full(exc):
            raise DiskFullError(
                f"{output} cannot be written: {exc.strerror} ({free_bytes(output)} bytes free); all results "
                f"are in the journal, make room and export again",
                str(output),
            ) from exc
        raise OutputError(f"{exc.filename or output} cannot be written: {exc.strerror or exc}") from exc
    return ExportCounts(good.rows, failed, output, errors if made_errors else None)


def _draft(final: Path, tag: str) -> _Draft:
    return _Draft(final, final.with_name(f".{final.name[:180]}.{tag}.tmp"))


def matches(path: Path, marks: Iterable[Mark]) -> bool:
    """Whether the file `path` is, byte for byte, one that `marks` describe; False if it cannot be read."""
    try:
        stat = path.stat()
        digest = None
        for mark in marks:
            if mark["size"] != stat.st_size:
                continue
            if (mark["mtime_ns"], mark["inode"]) == (stat.st_mtime_ns, stat.st_ino):
                return True
            if digest is None:
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
            if mark["sha256"] == digest:
                return True
    except OSError:
        pass  # not ours as far as anyone can tell
    return False
