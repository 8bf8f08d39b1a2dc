"""What the tests of evaluations share: answers as a model gives them, and results that hold them."""

from __future__ import annotations

import json
from typing import Any

from ollama_batch import BatchResult, RowError
from ollama_batch.aris import PraxisEvaluation

RATED = ("educational_pedigree", "company_pedigree", "trajectory")


def answer(recommendation: str = "Yes", *ratings: str, engineer: bool = True, **more: Any) -> dict[str, Any]:
    """An answer as JSON data; the ratings are those of RATED, "Good" where none is given."""
    given = [*ratings, *["Good"] * (len(RATED) - len(ratings))]
    analysis: dict[str, Any] = {
        name: {"rating": rating, "reasoning": f"{name} is {rating}"}
        for name, rating in zip(RATED, given, strict=True)
    }
    analysis["is_software_engineer"] = {"value": engineer, "reasoning": "writes software"}
    return {"recommendation": recommendation, "reasoning": "on the whole", "analysis": analysis, **more}


def evaluation(recommendation: str = "Yes", *ratings: str, engineer: bool = True) -> PraxisEvaluation:
    return PraxisEvaluation.model_validate(answer(recommendation, *ratings, engineer=engineer))


def answered(custom_id: str, said: Any = None, **fields: Any) -> BatchResult[Any]:
    """An ok row with that answer: text as it is, anything else as JSON."""
    text = said if isinstance(said, str) else json.dumps(answer() if said is None else said)
    return BatchResult(custom_id=custom_id, ok=True, output=text, **fields)


def failed(custom_id: str, code: str = "output_truncated") -> BatchResult[Any]:
    return BatchResult(custom_id=custom_id, ok=False, error=RowError(code, "it was cut off"))


def written(said: dict[str, Any]) -> str:
    """An evaluation as it stands in an export."""
    return json.dumps(said, ensure_ascii=False, separators=(",", ":"))
