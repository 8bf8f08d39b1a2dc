"""What is said where the extra `[server]` is not installed."""

from __future__ import annotations

from ollama_batch.errors import MissingExtraError


def missing(error: ModuleNotFoundError) -> MissingExtraError:
    """The error that names the extra."""
    return MissingExtraError(
        f'the batch server needs {error.name}: install the extra, pip install ".[server]" in '
        "the project's folder (or: pip install starlette uvicorn python-multipart)"
    )
