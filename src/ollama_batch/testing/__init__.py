"""For tests of code that uses Ollama: a fake server that writes down everything it was asked."""

from ollama_batch.testing.base import FakeServer
from ollama_batch.testing.config import CostModel, FakeModel, FakeReply
from ollama_batch.testing.faults import KINDS as FAULT_KINDS
from ollama_batch.testing.faults import Fault
from ollama_batch.testing.ledger import FileLedger, Ledger, LedgerRecord
from ollama_batch.testing.memory import MemoryModel
from ollama_batch.testing.server import FakeOllama

__all__ = [
    "FAULT_KINDS",
    "CostModel",
    "FakeModel",
    "FakeOllama",
    "FakeReply",
    "FakeServer",
    "Fault",
    "FileLedger",
    "Ledger",
    "LedgerRecord",
    "MemoryModel",
]
