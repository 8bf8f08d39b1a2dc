"""A batch server as OpenAI's: `/v1/files` and `/v1/batches` on your own GPU; needs the extra `[server]`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ollama_batch.server.settings import ServerSettings

if TYPE_CHECKING:
    from ollama_batch.server.app import create_app

__all__ = ["ServerSettings", "create_app"]


def __getattr__(name: str) -> Any:
    # Not at the top: the settings can be read without the extra.
    if name != "create_app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from ollama_batch.server.app import create_app
    except ModuleNotFoundError as exc:
        from ollama_batch.server.extra import missing

        raise missing(exc) from exc
    return create_app
