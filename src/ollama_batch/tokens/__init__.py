"""How many tokens a prompt has, and where each figure comes from."""

from ollama_batch.tokens._counter import CountLedger, TextCounter
from ollama_batch.tokens._texts import byte_bound
from ollama_batch.tokens.base import Count, TokenCounter
from ollama_batch.tokens.bpe import TiktokenCounter
from ollama_batch.tokens.calibrated import BoundCounter, CalibratedCounter
from ollama_batch.tokens.default import default_counter
from ollama_batch.tokens.estimate import EstimateCounter
from ollama_batch.tokens.exact import ExactCounter, Tokenizing
from ollama_batch.tokens.state import user_state_dir

__all__ = [
    "BoundCounter",
    "CalibratedCounter",
    "Count",
    "CountLedger",
    "EstimateCounter",
    "ExactCounter",
    "TextCounter",
    "TiktokenCounter",
    "TokenCounter",
    "Tokenizing",
    "byte_bound",
    "default_counter",
    "user_state_dir",
]
