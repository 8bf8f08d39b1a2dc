"""Answers that are data: what they must be, how their text is read, and when a repair of it counts."""

from ollama_batch.structured.form import AnswerForm, JsonSchema, form_of
from ollama_batch.structured.reading import Answer, read_answer

__all__ = ["Answer", "AnswerForm", "JsonSchema", "form_of", "read_answer"]
