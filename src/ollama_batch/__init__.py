"""Run ten or 170,000 chat requests through the GPU you own, without losing a row.

    from ollama_batch import BatchRunner

    report = BatchRunner(model="gemma3:12b").run("requests.jsonl", output="results.jsonl")
    print(report)

Names are loaded on first use, so that importing the package costs next to nothing.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ollama_batch.concurrency import Concurrency as Concurrency
    from ollama_batch.control import Supervisor as Supervisor
    from ollama_batch.control import SystemdUnit as SystemdUnit
    from ollama_batch.conversation import ConversationPolicy as ConversationPolicy
    from ollama_batch.engines.base import Engine as Engine
    from ollama_batch.engines.embedded import EmbeddedEngine as EmbeddedEngine
    from ollama_batch.engines.ollama import OllamaEngine as OllamaEngine
    from ollama_batch.engines.openai import OpenAIEngine as OpenAIEngine
    from ollama_batch.errors import (
        ConfigError as ConfigError,
    )
    from ollama_batch.errors import (
        ContextTooLargeError as ContextTooLargeError,
    )
    from ollama_batch.errors import (
        EngineError as EngineError,
    )
    from ollama_batch.errors import (
        InputError as InputError,
    )
    from ollama_batch.errors import (
        JournalError as JournalError,
    )
    from ollama_batch.errors import (
        OllamaBatchError as OllamaBatchError,
    )
    from ollama_batch.errors import (
        RestartError as RestartError,
    )
    from ollama_batch.errors import (
        RunInterrupted as RunInterrupted,
    )
    from ollama_batch.errors import (
        RunStoppedError as RunStoppedError,
    )
    from ollama_batch.events import Event as Event
    from ollama_batch.events import Hook as Hook
    from ollama_batch.failed import export_failed as export_failed
    from ollama_batch.journal import RunJournal as RunJournal
    from ollama_batch.memory import Guard as Guard
    from ollama_batch.memory import GuardDecision as GuardDecision
    from ollama_batch.memory import MemoryPlan as MemoryPlan
    from ollama_batch.memory import MemorySample as MemorySample
    from ollama_batch.memory import RamGuard as RamGuard
    from ollama_batch.memory import VramGuard as VramGuard
    from ollama_batch.memory import recommend as recommend
    from ollama_batch.metrics import BatchMetrics as BatchMetrics
    from ollama_batch.report import BatchReport as BatchReport
    from ollama_batch.retry import RetryPolicy as RetryPolicy
    from ollama_batch.run import Run as Run
    from ollama_batch.runner import BatchRunner as BatchRunner
    from ollama_batch.savings import HeadUsage as HeadUsage
    from ollama_batch.structured import JsonSchema as JsonSchema
    from ollama_batch.tokens import CalibratedCounter as CalibratedCounter
    from ollama_batch.tokens import EstimateCounter as EstimateCounter
    from ollama_batch.tokens import TiktokenCounter as TiktokenCounter
    from ollama_batch.tokens import TokenCounter as TokenCounter
    from ollama_batch.tokens import default_counter as default_counter
    from ollama_batch.trim import AggressiveTrim as AggressiveTrim
    from ollama_batch.trim import HybridTrim as HybridTrim
    from ollama_batch.trim import ImportanceTrim as ImportanceTrim
    from ollama_batch.trim import SlidingWindowTrim as SlidingWindowTrim
    from ollama_batch.trim import TrimResult as TrimResult
    from ollama_batch.trim import TrimStrategy as TrimStrategy
    from ollama_batch.types import BatchRequest as BatchRequest
    from ollama_batch.types import BatchResult as BatchResult
    from ollama_batch.types import ChatRequest as ChatRequest
    from ollama_batch.types import Completion as Completion
    from ollama_batch.types import EngineInfo as EngineInfo
    from ollama_batch.types import RowError as RowError
    from ollama_batch.types import Usage as Usage

__version__ = "0.1.0"

_HOMES = {
    "AggressiveTrim": "trim",
    "BatchMetrics": "metrics",
    "BatchReport": "report",
    "BatchRequest": "types",
    "BatchResult": "types",
    "BatchRunner": "runner",
    "CalibratedCounter": "tokens",
    "ChatRequest": "types",
    "Completion": "types",
    "Concurrency": "concurrency",
    "ConfigError": "errors",
    "ContextTooLargeError": "errors",
    "ConversationPolicy": "conversation",
    "EmbeddedEngine": "engines.embedded",
    "Engine": "engines.base",
    "EngineError": "errors",
    "EngineInfo": "types",
    "EstimateCounter": "tokens",
    "Event": "events",
    "Guard": "memory",
    "GuardDecision": "memory",
    "HeadUsage": "savings",
    "Hook": "events",
    "HybridTrim": "trim",
    "ImportanceTrim": "trim",
    "InputError": "errors",
    "JournalError": "errors",
    "JsonSchema": "structured",
    "MemoryPlan": "memory",
    "MemorySample": "memory",
    "OllamaBatchError": "errors",
    "OllamaEngine": "engines.ollama",
    "OpenAIEngine": "engines.openai",
    "RamGuard": "memory",
    "RestartError": "errors",
    "RetryPolicy": "retry",
    "RowError": "types",
    "Run": "run",
    "RunInterrupted": "errors",
    "RunJournal": "journal",
    "RunStoppedError": "errors",
    "SlidingWindowTrim": "trim",
    "Supervisor": "control",
    "SystemdUnit": "control",
    "TiktokenCounter": "tokens",
    "TokenCounter": "tokens",
    "TrimResult": "trim",
    "TrimStrategy": "trim",
    "Usage": "types",
    "VramGuard": "memory",
    "default_counter": "tokens",
    "export_failed": "failed",
    "recommend": "memory",
}

__all__ = [*sorted(_HOMES), "__version__"]

logging.getLogger("ollama_batch").addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'ollama_batch' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"ollama_batch.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
