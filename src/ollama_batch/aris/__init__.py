"""Candidate profiles from Aris to requests, and evaluations back."""

from ollama_batch.aris.evaluation import PraxisEvaluation
from ollama_batch.aris.ranking import RankedCandidate, Ranking, rank
from ollama_batch.aris.results import FailedEvaluation
from ollama_batch.aris.writing import WrittenEvaluations, write_evaluations

__all__ = [
    "FailedEvaluation",
    "PraxisEvaluation",
    "RankedCandidate",
    "Ranking",
    "WrittenEvaluations",
    "rank",
    "write_evaluations",
]
