"""What a server keeps: files, batches and uploads, and how the API shows them."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

Status = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]

TERMINAL: Final = ("failed", "completed", "expired", "cancelled")

STAMPS: Final = (
    "in_progress_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
)
"""The times of a batch beside `created_at` and `expires_at`, each set once."""


def new_id(prefix: str) -> str:
    """`prefix` and 128 random bits."""
    return prefix + secrets.token_hex(16)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """A file of `owner`; its content lies in the vault under its id."""

    id: str
    owner: str
    purpose: str
    filename: str
    bytes: int
    created_at: int
    expires_at: int | None = None
    seq: int = 0

    def to_openai(self) -> dict[str, Any]:
        """As a FileObject, every key of it."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.bytes,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBatch:
    """A batch of `owner`. `models`: those its lines name. `num_ctx`: what it runs with, once that is decided;
    `needs`: the tokens its lines need. `body_hash`: of the request that made it.
    """

    id: str
    owner: str
    endpoint: str
    input_file_id: str
    completion_window: str
    status: Status
    created_at: int
    expires_at: int
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0
    metadata: Mapping[str, str] | None = None
    errors: Mapping[str, Any] | None = None
    usage: Mapping[str, Any] | None = None
    models: tuple[str, ...] = ()
    needs: int | None = None
    num_ctx: int | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    output_expires_s: int | None = None
    body_hash: str = ""
    seq: int = 0

    @property
    def over(self) -> bool:
        """Whether nothing will change any more."""
        return self.status in TERMINAL

    def moment(self, now: float) -> int:
        """`now` as a time of this batch: never before one that it has already."""
        known: list[int] = [at for name in STAMPS if (at := getattr(self, name)) is not None]
        return max(int(now), self.created_at, *known)

    def to_openai(self, *, completed: int | None = None, failed: int | None = None) -> dict[str, Any]:
        """As a Batch, every key of it; counts of a run that goes on may be given."""
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "errors": None if self.errors is None else dict(self.errors),
            "input_file_id": self.input_file_id,
            "completion_window": self.completion_window,
            "status": self.status,
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            **{name: getattr(self, name) for name in STAMPS},
            "request_counts": {
                "total": self.total,
                "completed": self.completed if completed is None else completed,
                "failed": self.failed if failed is None else failed,
            },
            "metadata": None if self.metadata is None else dict(self.metadata),
            "model": self.models[0] if self.models else None,
            "usage": None if self.usage is None else dict(self.usage),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredUpload:
    """A file that comes in parts; it lives for an hour."""

    id: str
    owner: str
    purpose: str
    filename: str
    bytes: int
    created_at: int
    expires_at: int
    status: str = "pending"
    file_id: str | None = None
    file_expires_s: int | None = None

    def to_openai(self, now: float, file: StoredFile | None = None) -> dict[str, Any]:
        """As an Upload, with its `file` once there is one."""
        late = self.status == "pending" and now >= self.expires_at
        return {
            "id": self.id,
            "object": "upload",
            "bytes": self.bytes,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "expired" if late else self.status,
            "file": None if file is None else file.to_openai(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPart:
    """A part of an upload."""

    id: str
    upload_id: str
    bytes: int
    created_at: int

    def to_openai(self) -> dict[str, Any]:
        """As an UploadPart."""
        return {
            "id": self.id,
            "object": "upload.part",
            "created_at": self.created_at,
            "upload_id": self.upload_id,
        }
