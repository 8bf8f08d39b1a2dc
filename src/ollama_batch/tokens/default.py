"""The best counter there is on this machine."""

from __future__ import annotations

import logging
import os

from ollama_batch.errors import VocabularyMissingError
from ollama_batch.tokens._texts import IMAGE_TOKENS, MESSAGE_OVERHEAD, PROMPT_OVERHEAD
from ollama_batch.tokens.bpe import TiktokenCounter
from ollama_batch.tokens.estimate import EstimateCounter

_log = logging.getLogger("ollama_batch.tokens")


def default_counter(
    *,
    encoding: str | None = None,
    vocabulary: str | os.PathLike[str] | None = None,
    download: bool = False,
    download_timeout: float = 20.0,
    per_message: int = MESSAGE_OVERHEAD,
    per_prompt: int = PROMPT_OVERHEAD,
    image_tokens: int = IMAGE_TOKENS,
) -> TiktokenCounter | EstimateCounter:
    """A counter by the first of: the given vocabulary, tiktoken's cache, an installed package, a download.

    A download is tried only with `download=True`, for `download_timeout` seconds. If there is no
    vocabulary, an EstimateCounter; its `source` says so. Raises ConfigError for a `vocabulary` or
    `encoding` that was named and is wrong: what was asked for is never replaced silently.
    """
    try:
        return TiktokenCounter(
            encoding,
            vocabulary=vocabulary,
            download=download,
            download_timeout=download_timeout,
            per_message=per_message,
            per_prompt=per_prompt,
            image_tokens=image_tokens,
        )
    except VocabularyMissingError as error:
        _log.log(logging.WARNING if download else logging.INFO, "tokens are estimated: %s", error)
    return EstimateCounter(per_message=per_message, per_prompt=per_prompt, image_tokens=image_tokens)
