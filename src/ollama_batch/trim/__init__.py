"""Shorten conversations to a budget of tokens, in whole exchanges; usable alone on OpenAI messages."""

from ollama_batch.trim.aggressive import AggressiveTrim as AggressiveTrim
from ollama_batch.trim.base import Clip as Clip
from ollama_batch.trim.base import TrimResult as TrimResult
from ollama_batch.trim.base import TrimStrategy as TrimStrategy
from ollama_batch.trim.base import replay as replay
from ollama_batch.trim.cutting import trim_to_marks as trim_to_marks
from ollama_batch.trim.hybrid import HybridTrim as HybridTrim
from ollama_batch.trim.importance import ImportanceTrim as ImportanceTrim
from ollama_batch.trim.importance import ImportanceWeights as ImportanceWeights
from ollama_batch.trim.sliding import SlidingWindowTrim as SlidingWindowTrim
from ollama_batch.trim.units import Unit as Unit
from ollama_batch.trim.units import split_units as split_units
from ollama_batch.trim.units import without_key as without_key
