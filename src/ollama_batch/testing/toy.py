"""A toy model: a GGUF file with random weights, which a real engine loads in a moment, offline.

Its answers are words without meaning. Everything around them is real: prompts of true length, answers
that end by themselves, prefix caching, schema-constrained output, speed that a benchmark can compare.
Needs the extra `embedded` (gguf, numpy).
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ollama_batch.errors import ConfigError, MissingExtraError
from ollama_batch.testing._toy_words import PIECES, PUNCTUATION, WORDS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TOY_NAME = "toy"
TOY_NOTE = "random weights: the answers mean nothing"

_FORMAT = 1  # raise it when the weights or the vocabulary change: part of the name of a cached file

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Some dimensions of the residual stream carry a fact about the last token, untouched by the layers; what
# a token's output row holds there raises or lowers its odds after such a token.
_ALWAYS, _AFTER_SENTENCE, _AFTER_BREAK, _AFTER_QUOTE, _AFTER_DIGIT, _AFTER_WORD, _AFTER_SPACE = range(7)
_FACTS = 8
_FACT_SIZE = 4.0

_NEVER = -40.0
_WORD_SPREAD = 3.0  # nats: standard deviation of a word's odds from one context to the next


@dataclass(slots=True)
class _Token:
    text: bytes
    kind: int
    is_fact: tuple[int, ...] = ()
    odds: dict[int, float] = field(default_factory=dict)


def toy_vocabulary(vocab_size: int | None = None) -> list[str]:
    """The texts of the toy's tokens in order of their ids, non-ASCII bytes escaped."""
    return [_escape(token) for token in _tokens(vocab_size)]


def write_toy_gguf(
    path: str | os.PathLike[str],
    *,
    seed: int = 0,
    vocab_size: int | None = None,
    n_embd: int = 64,
    n_layer: int = 2,
    n_ctx_train: int = 131_072,
    size_mib: int | None = None,
) -> Path:
    """Write a toy model to `path`, replacing what is there at once or not at all; returns the path.

    The same arguments give the same bytes. `vocab_size` limits the number of tokens (None: all, about
    4,000; 512 at least); `size_mib` sets the size of the file in MiB, about, and overrules `n_embd` and
    `n_layer`. Raises ConfigError for a size out of range, MissingExtraError without gguf or numpy.
    """
    if vocab_size is not None and vocab_size < 512:
        raise ConfigError(f"vocab_size is {vocab_size}; the toy model needs 512 tokens at least")
    if n_embd < 32 or n_embd % 32 or n_layer < 1:
        raise ConfigError(f"n_embd={n_embd}, n_layer={n_layer}: n_embd is a multiple of 32, n_layer positive")
    tokens = _tokens(vocab_size)
    half = size_mib is not None
    if size_mib is not None:
        n_embd, n_layer = _shape_for(size_mib, len(tokens))
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=target.parent, prefix=target.name, suffix=".part")
    os.close(handle)
    try:
        _write(scratch, tokens, seed=seed, n_embd=n_embd, n_layer=n_layer, n_ctx=n_ctx_train, half=half)
        Path(scratch).replace(target)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise
    return target


def toy_gguf(
    *, seed: int = 0, size_mib: int | None = None, cache_dir: str | os.PathLike[str] | None = None
) -> Path:
    """A toy model in the user's cache folder (or `cache_dir`), written there on first use.

    Safe when several processes ask at once: each writes its own file and renames it, all are equal.
    """
    size = "" if size_mib is None else f"-{size_mib}MiB"
    name = f"toy-{_package_version()}-{_FORMAT}-{seed}{size}.gguf"
    folder = Path(cache_dir) if cache_dir is not None else _user_cache_dir()
    path = folder / name
    if not path.exists():
        write_toy_gguf(path, seed=seed, size_mib=size_mib)
    return path


def _package_version() -> str:
    try:
        return version("ollama-batch")
    except PackageNotFoundError:
        return "source"


def _user_cache_dir() -> Path:
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(base) / "ollama-batch"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="ollama-batch-"))  # a read-only home: this process only
    return folder


def _shape_for(size_mib: int, vocab: int) -> tuple[int, int]:
    """Width and depth of a half-precision model of about `size_mib` MiB."""
    budget = size_mib * 2**20 // 2
    for n_embd in (1024, 768, 512, 384, 256, 128, 64):
        layers = (budget - 2 * vocab * n_embd) // (4 * n_embd**2 + 3 * n_embd * _ff(n_embd))
        if layers >= 6:
            return n_embd, layers
    raise ConfigError(f"size_mib is {size_mib}; the toy model with its vocabulary needs more")


def _ff(n_embd: int) -> int:
    return 3 * n_embd


