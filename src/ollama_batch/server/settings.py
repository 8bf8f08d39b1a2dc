"""What a server allows, and how it shares its engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from ollama_batch.errors import ConfigError

WINDOW_S = 86_400
"""The only completion window there is, "24h", in seconds."""

_OWN = ("model", "engine", "base_url", "allow_models", "num_ctx", "hooks", "progress", "on_length")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Limits of a batch server, and how several batches share its engine. Checked once, on construction.

    `max_file_bytes`: of one uploaded file. `max_lines`: of one batch, blank ones not counted.
    `max_line_bytes`, `max_depth`: of one line, and of the objects in it. `mixed_models`: a batch may name
    several models; they run one after another. `default_model`: answers lines that name none; None refuses
    them. `num_ctx`: context length in tokens of every batch; "auto" takes what the longest lines of a batch
    need.

    `max_files_per_key`, `max_bytes_per_key`, `max_open_batches_per_key`: beyond them uploads and batches are
    refused with 429; results of a batch that was taken are always kept.

    `runs_at_once`: batches that are being run at the same time, one for each key. `models_at_once`: models
    that may be in use at the same time. A batch that needs another one waits for `turn_s` seconds at most;
    then those that run make room, and go on later.

    `max_requests`: requests being answered at a time, beyond them 503. `max_body_bytes`: of a JSON body.
    `idle_s`: longest silence in the middle of a body. `upload_s`: longest upload. `cancel_grace_s`: how long
    requests that are out may take after a cancel. `min_free_bytes`: room on the disk below which nothing is
    taken in.

    `runner`: further options of the BatchRunner of every batch, such as `{"concurrency": 8, "guards": ()}`.
    """

    max_file_bytes: int = 200 * 2**20
    max_lines: int = 50_000
    max_line_bytes: int = 16 * 2**20
    max_depth: int = 64
    mixed_models: bool = False
    default_model: str | None = None
    num_ctx: int | Literal["auto"] = "auto"
    max_files_per_key: int = 10_000
    max_bytes_per_key: int = 100 * 2**30
    max_open_batches_per_key: int = 1_000
    runs_at_once: int = 8
    models_at_once: int = 1
    turn_s: float = 300.0
    max_requests: int = 512
    max_body_bytes: int = 2**20
    idle_s: float = 60.0
    upload_s: float = 3600.0
    cancel_grace_s: float = 30.0
    min_free_bytes: int = 64 * 2**20
    runner: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if each.type in ("int", "float"):
                wrong = isinstance(value, bool) or not isinstance(value, int | float)
                if wrong or (each.type == "int" and not isinstance(value, int)) or not 0 < value < 2**62:
                    kind = "whole number" if each.type == "int" else "number"
                    raise ConfigError(f"{each.name}={value!r}: must be a {kind} above 0")
        if self.num_ctx != "auto" and (type(self.num_ctx) is not int or self.num_ctx < 16):
            raise ConfigError(f'num_ctx={self.num_ctx!r}: must be "auto" or a whole number from 16')
        if self.default_model == "":
            raise ConfigError("default_model='': must be the name of a model, or None")
        if self.max_depth > 200:
            raise ConfigError(f"max_depth={self.max_depth}: must be 200 at most")
        for name in _OWN:
            if name in self.runner:
                raise ConfigError(f"runner={{{name!r}: ...}}: is decided by the server")
