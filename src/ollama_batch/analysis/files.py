"""Files that are there whole or not at all, and never in the place of somebody else's unasked."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

from ollama_batch.errors import OutputError
from ollama_batch.journal.place import create_private, put_in_place, remove_file, sync_file


def write_file(
    path: Path, write: Callable[[IO[bytes]], Any], *, sources: Iterable[Path] = (), overwrite: bool = False
) -> Path:
    """Have `write` fill a new file that only its owner can read, and give it the name `path`.

    Raises OutputError if `path` is a folder, one of `sources` or, without `overwrite`, there, and if it
    cannot be written.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder: give a file name in it")
    if path.resolve() in {source.resolve() for source in sources}:
        raise OutputError(f"{path} is what is analysed: give another name")
    if os.path.lexists(path) and not overwrite:
        raise OutputError(f"{path} exists: give another name, or say overwrite=True")
    temporary = path.with_name(f".{path.name[:180]}.{os.getpid()}.tmp")
    try:
        remove_file(temporary)  # what a killed process of the same number left
        try:
            with os.fdopen(create_private(temporary), "wb") as file:
                write(file)
                file.flush()
                sync_file(file.fileno())
            put_in_place(temporary, path)
        finally:
            remove_file(temporary)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
    return path
