"""How many requests may be out, and what to do when the engine is in trouble: decisions, no doing."""

from ollama_batch.control.action import Action, Do, Rung
from ollama_batch.control.history import Crash, History, Suspicion
from ollama_batch.control.limit import LimitChange, QueueTarget
from ollama_batch.control.memory_bound import MemoryBound
from ollama_batch.control.recovery import (
    Ladder,
    decide,
    probed,
    smaller_num_batch,
    undo,
)
from ollama_batch.control.restart import Outcome, Restart
from ollama_batch.control.slots import SlotWatch
from ollama_batch.control.supervisor import Supervisor
from ollama_batch.control.systemd import SystemdUnit
from ollama_batch.control.trouble import Kind, Trouble, kind_of

__all__ = [
    "Action",
    "Crash",
    "Do",
    "History",
    "Kind",
    "Ladder",
    "LimitChange",
    "MemoryBound",
    "Outcome",
    "QueueTarget",
    "Restart",
    "Rung",
    "SlotWatch",
    "Supervisor",
    "Suspicion",
    "SystemdUnit",
    "Trouble",
    "decide",
    "kind_of",
    "probed",
    "smaller_num_batch",
    "undo",
]
