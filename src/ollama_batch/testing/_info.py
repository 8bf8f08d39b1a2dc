"""What the fake server says about itself and its models."""

from __future__ import annotations

from typing import Any

from ollama_batch.testing._ollama import Ollama, details, now
from ollama_batch.testing.config import FakeModel

_PATHS = frozenset(("/", "/api/version", "/api/ps", "/api/tags", "/api/show", "/v1/models"))


def known(path: str) -> bool:
    """Whether the path exists, for some method."""
    return path in _PATHS


def inform(ollama: Ollama, method: str, path: str, name: str) -> dict[str, Any] | str | None:
    """The answer to a question, as an object or as text; None if there is no such route.

    `name` is the model asked for by `/api/show`. Raises Refusal.
    """
    models = ollama.models.values()
    match (method, path):
        case ("GET" | "HEAD", "/"):
            return "Ollama is running"
        case ("GET" | "HEAD", "/api/version"):
            return {"version": ollama.config.version}
        case ("GET", "/api/ps"):
            return {"models": ollama.loaded()}
        case ("GET" | "HEAD", "/api/tags"):
            return {"models": [_tag(model, ollama.digests[model.name]) for model in models]}
        case ("POST", "/api/show"):
            return _show(ollama.model(name))
        case ("GET", "/v1/models"):
            return {"object": "list", "data": [_listed(model) for model in models]}
        case ("GET", _) if path.startswith("/v1/models/"):
            return _listed(ollama.model(path.removeprefix("/v1/models/")))
    return None


def _tag(model: FakeModel, digest: str) -> dict[str, Any]:
    return {
        "name": model.name,
        "model": model.name,
        "modified_at": now(),
        "size": model.size,
        "digest": digest,
        "details": {**details(model), "context_length": model.context_length},
        "capabilities": model.capabilities,
    }


def _listed(model: FakeModel) -> dict[str, Any]:
    return {"id": model.name, "object": "model", "created": 1_700_000_000, "owned_by": "library"}


def _show(model: FakeModel) -> dict[str, Any]:
    family = model.family
    return {
        "parameters": "" if model.num_ctx is None else f"num_ctx                        {model.num_ctx}",
        "template": "{{ .Prompt }}",
        **({"renderer": family, "parser": family} if model.rendered else {}),
        "details": details(model),
        "model_info": {
            "general.architecture": family,
            "general.parameter_count": model.size * 2,
            "general.file_type": 2,
            f"{family}.context_length": model.context_length,
            f"{family}.block_count": model.layers,
            f"{family}.embedding_length": model.kv_heads * model.head_dim,
            f"{family}.attention.head_count": model.kv_heads,
            f"{family}.attention.head_count_kv": model.kv_heads,
            f"{family}.attention.key_length": model.head_dim,
            f"{family}.attention.value_length": model.head_dim,
            **({f"{family}.attention.sliding_window": model.sliding_window} if model.sliding_window else {}),
            **({} if model.vocabulary is None else {f"{family}.vocab_size": model.vocabulary}),
        },
        "capabilities": model.capabilities,
        "modified_at": now(),
    }
