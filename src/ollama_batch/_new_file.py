"""A file that is written whole or not at all, and never over one that is not meant."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ollama_batch._points import reached
from ollama_batch.errors import DiskFullError, OutputError
from ollama_batch.journal.faults import free_bytes, is_disk_full
from ollama_batch.journal.place import create_private, put_in_place, remove_file, sync_file


def check_new(path: Path, *, overwrite: bool) -> None:
    """Raise OutputError unless a file can be made at `path`: no folder, and nothing there already."""
    if path.is_dir():
        raise OutputError(f"{path} is a folder: give a file name in it")
    if not path.parent.is_dir():
        raise OutputError(f"{path} cannot be written: there is no folder {path.parent}")
    if not overwrite and os.path.lexists(path):
        raise OutputError(f"{path} exists: give another name, or say overwrite=True")


def same_file(path: Path, other: Path | os.stat_result) -> bool:
    """Whether both are one file, also if a link makes them one; of files that are not there, one name."""
    try:
        return os.path.samestat(path.stat(), other if isinstance(other, os.stat_result) else other.stat())
    except OSError:
        return not isinstance(other, os.stat_result) and os.path.realpath(path) == os.path.realpath(other)


def check_apart(path: Path, inputs: Iterable[Path | os.stat_result]) -> None:
    """Raise OutputError if `path` is one of `inputs`, by whatever name: replacing it would lose that."""
    if any(same_file(path, each) for each in inputs):
        raise OutputError(f"{path} is an input, and would be lost: give another name")


@contextmanager
def new_file(path: Path, *, overwrite: bool, empty: bool = True) -> Iterator[BinaryIO]:
    """A binary file to write that gets its name `path` at the end of the block, synced and at once.

    Until then, and for good if the block raises, what was at `path` stays as it was; without `empty` also if
    the block has written nothing. Only its owner can read it. Raises OutputError, or DiskFullError where
    there is no room.
    """
    check_new(path, overwrite=overwrite)
    draft = Draft(path)
    with writing(path):
        try:
            with draft.filled() as file:
                yield file
                wanted = empty or file.tell() > 0
            if wanted:
                check_new(path, overwrite=overwrite)  # somebody else may have been as fast
                draft.put_in_place()
        finally:
            draft.drop()


class Draft:
    """A file in the making beside the `path` that it is meant for, for whoever makes several at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._temporary = path.with_name(f".{path.name[:180]}.{os.getpid()}.tmp")

    @contextmanager
    def filled(self) -> Iterator[BinaryIO]:
        """The file to write, which only its owner can read; synced at the end of the block."""
        remove_file(self._temporary)  # what a killed process of the same number left
        reached("new.begin")
        with os.fdopen(create_private(self._temporary), "wb", buffering=1 << 20) as file:
            yield file
            file.flush()
            sync_file(file.fileno())

    def put_in_place(self) -> None:
        """Give it its name: durable, and never half there."""
        put_in_place(self._temporary, self.path)

    def drop(self) -> None:
        """Remove it, unless it has its name."""
        remove_file(self._temporary)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tell an OSError of the block as OutputError about `path`, or as DiskFullError."""
    try:
        yield
    except OSError as exc:
        if is_disk_full(exc):
            raise DiskFullError(
                f"{path} cannot be written: {exc.strerror} ({free_bytes(path)} bytes free); make room and "
                "write it again",
                str(path),
            ) from exc
        raise OutputError(f"{path} cannot be written: {exc.strerror or exc}") from exc
