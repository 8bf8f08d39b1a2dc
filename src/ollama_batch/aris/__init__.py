"""Candidates of an Aris export, as requests for an evaluation, and the evaluations back into the export."""

from ollama_batch.aris.batch_files import write_requests
from ollama_batch.aris.candidate import Candidate, GemProfile, Job, School
from ollama_batch.aris.evaluation import PraxisEvaluation
from ollama_batch.aris.praxis import ANSWER_FORMAT, CRITERIA, MESSAGE
from ollama_batch.aris.quality import DataQuality
from ollama_batch.aris.ranking import RankedCandidate, Ranking, rank
from ollama_batch.aris.reader import CandidateReader, ReadProgress, read_candidates
from ollama_batch.aris.requests import Adapter, RequestCounts, RequestStream, to_requests
from ollama_batch.aris.results import FailedEvaluation
from ollama_batch.aris.template import PraxisTemplate
from ollama_batch.aris.unevaluated import UnevaluatedCandidate
from ollama_batch.aris.writing import WrittenEvaluations, write_evaluations

__all__ = [
    "ANSWER_FORMAT",
    "CRITERIA",
    "MESSAGE",
    "Adapter",
    "Candidate",
    "CandidateReader",
    "DataQuality",
    "FailedEvaluation",
    "GemProfile",
    "Job",
    "PraxisEvaluation",
    "PraxisTemplate",
    "RankedCandidate",
    "Ranking",
    "ReadProgress",
    "RequestCounts",
    "RequestStream",
    "School",
    "UnevaluatedCandidate",
    "WrittenEvaluations",
    "rank",
    "read_candidates",
    "to_requests",
    "write_evaluations",
    "write_requests",
]
