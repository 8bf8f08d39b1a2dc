"""Says what is wrong with an Ollama server and a machine before hours are spent on them."""

from ollama_batch.doctor.examine import diagnose
from ollama_batch.doctor.finding import Diagnosis, Finding, FindingLevel

__all__ = ["Diagnosis", "Finding", "FindingLevel", "diagnose"]
