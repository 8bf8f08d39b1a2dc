"""Finding a vocabulary file: given, in tiktoken's cache, in an installed package, or by download."""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.util
import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ollama_batch.errors import ConfigError, VocabularyMissingError
from ollama_batch.tokens._encodings import EncodingSpec, Ranks, build, spec_of, specs

if TYPE_CHECKING:
    import tiktoken

_log = logging.getLogger("ollama_batch.tokens")

_PACKAGES: Final = (
    ("litellm", "litellm_core_utils/tokenizers"),
    ("llama_index", "core/_static/tiktoken_cache"),
)
"""Installed packages that carry vocabulary files, named as in tiktoken's cache."""

_LARGEST: Final = 64 * 1024 * 1024  # bytes; the largest vocabulary has 3.6 MB


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A vocabulary file that is what it should be; `place` says where it was found, for people."""

    spec: EncodingSpec
    path: Path
    place: str

    def encoding(self) -> tiktoken.Encoding:
        """The encoding made from this file; made once per process while the file stays the same."""
        stat = self.path.stat()
        return _encoding(self.spec.name, str(self.path), stat.st_size, stat.st_mtime_ns)


def given(vocabulary: str | os.PathLike[str], encoding: str | None = None) -> Vocabulary:
    """The vocabulary in the file, or the folder of files, `vocabulary`.

    In a folder the file has the name it has in tiktoken's cache (the SHA-1 of its address) or its own,
    such as o200k_base.tiktoken. Without `encoding` a file is recognised by its checksum, and a folder
    gives o200k_base, else cl100k_base. Raises ConfigError if there is none, or its bytes are not that
    encoding's.
    """
    path = Path(vocabulary)
    if path.is_dir():
        names = [encoding] if encoding is not None else list(PREFERRED)
        for spec in map(spec_of, names):
            for name in spec.file_names:
                if (path / name).is_file():
                    _check(spec, path / name)
                    return Vocabulary(spec, path / name, "given")
        wanted = " or ".join(name for spec in map(spec_of, names) for name in spec.file_names)
        raise ConfigError(f"vocabulary is the folder {str(path)!r}; it has no file called {wanted}")
    if not path.is_file():
        raise ConfigError(f"vocabulary is {str(path)!r}; there is no such file or folder")
    if encoding is not None:
        spec = spec_of(encoding)
        _check(spec, path)
        return Vocabulary(spec, path, "given")
    digest = _sha256(path)
    for spec in _preferred_first():
        if spec.sha256 == digest:
            return Vocabulary(spec, path, "given")
    raise ConfigError(
        f"vocabulary {str(path)!r} is none that tiktoken knows, or it is damaged (SHA-256 {digest}): fetch "
        "it again, or make a tiktoken.Encoding of it and pass that"
    )


def find(encoding: str) -> Vocabulary | None:
    """The vocabulary of `encoding` on this machine, without network: tiktoken's cache, installed packages.

    Packages are found, not imported. A file with the wrong bytes is named in a warning and passed over.
    Raises ConfigError for an unknown encoding.
    """
    spec = spec_of(encoding)
    for place, path in _candidates(spec):
        if not path.is_file():
            continue
        try:
            _check(spec, path)
        except (ConfigError, OSError) as error:
            _log.warning("passed over a vocabulary file: %s", error)
            continue
        return Vocabulary(spec, path, place)
    return None


def download(encoding: str, *, timeout: float = 20.0) -> Vocabulary:
    """Fetch the vocabulary of `encoding` into tiktoken's cache folder, within `timeout` seconds in all.

    Raises VocabularyMissingError if it did not come in time, is not what it should be, or cannot be kept.
    """
    spec = spec_of(encoding)
    if not timeout > 0:
        raise ConfigError(f"download_timeout is {timeout}; it must be a positive number of seconds")
    folder = cache_folder()
    if folder is None:
        raise VocabularyMissingError(
            "TIKTOKEN_CACHE_DIR is empty, so that a download has no place to stay: "
            "set it to a folder, or pass vocabulary="
        )
    data = _fetched(spec, timeout)
    if hashlib.sha256(data).hexdigest() != spec.sha256:
        raise VocabularyMissingError(
            f"what {spec.url} sent is not the vocabulary of {encoding}: is there a proxy in between?"
        )
    path = folder / spec.file_names[0]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(dir=folder, prefix=path.name, suffix=".part")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(scratch).replace(path)
    except OSError as error:
        raise VocabularyMissingError(
            f"the vocabulary of {encoding} cannot be kept in {folder}: {error}"
        ) from error
    return Vocabulary(spec, path, "downloaded")


def cache_folder() -> Path | None:
    """The folder tiktoken keeps its vocabularies in; None if its variable is set and empty."""
    for name in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        folder = os.environ.get(name)
        if folder is not None:
            return Path(folder) if folder else None
    return Path(tempfile.gettempdir()) / "data-gym-cache"


PREFERRED: Final = ("o200k_base", "cl100k_base")
"""Encodings in the order they are tried where none is named."""


def _preferred_first() -> Sequence[EncodingSpec]:
    """Every encoding; several share a vocabulary, of those the plain one comes first."""
    return sorted(
        specs().values(), key=lambda spec: (spec.name not in PREFERRED, not spec.name.endswith("_base"))
    )


def _candidates(spec: EncodingSpec) -> Iterator[tuple[str, Path]]:
    folder = cache_folder()
    if folder is not None:
        yield "tiktoken's cache", folder / spec.file_names[0]
    for package, inside in _PACKAGES:
        for root in _package_folders(package):
            yield f"the package {package}", Path(root) / inside / spec.file_names[0]


def _package_folders(package: str) -> Sequence[str]:
    """The folders of an installed top-level package, which is not imported; none if it is not installed."""
    try:
        found = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # ValueError: something in sys.modules that has no spec
        return ()
    return () if found is None else list(found.submodule_search_locations or ())


def _check(spec: EncodingSpec, path: Path) -> None:
    digest = _sha256(path)
    if digest == spec.sha256:
        return
    other = next((known.name for known in _preferred_first() if known.sha256 == digest), None)
    what = "is damaged or something else" if other is None else f"is the vocabulary of {other}"
    raise ConfigError(
        f"{str(path)!r} should be the vocabulary of {spec.name} and {what} (SHA-256 {digest}, "
        f"wanted {spec.sha256})"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.lru_cache(maxsize=4)
def _encoding(name: str, path: str, size: int, mtime_ns: int) -> tiktoken.Encoding:
    ranks: Ranks = {}
    with Path(path).open("rb") as file:
        for line in file:
            token, _, rank = line.partition(b" ")
            if rank:
                ranks[base64.b64decode(token)] = int(rank)
    return build(name, ranks)


def _fetched(spec: EncodingSpec, timeout: float) -> bytes:
    """The bytes at the spec's address. The thread is left behind if even its DNS query outlives `timeout`."""
    outcome: list[bytes | Exception] = []

    def fetch() -> None:
        try:
            outcome.append(_get(spec.url, time.monotonic() + timeout))
        except Exception as error:  # handed to the caller's thread
            outcome.append(error)

    worker = threading.Thread(target=fetch, name="ollama-batch-download", daemon=True)
    worker.start()
    worker.join(timeout)
    got = outcome[0] if outcome else TimeoutError(f"nothing complete after {timeout:g} s")
    if isinstance(got, Exception):
        raise VocabularyMissingError(
            f"the vocabulary of {spec.name} could not be fetched from {spec.url} "
            f"({type(got).__name__}: {got}): pass vocabulary= with a local file, or use EstimateCounter"
        ) from got
    return got


def _get(url: str, deadline: float) -> bytes:
    import httpx

    left = max(0.1, deadline - time.monotonic())
    with httpx.stream("GET", url, timeout=left, follow_redirects=True) as reply:
        reply.raise_for_status()
        data = bytearray()
        for piece in reply.iter_bytes():
            data += piece
            if time.monotonic() > deadline or len(data) > _LARGEST:
                raise TimeoutError("the download was too slow, or far too large")
        return bytes(data)