def _tokens(limit: int | None) -> list[_Token]:
    """The vocabulary: control tokens, every byte, marks, then words from the most to the least useful."""
    normal, control, unknown = 1, 3, 2
    never = {_ALWAYS: _NEVER}
    tokens = [
        _Token(b"<unk>", unknown, odds=never),
        _Token(b"<|im_start|>", control, odds=never),
        # An answer ends only after a full stop: never empty, and never in the middle of a sentence.
        _Token(b"<|im_end|>", control, odds={_ALWAYS: -12.0, _AFTER_SENTENCE: 23.6}),
        _Token(b"<|endoftext|>", control, odds=never),
    ]
    every_byte = (bytes([number]) for number in range(256))
    tokens.extend(_Token(byte, normal, _facts_of(byte), _byte_odds(byte[0])) for byte in every_byte)
    seen = {token.text for token in tokens}

    def add(text: str, **odds: float) -> None:
        raw = text.encode()
        if raw not in seen:
            seen.add(raw)
            by_fact = {_ALWAYS: odds["always"], _AFTER_QUOTE: odds.get("quote", 0.0)}
            by_fact[_AFTER_BREAK] = odds.get("line", 0.0)
            by_fact[_AFTER_SENTENCE] = odds.get("sentence", 0.0)
            tokens.append(_Token(raw, normal, _facts_of(raw), by_fact))

    for mark in PUNCTUATION:
        add(mark, always=-14.0)
    for rank, word in enumerate(WORDS):
        add(f" {word}", always=0.0, quote=-6.0, line=-12.0, sentence=-5.0)
        add(word, always=-9.0, quote=9.0, line=5.0, sentence=-9.0)
        if rank < 500:
            add(f" {word.capitalize()}", always=-6.0, quote=-6.0, sentence=6.0, line=-12.0)
            add(word.capitalize(), always=-9.0, line=9.0, sentence=-9.0)
        if rank == 250:
            for piece in PIECES:
                add(piece, always=-10.0)
            for number in range(10, 100):
                add(str(number), always=-10.0)
    for piece, count in _letter_runs():
        if count >= 8:
            add(piece, always=-10.0)
    return tokens if limit is None else tokens[:limit]


def _letter_runs() -> list[tuple[str, int]]:
    """Runs of two and three letters in the words, commonest first: what unknown words are spelt with."""
    counts: dict[str, int] = {}
    for word in WORDS:
        for size in (2, 3):
            for at in range(len(word) - size + 1):
                run = word[at : at + size]
                counts[run] = counts.get(run, 0) + 1
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _facts_of(text: bytes) -> tuple[int, ...]:
    last = text[-1:]
    if last in b".!?":
        return (_AFTER_SENTENCE,)
    if last == b"\n":
        return (_AFTER_BREAK,)
    if last == b'"':
        return (_AFTER_QUOTE,)
    if last.isdigit():
        return (_AFTER_DIGIT,)
    if last.isalpha():
        return (_AFTER_WORD,)
    if last == b" ":
        return (_AFTER_SPACE,)
    return ()


_MARK_ODDS: dict[str, dict[int, float]] = {
    ".": {_ALWAYS: -6.0, _AFTER_WORD: 10.2},
    "?": {_ALWAYS: -10.0, _AFTER_WORD: 10.2},
    ",": {_ALWAYS: -6.0, _AFTER_WORD: 10.0, _AFTER_QUOTE: 5.0, _AFTER_DIGIT: 5.0},
    ":": {_ALWAYS: -4.0},
    "\n": {_ALWAYS: -8.0, _AFTER_SENTENCE: 10.0, _AFTER_BREAK: -20.0},
    " ": {_ALWAYS: -12.0, _AFTER_SPACE: -20.0},
    '"': {_ALWAYS: 3.5, _AFTER_SENTENCE: 4.0, _AFTER_QUOTE: -14.0, _AFTER_BREAK: -6.0},
    "}": {_ALWAYS: -8.0, _AFTER_QUOTE: 10.0, _AFTER_DIGIT: 10.0},
    "]": {_ALWAYS: -8.0, _AFTER_QUOTE: 10.0, _AFTER_DIGIT: 10.0},
}


def _byte_odds(byte: int) -> dict[int, float]:
    """Odds of a single byte: what is not printable ASCII is never written, so that output is valid UTF-8."""
    mark = chr(byte)
    if mark in _MARK_ODDS:
        return _MARK_ODDS[mark]
    if not 0x20 <= byte < 0x7F or mark == "\\":
        return {_ALWAYS: _NEVER}
    return {_ALWAYS: -9.0, _AFTER_DIGIT: -3.0} if mark.isdigit() else {_ALWAYS: -12.0}


