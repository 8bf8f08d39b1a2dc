"""Which request goes when: requests that begin alike go together, so that the prefix cache serves them."""

from ollama_batch.ordering.heads import HeadDifference, HeadWatch
from ollama_batch.ordering.keys import GROUP_BYTES, head_key, head_name, order_key
from ollama_batch.ordering.schedule import HeadSchedule, Schedule, largest_first
from ollama_batch.ordering.warm import WarmSchedule, Warmth
from ollama_batch.ordering.window import Window

__all__ = [
    "GROUP_BYTES",
    "HeadDifference",
    "HeadSchedule",
    "HeadWatch",
    "Schedule",
    "WarmSchedule",
    "Warmth",
    "Window",
    "head_key",
    "head_name",
    "largest_first",
    "order_key",
]
