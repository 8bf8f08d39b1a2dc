"""The durable run: one SQLite file that holds every row and every result."""

from ollama_batch.journal.aside import put_back, set_aside
from ollama_batch.journal.data import ExportCounts, JournalCounts, Moment, Note, Pace, TrimCounts
from ollama_batch.journal.readonly import ReadOnlyJournal
from ollama_batch.journal.run import RunJournal
from ollama_batch.journal.verify import Found, VerifyReport, verify

__all__ = [
    "ExportCounts",
    "Found",
    "JournalCounts",
    "Moment",
    "Note",
    "Pace",
    "ReadOnlyJournal",
    "RunJournal",
    "TrimCounts",
    "VerifyReport",
    "put_back",
    "set_aside",
    "verify",
]