def _escape(token: _Token) -> str:
    """A token's text as the engine's greedy byte tokenizer expects it."""
    return token.text.decode() if token.kind != 1 else repr(token.text)[2:-1]


def _write(
    path: str, tokens: list[_Token], *, seed: int, n_embd: int, n_layer: int, n_ctx: int, half: bool
) -> None:
    try:
        import gguf
        import numpy as np
    except ImportError as error:
        raise MissingExtraError(
            f"the toy model needs {error.name}, which is not installed: install the extra, "
            'pip install ".[embedded]" in the project\'s folder (or: pip install xllamacpp gguf numpy)'
        ) from error
    rng = np.random.default_rng(seed)
    n_ff = _ff(n_embd)
    head = 64 if n_embd % 64 == 0 else 32  # few and wide heads: an engine's cost of attention is per head

    def matrix(
        rows: int, columns: int, gain: float, *, keep_facts: bool = False
    ) -> NDArray[np.floating[Any]]:
        weights = rng.standard_normal((rows, columns), dtype=np.float32) * np.float32(gain / columns**0.5)
        if keep_facts:
            weights[:_FACTS] = 0.0
        elif columns == n_embd:
            weights[:, :_FACTS] = 0.0  # a constant input would pull every answer to the same few words
        return weights.astype(np.float16) if half else weights

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(TOY_NAME)
    writer.add_description(TOY_NOTE)
    writer.add_context_length(n_ctx)
    writer.add_embedding_length(n_embd)
    writer.add_block_count(n_layer)
    writer.add_feed_forward_length(n_ff)
    writer.add_head_count(n_embd // head)
    writer.add_head_count_kv(n_embd // head)
    writer.add_rope_dimension_count(head)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if half else gguf.LlamaFileType.ALL_F32)
    # The greedy longest-match tokenizer needs no merges or scores, and every byte is a token.
    writer.add_tokenizer_model("rwkv")
    writer.add_token_list([_escape(token) for token in tokens])
    writer.add_token_types([token.kind for token in tokens])
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)

    spread = 3.9  # of the residual stream at the end, in units of an embedding's; layers add up to it
    rows = rng.standard_normal((len(tokens), n_embd), dtype=np.float32)
    rows[:, :_FACTS] = 0.0
    rows[:, _ALWAYS] = _FACT_SIZE
    for index, token in enumerate(tokens):
        for fact in token.is_fact:
            rows[index, fact] = _FACT_SIZE
    norm = ((spread**2 * (n_embd - _FACTS) + 2 * _FACT_SIZE**2) / n_embd) ** 0.5
    output = rng.standard_normal((len(tokens), n_embd), dtype=np.float32)
    output *= np.float32(_WORD_SPREAD / n_embd**0.5)
    output[:, :_FACTS] = 0.0
    for index, token in enumerate(tokens):
        if token.text in (b".", b'"', b"<|im_end|>"):
            output[index] *= 0.6  # a prompt that dislikes one of them must not make all of its answers long
        for fact, nats in token.odds.items():
            output[index, fact] = nats * norm / _FACT_SIZE
            if nats == _NEVER:
                output[index, _FACTS:] = 0.0

    kind = np.float16 if half else np.float32
    writer.add_tensor("token_embd.weight", rows.astype(kind))
    writer.add_tensor("output_norm.weight", np.ones(n_embd, dtype=np.float32))
    writer.add_tensor("output.weight", output.astype(kind))
    share = ((spread**2 - 1) / (7 * n_layer)) ** 0.5
    for layer in range(n_layer):
        block = f"blk.{layer}"
        writer.add_tensor(f"{block}.attn_norm.weight", np.ones(n_embd, dtype=np.float32))
        writer.add_tensor(f"{block}.ffn_norm.weight", np.ones(n_embd, dtype=np.float32))
        # Sharp attention: which earlier token counts changes at every step, so greedy answers do not loop.
        writer.add_tensor(f"{block}.attn_q.weight", matrix(n_embd, n_embd, 2.6))
        writer.add_tensor(f"{block}.attn_k.weight", matrix(n_embd, n_embd, 2.6))
        writer.add_tensor(f"{block}.attn_v.weight", matrix(n_embd, n_embd, 1.0))
        writer.add_tensor(f"{block}.attn_output.weight", matrix(n_embd, n_embd, 1.1 * share, keep_facts=True))
        writer.add_tensor(f"{block}.ffn_gate.weight", matrix(n_ff, n_embd, 2.0))
        writer.add_tensor(f"{block}.ffn_up.weight", matrix(n_ff, n_embd, 2.0))
        writer.add_tensor(f"{block}.ffn_down.weight", matrix(n_embd, n_ff, 0.87 * share, keep_facts=True))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
