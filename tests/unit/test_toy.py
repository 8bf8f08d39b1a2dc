"""The toy model's file: what is in it, by the gguf package's own reader, and how it gets to its place."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ollama_batch.errors import ConfigError
from ollama_batch.testing.toy import toy_gguf, toy_vocabulary, write_toy_gguf

gguf = pytest.importorskip("gguf", reason="needs ollama-batch[embedded]")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def raw_tokens() -> list[bytes]:
    return [text.encode().decode("unicode_escape").encode("latin-1") for text in toy_vocabulary()]


def test_the_same_arguments_give_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    first = write_toy_gguf(tmp_path / "a.gguf", seed=3)
    again = write_toy_gguf(tmp_path / "b.gguf", seed=3)
    other = write_toy_gguf(tmp_path / "c.gguf", seed=4)
    assert digest(first) == digest(again) != digest(other)


def test_the_file_says_that_it_is_a_toy_and_carries_a_chat_template(tmp_path: Path) -> None:
    reader = gguf.GGUFReader(write_toy_gguf(tmp_path / "toy.gguf"))
    assert reader.get_field("general.description").contents() == "random weights: the answers mean nothing"
    assert "add_generation_prompt" in reader.get_field("tokenizer.chat_template").contents()
    assert reader.get_field("tokenizer.ggml.tokens").contents() == toy_vocabulary()


def test_every_byte_is_a_token_so_that_no_text_is_unknown() -> None:
    tokens = set(raw_tokens())
    assert all(bytes([byte]) in tokens for byte in range(256))


def test_no_two_tokens_have_the_same_text() -> None:
    tokens = raw_tokens()
    assert len(set(tokens)) == len(tokens)


def test_tokens_that_are_not_printable_ascii_have_no_part_in_the_output_but_their_low_odds(
    tmp_path: Path,
) -> None:
    reader = gguf.GGUFReader(write_toy_gguf(tmp_path / "toy.gguf"))
    output = next(tensor.data for tensor in reader.tensors if tensor.name == "output.weight")
    for row, token in zip(output, raw_tokens(), strict=True):
        if any(byte >= 0x7F for byte in token):
            assert row[0] < -10
            assert not row[1:].any()


def test_a_profile_takes_about_as_many_tokens_as_with_a_real_tokenizer() -> None:
    """By greedy longest match, as the engine does it; English takes 4 to 5 characters a token."""
    text = (
        b"The candidate is a senior software engineer with ten years of experience in distributed systems. "
        b"Current role: Staff Engineer at Northwind Analytics, San Francisco, since 2019-04-01. "
        b"Education: Bachelor of Science in Computer Science, University of Washington."
    )
    tokens = set(raw_tokens())
    longest = max(map(len, tokens))
    count = at = 0
    while at < len(text):
        at += next(size for size in range(longest, 0, -1) if text[at : at + size] in tokens)
        count += 1
    assert 3.0 < len(text) / count < 6.0


@pytest.mark.parametrize("options", [{"vocab_size": 100}, {"n_embd": 50}, {"n_layer": 0}, {"size_mib": 1}])
def test_a_size_out_of_range_is_refused_and_leaves_no_file(tmp_path: Path, options: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        write_toy_gguf(tmp_path / "toy.gguf", **options)
    assert list(tmp_path.iterdir()) == []


def test_size_mib_is_the_size_of_the_file_within_a_tenth(tmp_path: Path) -> None:
    size = write_toy_gguf(tmp_path / "toy.gguf", size_mib=24).stat().st_size / 2**20
    assert 21.6 < size < 26.4


def test_the_cached_file_is_written_once(tmp_path: Path) -> None:
    path = toy_gguf(cache_dir=tmp_path)
    before = path.stat()
    assert toy_gguf(cache_dir=tmp_path) == path
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert toy_gguf(seed=1, cache_dir=tmp_path) != path


def test_writers_at_the_same_time_leave_one_whole_file(tmp_path: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        paths = set(pool.map(lambda _: toy_gguf(cache_dir=tmp_path), range(3)))
    assert list(tmp_path.iterdir()) == list(paths)
    assert digest(paths.pop()) == digest(write_toy_gguf(tmp_path / "fresh"))


def test_importing_the_module_loads_neither_numpy_nor_gguf() -> None:
    code = "import sys, ollama_batch.testing.toy; print({'numpy', 'gguf'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
