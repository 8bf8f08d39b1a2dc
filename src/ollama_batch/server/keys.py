"""API keys: known by salted digests only, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Collection

from ollama_batch.errors import ConfigError

LEAST_CHARS = 16
MOST_CHARS = 512

ANYBODY = ""
"""The owner of everything on a server without keys."""


def parse_keys(text: str) -> list[str]:
    """The keys in the value of an environment variable: separated by commas or white space."""
    return [key for key in re.split(r"[,\s]+", text) if key]


def check_keys(keys: Collection[str]) -> list[str]:
    """The keys, each once. Raises ConfigError, which repeats none of them, for one that is too short."""
    if isinstance(keys, str):
        raise ConfigError("keys: must be a list of keys, as in ['sk-...']")
    for number, key in enumerate(keys, 1):
        if not LEAST_CHARS <= len(key) <= MOST_CHARS or not key.isprintable():
            raise ConfigError(
                f"keys: number {number} must have {LEAST_CHARS} to {MOST_CHARS} printable characters: "
                "make one with: openssl rand -hex 24"
            )
    return list(dict.fromkeys(keys))


class Keys:
    """Who may ask. An owner's name is a digest of its key, so that no key is ever kept."""

    def __init__(self, keys: Collection[str], salt: bytes) -> None:
        self._salt = salt
        self._digests = [self._digest(key) for key in check_keys(keys)]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def owner(self, authorization: str | None) -> str | None:
        """Whose the key in an Authorization header is; None if nobody's. Takes as long for any key."""
        if not self._digests:
            return ANYBODY
        scheme, _, key = (authorization or "").partition(" ")
        given = self._digest(key.strip()[: MOST_CHARS + 1])
        found: str | None = None
        for digest in self._digests:
            if hmac.compare_digest(digest, given):
                found = digest[:32]
        return found if scheme.lower() == "bearer" else None

    def _digest(self, key: str) -> str:
        return hmac.new(self._salt, key.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()
