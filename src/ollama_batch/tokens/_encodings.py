"""What tiktoken knows of its encodings, asked without its reader, which looks in caches and downloads."""

from __future__ import annotations

import functools
import importlib
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha1
from typing import TYPE_CHECKING, Any

from ollama_batch.errors import ConfigError

if TYPE_CHECKING:
    import tiktoken

Ranks = dict[bytes, int]


@dataclass(frozen=True, slots=True)
class EncodingSpec:
    """An encoding without its vocabulary: where that comes from, and the SHA-256 of its bytes."""

    name: str
    url: str
    sha256: str

    @property
    def file_names(self) -> tuple[str, str]:
        """The names its file goes by: the SHA-1 of its address (tiktoken's cache), or the address's own."""
        key = sha1(self.url.encode(), usedforsecurity=False).hexdigest()
        return key, self.url.rpartition("/")[2]


class _NotOneFileError(Exception):
    """Raised for an encoding whose vocabulary is not one file of ranks (gpt2)."""


def _tiktoken_module() -> types.ModuleType:
    """The module in which tiktoken defines its encodings; by name, since it has no types."""
    return importlib.import_module("tiktoken_ext.openai_public")


def _arguments(name: str, load: Callable[..., Ranks]) -> Mapping[str, Any]:
    """What tiktoken passes to `Encoding` for `name`, with `load` in the place of its own reader.

    The pattern, special tokens, address and checksum stay tiktoken's. Its functions run on a copy of their
    module's names, so that nothing global changes.
    """
    module = _tiktoken_module()

    def refuse(*_: object, **__: object) -> Ranks:
        raise _NotOneFileError

    names: dict[str, Any] = dict(vars(module))
    for key, value in list(names.items()):
        if isinstance(value, types.FunctionType):
            names[key] = types.FunctionType(value.__code__, names, key, value.__defaults__, value.__closure__)
    names["load_tiktoken_bpe"] = load
    names["data_gym_to_mergeable_bpe_ranks"] = refuse
    made: Mapping[str, Any] = names[name]()
    return made


@functools.cache
def specs() -> dict[str, EncodingSpec]:
    """Every encoding of the installed tiktoken that is made from one vocabulary file, by name."""
    found: dict[str, EncodingSpec] = {}
    for name in _tiktoken_module().ENCODING_CONSTRUCTORS:
        asked: list[tuple[str, str]] = []

        def note(url: str, expected_hash: str, asked: list[tuple[str, str]] = asked) -> Ranks:
            asked.append((url, expected_hash))
            return {}

        try:
            _arguments(name, note)
        except _NotOneFileError:
            continue
        if len(asked) == 1:
            found[name] = EncodingSpec(name, *asked[0])
    return found


def spec_of(name: str) -> EncodingSpec:
    """The encoding called `name`. Raises ConfigError for a name that tiktoken does not have."""
    known = specs()
    if name not in known:
        raise ConfigError(
            f"encoding is {name!r}; known are {', '.join(sorted(known))}, "
            "and any other as a tiktoken.Encoding object"
        )
    return known[name]


def build(name: str, ranks: Ranks) -> tiktoken.Encoding:
    """The encoding `name` with the vocabulary `ranks`, without touching tiktoken's registry."""
    import tiktoken

    return tiktoken.Encoding(**_arguments(name, lambda *_, **__: ranks))
