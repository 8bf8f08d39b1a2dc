"""What the journal tells about itself, and the checksum every result carries."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ollama_batch.types import ResultRecord

_HEAD = struct.Struct("<q?IiIQ")


@dataclass(frozen=True, slots=True)
class JournalCounts:
    """How many rows a run has and how they ended; `codes` counts failed rows by error code."""

    rows: int = 0
    ok: int = 0
    failed: int = 0
    codes: Mapping[str, int] = field(default_factory=dict)

    @property
    def done(self) -> int:
        """Rows that have a result."""
        return self.ok + self.failed

    @property
    def pending(self) -> int:
        """Rows without a result."""
        return self.rows - self.done


@dataclass(frozen=True, slots=True)
class ExportCounts:
    """What an export wrote; `errors` is None if no error file was made."""

    ok: int
    failed: int
    output: Path
    errors: Path | None


@dataclass(frozen=True, slots=True)
class Pace:
    """When the last result came, in seconds since the epoch (None: there is none), and how many lately."""

    last_at: float | None = None
    recent: int = 0


@dataclass(frozen=True, slots=True)
class Moment:
    """When the result of row `index` was committed, in seconds since the epoch, and in which session."""

    index: int
    at: float
    session: int


@dataclass(frozen=True, slots=True)
class TrimCounts:
    """Rows whose prompt was trimmed, and the tokens that were left out, as far as that was told (None: of
    no row).

    A row that begins a conversation anew because its head is another one was not trimmed.
    """

    rows: int = 0
    tokens: int | None = 0


@dataclass(frozen=True, slots=True)
class Note:
    """A decision or an attempt worth keeping; `at` is in seconds since the epoch."""

    at: float
    kind: str
    data: Mapping[str, Any]


def checksum(custom_id: str | None, record: ResultRecord) -> bytes:
    """8 bytes of BLAKE2b over everything a result says and the row it belongs to."""
    name = b"" if custom_id is None else custom_id.encode("utf-8", "surrogatepass")
    code = b"" if record.code is None else record.code.encode()
    named = -1 if custom_id is None else len(name)
    head = _HEAD.pack(record.index, record.ok, record.attempts, named, len(code), len(record.line))
    digest = hashlib.blake2b(head, digest_size=8)
    for part in (name, code, record.line, record.info):
        digest.update(part)
    return digest.digest()
