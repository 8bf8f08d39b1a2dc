"""Engines: what answers the requests of a run. One file each, and the protocol they share in `base.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ollama_batch.engines.base import (
    Engine,
    Listing,
    Loadable,
    MemoryReporting,
    Probed,
    Restartable,
    Unloading,
)

if TYPE_CHECKING:
    from ollama_batch.engines.embedded import EmbeddedEngine
    from ollama_batch.engines.ollama import OllamaEngine
    from ollama_batch.engines.openai import OpenAIEngine

__all__ = [
    "EmbeddedEngine",
    "Engine",
    "Listing",
    "Loadable",
    "MemoryReporting",
    "OllamaEngine",
    "OpenAIEngine",
    "Probed",
    "Restartable",
    "Unloading",
]

_HOMES = {"EmbeddedEngine": "embedded", "OllamaEngine": "ollama", "OpenAIEngine": "openai"}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{home}"), name)
