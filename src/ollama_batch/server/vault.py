"""The files of a server: contents, uploads in the making and the folders of runs, readable by it alone.

Every name in here is an id that the server made itself; nothing that a client sent is ever part of a path.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ollama_batch._points import reached
from ollama_batch.journal.place import create_private, put_in_place, remove_file, sync_file, sync_folder
from ollama_batch.server.objects import new_id

_COPY_BYTES = 1 << 20


class Draft:
    """A file in the making, outside of all that is listed or served. `size` is what was written so far."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._fd: int | None = create_private(path)

    def write(self, data: bytes) -> None:
        """Add `data`. Raises OSError."""
        assert self._fd is not None  # noqa: S101 - written to only while it is open
        view = memoryview(data)
        while view:
            written = os.write(self._fd, view)
            self.size += written
            view = view[written:]

    def finish(self) -> None:
        """Make what was written durable. Raises OSError."""
        assert self._fd is not None  # noqa: S101 - as above
        sync_file(self._fd)
        self.close()

    def close(self) -> None:
        """Close it; may be repeated."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)

    def discard(self) -> None:
        """Close and remove it; nothing is left."""
        self.close()
        remove_file(self.path)


class Vault:
    """Folders under one data folder: `files`, `parts`, `runs`, `tmp`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = folder / "files"
        self._parts = folder / "parts"
        self._runs = folder / "runs"
        self._drafts = folder / "tmp"

    def open(self) -> None:
        """Make the folders, and remove what unfinished uploads have left."""
        for path in (self.folder, self._files, self._parts, self._runs, self._drafts):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in self._drafts.iterdir():
            remove_file(left)

    def draft(self) -> Draft:
        """A new file in the making. Raises OSError."""
        return Draft(self._drafts / new_id("draft-"))

    def publish(self, draft: Draft, file_id: str) -> None:
        """Give a finished draft its place: whole, durable, and not before."""
        put_in_place(draft.path, self._files / file_id)

    def publish_part(self, draft: Draft, part_id: str) -> None:
        """The same for a part of an upload."""
        put_in_place(draft.path, self._parts / part_id)

    def path(self, file_id: str) -> Path:
        """Where the content of a file is."""
        return self._files / file_id

    def remove(self, file_id: str) -> None:
        """Remove the content of a file."""
        remove_file(self._files / file_id)

    def remove_part(self, part_id: str) -> None:
        """Remove a part."""
        remove_file(self._parts / part_id)

    def join(self, part_ids: Sequence[str], *, seen: Callable[[bytes], None]) -> Draft:
        """The parts one after another in a finished draft; `seen` is given every piece. Raises OSError."""
        draft = self.draft()
        try:
            for part_id in part_ids:
                with (self._parts / part_id).open("rb") as part:
                    while piece := part.read(_COPY_BYTES):
                        seen(piece)
                        draft.write(piece)
            draft.finish()
        except BaseException:
            draft.discard()
            raise
        return draft

    def snapshot(self, file_id: str, batch_id: str) -> None:
        """Keep the content of a file for a batch, whatever becomes of the file. Raises OSError."""
        folder = self._runs / batch_id
        folder.mkdir(mode=0o700)
        source, target = self._files / file_id, folder / "input.jsonl"
        reached("server.before_link")
        try:
            os.link(source, target)
        except FileNotFoundError:
            raise
        except OSError:  # a file system without links
            shutil.copyfile(source, target)
            target.chmod(0o600)
        sync_folder(folder)
        reached("server.after_link")

    def input(self, batch_id: str) -> Path:
        """The input of a batch, as it was when the batch was made."""
        return self._runs / batch_id / "input.jsonl"

    def journal(self, batch_id: str) -> Path:
        """The journal of the run of a batch."""
        return self._runs / batch_id / "run.db"

    def end_run(self, batch_id: str) -> None:
        """Remove what a batch needed only while it ran: input, journal and all they say."""
        shutil.rmtree(self._runs / batch_id, ignore_errors=True)

    def strays(self, *, files: set[str], parts: set[str], runs: set[str]) -> Iterator[str]:
        """Remove what nobody knows of (a kill came before it was recorded); their names."""
        for folder, known in ((self._files, files), (self._parts, parts), (self._runs, runs)):
            for found in list(folder.iterdir()):
                if found.name not in known:
                    if found.is_dir():
                        shutil.rmtree(found, ignore_errors=True)
                    else:
                        remove_file(found)
                    yield found.name

    def free_bytes(self) -> int:
        """Bytes that can still be written."""
        return shutil.disk_usage(self.folder).free
