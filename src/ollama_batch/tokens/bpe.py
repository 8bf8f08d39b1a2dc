"""Counting with a vocabulary of tiktoken."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Final

from ollama_batch.errors import ConfigError, VocabularyMissingError
from ollama_batch.tokens import vocabulary as vocabularies
from ollama_batch.tokens._counter import CACHE_ENTRIES, TextCounter
from ollama_batch.tokens._texts import IMAGE_TOKENS, MESSAGE_OVERHEAD, PROMPT_OVERHEAD

if TYPE_CHECKING:
    import tiktoken

_PIECE: Final = 50_000
"""Characters tokenized at once: tiktoken's pattern overflows its stack on a million blanks in a row."""

_BLOCK: Final = 32


class TiktokenCounter(TextCounter):
    """Counts with a tiktoken encoding: exact for its own models, a base to calibrate for all others.

    `encoding` is a name ("o200k_base" by default) or a `tiktoken.Encoding` of your own, such as one made
    of the model's vocabulary. The vocabulary of a named one is `vocabulary` (a file, or a folder of
    files), else looked for in tiktoken's cache and in installed packages that carry it, else downloaded
    within `download_timeout` seconds if `download` is True. Neither the environment nor tiktoken's
    registry is changed. Raises VocabularyMissingError if there is no vocabulary, ConfigError if a given
    one is damaged.
    """

    def __init__(
        self,
        encoding: str | tiktoken.Encoding | None = None,
        *,
        vocabulary: str | os.PathLike[str] | None = None,
        download: bool = False,
        download_timeout: float = 20.0,
        per_message: int = MESSAGE_OVERHEAD,
        per_prompt: int = PROMPT_OVERHEAD,
        image_tokens: int = IMAGE_TOKENS,
        cache_entries: int = CACHE_ENTRIES,
    ) -> None:
        super().__init__(
            per_message=per_message,
            per_prompt=per_prompt,
            image_tokens=image_tokens,
            cache_entries=cache_entries,
        )
        if encoding is None or isinstance(encoding, str):
            found = _vocabulary(encoding, vocabulary, download=download, timeout=download_timeout)
            self._encoding = found.encoding()
            self.place = found.place
        else:
            if vocabulary is not None:
                raise ConfigError("vocabulary is of no use beside a tiktoken.Encoding object; leave one out")
            self._encoding = encoding
            self.place = "given"

    def __repr__(self) -> str:
        return f"TiktokenCounter({self._encoding.name!r}, found: {self.place})"

    @property
    def source(self) -> str:
        """The name of the encoding after "tiktoken:"."""
        return f"tiktoken:{self._encoding.name}"

    def count_texts(self, texts: Sequence[str], *, threads: int = 1) -> list[int]:
        """The tokens of each of `texts`, computed by `threads` at once (tiktoken releases the GIL)."""
        if threads < 1:
            raise ConfigError(f"threads is {threads}; it must be 1 at least")
        if threads == 1:
            return list(map(self.count_text, texts))
        from concurrent.futures import ThreadPoolExecutor

        # A block per task: handing over single texts would cost as much as counting a short one.
        blocks = [texts[start : start + _BLOCK] for start in range(0, len(texts), _BLOCK)]
        with ThreadPoolExecutor(threads) as pool:
            counted = pool.map(lambda block: list(map(self.count_text, block)), blocks)
            return list(chain.from_iterable(counted))

    def _tokenize(self, text: str) -> int:
        if len(text) <= _PIECE:
            return len(self._encoding.encode_ordinary(text))
        return sum(len(self._encoding.encode_ordinary(piece)) for piece in _pieces(text))


def _pieces(text: str) -> Iterator[str]:
    """`text` in pieces of `_PIECE` characters at most, cut before a blank where there is one.

    A cut there changes the count by a token at the most.
    """
    start = 0
    while start < len(text):
        end = start + _PIECE
        if end < len(text):
            blank = text.rfind(" ", start + _PIECE // 2, end)
            end = blank if blank > 0 else end
        yield text[start:end]
        start = end


def _vocabulary(
    encoding: str | None, vocabulary: str | os.PathLike[str] | None, *, download: bool, timeout: float
) -> vocabularies.Vocabulary:
    if vocabulary is not None:
        return vocabularies.given(vocabulary, encoding)
    names = vocabularies.PREFERRED if encoding is None else (encoding,)
    for name in names:
        found = vocabularies.find(name)
        if found is not None:
            return found
    if download:
        return vocabularies.download(names[0], timeout=timeout)
    raise VocabularyMissingError(
        f"no vocabulary of {' or '.join(names)} on this machine: pass vocabulary= with its file, "
        "download=True to fetch it, or count with EstimateCounter"
    )
