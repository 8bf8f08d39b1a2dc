"""`OUTPUT.partial.jsonl`: result lines in the order they finished, for those who watch the run.

A convenience beside the journal: written after the commit, flushed and never synced, and brought in
line with the journal before it is first written to in a session.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from ollama_batch._points import reached
from ollama_batch.journal.place import create_private, remove_file

PartialPaths = Path | Sequence[Path | None] | None

_log = logging.getLogger("ollama_batch.journal")
_CHUNK = 1 << 20


class PartialFile:
    """The partial output of one source; used by the writer thread only.

    A failed write never fails the run: it is logged once, and the file is mended by the next append
    that succeeds.
    """

    def __init__(self, path: Path, source: int) -> None:
        self.path = path
        self.source = source
        self._fd: int | None = None
        self._size = 0
        self._behind = True
        self._warned = False

    def append(self, con: sqlite3.Connection, lines: Sequence[bytes]) -> None:
        """Add `lines`, which are committed already."""
        try:
            reached("partial.before_append")
            if self._behind:
                self._mend(con)
            else:
                self._write(b"".join(line + b"\n" for line in lines))
            reached("partial.after_append")
        except OSError as exc:
            self._behind = True
            if not self._warned:
                self._warned = True
                _log.warning(
                    "%s cannot be written (%s): the journal goes on without it", self.path, exc.strerror
                )

    def remove(self) -> None:
        """Close and remove the file."""
        self.close()
        remove_file(self.path)

    def close(self) -> None:
        """Close the file; a later append opens it again."""
        if self._fd is not None:
            os.close(self._fd)
        self._fd = None
        self._behind = True

    def _write(self, data: bytes) -> None:
        assert self._fd is not None  # noqa: S101 - opened by _mend
        view = memoryview(data)
        while view:
            written = os.write(self._fd, view)
            self._size += written
            view = view[written:]

    def _mend(self, con: sqlite3.Connection) -> None:
        """Make the file equal to what is committed, keeping the part that already is."""
        reached("partial.mend")
        if self._fd is None:
            self._fd = create_private(self.path, exclusive=False)
        seq, size = self._common(con, os.fstat(self._fd).st_size)
        os.ftruncate(self._fd, size)
        os.lseek(self._fd, size, os.SEEK_SET)
        self._size = size
        chunk: list[bytes] = []
        held = 0
        for line in self._lines(con, seq):
            chunk += (line, b"\n")
            held += len(line)
            if held >= _CHUNK:
                self._write(b"".join(chunk))
                chunk, held = [], 0
        self._write(b"".join(chunk))
        self._behind = False

    def _common(self, con: sqlite3.Connection, present: int) -> tuple[int, int]:
        """How far the file holds the journal's lines: (sequence number, bytes); (-1, 0) if it does not."""
        assert self._fd is not None  # noqa: S101 - opened by _mend
        seq, size, first, last = -1, 0, None, None
        sizes = con.execute(
            "SELECT x.seq, x.idx, x.size FROM results x JOIN rows r ON r.idx = x.idx"
            " WHERE r.source = ? ORDER BY x.seq",
            (self.source,),
        )
        for at, index, length in sizes:
            if size + length + 1 > present:
                break
            last = (index, size, length)
            first = first or last
            seq, size = at, size + length + 1
        sizes.close()
        # A retried row leaves the order and shifts all that follow, so that one line at each end tells.
        for probe in (first, last):
            if probe is None:
                return -1, 0
            index, offset, length = probe
            os.lseek(self._fd, offset, os.SEEK_SET)
            line = con.execute("SELECT line FROM answers WHERE idx = ?", (index,)).fetchone()[0]
            if os.read(self._fd, length + 1) != line + b"\n":
                return -1, 0
        return seq, size

    def _lines(self, con: sqlite3.Connection, after: int) -> Iterator[bytes]:
        query = (
            "SELECT a.line FROM results x JOIN rows r ON r.idx = x.idx JOIN answers a ON a.idx = x.idx"
            " WHERE r.source = ? AND x.seq > ? ORDER BY x.seq"
        )
        # The order is settled on the narrow columns; the lines would not fit the sorter's memory.
        indices = con.execute(query.replace("a.line", "x.idx"), (self.source, after))
        for (index,) in indices:
            yield con.execute("SELECT line FROM answers WHERE idx = ?", (index,)).fetchone()[0]


def partial_files(partial: PartialPaths) -> dict[int, PartialFile]:
    """The partial file of each source that has one, by the number of the source."""
    paths = [partial] if isinstance(partial, Path) else list(partial or ())
    return {
        source: PartialFile(Path(os.path.abspath(path)), source)  # noqa: PTH100 - resolve() would follow a link
        for source, path in enumerate(paths)
        if path is not None
    }
