"""A command in an option's value, which no shell reads."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Final

from ollama_batch.errors import ConfigError

_OPERATORS: Final = frozenset("();<>|&")


def command_words(option: str, command: str, *, kinds: str) -> tuple[str, ...]:
    """The program and its arguments; `kinds` says all that the option takes.

    Raises ConfigError where they need a shell, or there is no such program.
    """
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.commenters, lexer.whitespace_split = "", True
    try:
        words, parts = shlex.split(command), list(lexer)
    except ValueError as error:
        raise ConfigError(f"{option} {command}: cannot be read as a command: {error}") from error
    operators = [part for part in parts if part and _OPERATORS.issuperset(part)]
    if operators:
        raise ConfigError(
            f"{option} {command}: no shell reads {operators[0]} here; put it into a script, or give "
            "sh -c '...'"
        )
    if not words or not words[0]:
        raise ConfigError(f"{option} is empty: give {kinds}")
    program = str(Path(words[0]).expanduser()) if words[0].startswith("~") else words[0]
    if shutil.which(program) is None:
        raise ConfigError(
            f"{option} {command}: there is no program {words[0]!r}, or it may not be run: give {kinds}"
        )
    return program, *words[1:]
