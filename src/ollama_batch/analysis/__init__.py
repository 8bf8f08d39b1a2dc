"""What came out of a run: figures, tables and a report of its results, and what changed between two runs."""

from ollama_batch._error_groups import ErrorGroup, ErrorKind
from ollama_batch.analysis.agreement import FieldAgreement, Move, ScoreChange
from ollama_batch.analysis.analysis import Analysis
from ollama_batch.analysis.analyze import analyze
from ollama_batch.analysis.compare import Change, Comparison, compare
from ollama_batch.analysis.figures import (
    Example,
    FieldFigures,
    ScoreFigures,
    TokenFigures,
)
from ollama_batch.analysis.load import LoadFigures
from ollama_batch.analysis.numbers import Bar, Distribution
from ollama_batch.analysis.tables import Table, read_csv
from ollama_batch.analysis.timeline import Memory, Span, Stretch, Timeline

__all__ = [
    "Analysis",
    "Bar",
    "Change",
    "Comparison",
    "Distribution",
    "ErrorGroup",
    "ErrorKind",
    "Example",
    "FieldAgreement",
    "FieldFigures",
    "LoadFigures",
    "Memory",
    "Move",
    "ScoreChange",
    "ScoreFigures",
    "Span",
    "Stretch",
    "Table",
    "Timeline",
    "TokenFigures",
    "analyze",
    "compare",
    "read_csv",
]
