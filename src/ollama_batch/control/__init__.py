"""How many requests may be out, and what to do when the engine is in trouble: decisions, no doing."""

from ollama_batch.control.limit import LimitChange, QueueTarget

__all__ = ["LimitChange", "QueueTarget"]
