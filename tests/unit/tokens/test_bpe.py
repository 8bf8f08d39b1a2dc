"""Counting with a vocabulary; the oracle is the encoding itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_batch.errors import ConfigError
from ollama_batch.tokens import TiktokenCounter, byte_bound
from ollama_batch.tokens.bpe import _PIECE, _pieces
from tokens_support import small_encoding

ENCODING = small_encoding()


@given(st.text())
def test_a_text_has_as_many_tokens_as_the_encoding_makes(text: str) -> None:
    assert TiktokenCounter(ENCODING).count_text(text) == len(ENCODING.encode_ordinary(text))


@given(st.lists(st.text(st.characters(exclude_categories=())), max_size=5))
def test_a_prompt_never_has_more_tokens_than_its_byte_bound(texts: list[str]) -> None:
    messages = [{"role": "user", "content": text} for text in texts]
    assert TiktokenCounter(ENCODING).count_messages(messages) <= byte_bound(messages)


@pytest.mark.parametrize("threads", [1, 2])
def test_many_texts_are_counted_in_order(threads: int) -> None:
    texts = [f"the{'x' * size}" for size in range(50)] * 2
    counter = TiktokenCounter(ENCODING)
    assert counter.count_texts(texts, threads=threads) == [
        len(ENCODING.encode_ordinary(text)) for text in texts
    ]


def test_no_threads_are_refused() -> None:
    with pytest.raises(ConfigError, match="threads is 0"):
        TiktokenCounter(ENCODING).count_texts(["a"], threads=0)


def test_a_lone_surrogate_is_counted() -> None:
    assert TiktokenCounter(ENCODING).count_text("\ud800") == 3  # as U+FFFD, which is 3 bytes


@pytest.mark.parametrize("text", ["ab cd " * 30_000, "x" * 120_001, " " * 1_000_000, "the " * 20_000])
def test_a_very_long_text_is_counted_in_pieces(text: str) -> None:
    """A million blanks at once overflow the stack of tiktoken's pattern with cl100k_base and o200k_base."""
    pieces = list(_pieces(text))
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= _PIECE
    assert min(map(len, pieces)) > 0
    whole = len(ENCODING.encode_ordinary(text))
    assert abs(TiktokenCounter(ENCODING).count_text(text) - whole) <= len(pieces)
