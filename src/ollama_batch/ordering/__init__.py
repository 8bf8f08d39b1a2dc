"""Which request goes when: requests that begin alike go together, so that the prefix cache serves them."""

from ollama_batch.ordering.keys import GROUP_BYTES, head_name, order_key
from ollama_batch.ordering.schedule import HeadSchedule

__all__ = ["GROUP_BYTES", "HeadSchedule", "head_name", "order_key"]
