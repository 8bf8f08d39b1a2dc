"""What the options of `ollama-batch run` stand for: its policy, its inputs, its hooks."""

from __future__ import annotations

import argparse
import io
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from ollama_batch._arguments import STRATEGIES
from ollama_batch.errors import ConfigError

if TYPE_CHECKING:
    from ollama_batch.conversation import ConversationPolicy
    from ollama_batch.hooks.prometheus import PrometheusHook
    from ollama_batch.structured import JsonSchema
    from ollama_batch.trim import TrimStrategy

TOY: Final = "toy"

LOOKED_AT: Final = 100
"""So many lines are looked at for one that names a model."""

POLICY: Final = {
    "lanes": "lanes",
    "every": "trim_every",
    "high": "high",
    "low": "low",
    "keep_messages": "keep_messages",
    "limit": "conversation_limit",
}
"""The fields of a ConversationPolicy, and the options that set them."""


def trim_strategy(arguments: argparse.Namespace) -> TrimStrategy | None:
    """The strategy that `--trim` names."""
    if arguments.trim is None:
        return None
    from ollama_batch import trim

    strategy: TrimStrategy = getattr(trim, STRATEGIES[arguments.trim])()
    return strategy


def conversation_policy(arguments: argparse.Namespace) -> ConversationPolicy | None:
    """How conversations are held. Raises ConfigError for options that only conversations have."""
    given = {
        name: value for name, option in POLICY.items() if (value := getattr(arguments, option)) is not None
    }
    if arguments.mode == "independent":
        if given:
            options = [f"--{POLICY[name].replace('_', '-')}" for name in given]
            one = len(options) == 1
            raise ConfigError(
                f"{' and '.join(options)} {'is' if one else 'are'} for --mode conversation: add that, or "
                f"leave {'it' if one else 'them'} out"
            )
        return None
    from ollama_batch.conversation import ConversationPolicy

    return ConversationPolicy(**given)


def row_models(arguments: argparse.Namespace) -> Literal["check", "ignore"]:
    """Whether rows may name other models: a toy answers whatever they name, unless models are listed."""
    toy = arguments.toy and not arguments.allow_model
    return "ignore" if arguments.ignore_row_models or toy else "check"


def fallback_model(arguments: argparse.Namespace) -> str:
    """The model where neither an option nor the first row names one."""
    if arguments.toy:
        return TOY
    if arguments.gguf is not None:
        return Path(arguments.gguf).stem
    raise ConfigError("say which model answers, as in --model gemma3:12b")


def metrics_hooks(arguments: argparse.Namespace) -> Sequence[PrometheusHook]:
    """What serves figures of the run, to be closed by the caller; nothing unless it is asked for.

    Raises ConfigError if the port cannot be had, and MissingExtraError.
    """
    if arguments.metrics_port is None:
        return ()
    from ollama_batch.hooks.prometheus import PrometheusHook

    return (PrometheusHook(arguments.metrics_port),)


def body_defaults(arguments: argparse.Namespace) -> dict[str, Any]:
    """Body fields for rows that do not set them."""
    return {} if arguments.temperature is None else {"temperature": arguments.temperature}


def response_model(arguments: argparse.Namespace) -> JsonSchema | None:
    """The schema that every answer must fit. Raises ConfigError for a file that holds none."""
    if arguments.schema is None:
        return None
    from ollama_batch.structured.form import JsonSchema

    file = Path(arguments.schema)
    try:
        schema = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--schema {file}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--schema {file}: is not JSON: {error}") from error
    try:
        return JsonSchema(schema, name=file.stem)
    except ConfigError as error:
        raise ConfigError(f"--schema {file}: {error.message.removeprefix('JsonSchema: ')}") from error


class StandardInput:
    """Standard input as a binary file that can be looked at before it is read, without losing what was seen.

    Not `sys.stdin`, which Python closes at its exit: that waits for, or dies of, a thread still reading it.
    """

    name = "<stdin>"

    def __init__(self) -> None:
        self._file = open(self.name, "rb", opener=lambda *_: os.dup(0))  # noqa: SIM115 - `close` is below
        self._looking = self._reading = False
        self._seen = io.BytesIO()

    def model_of_first_row(self) -> tuple[str | None, str]:
        """The model that the first row names, and where; waits for that row."""
        from ollama_batch.jsonl import LineError, parse_line, read_lines

        self._looking = True
        found: tuple[str | None, str] = (None, "")
        for line in islice(read_lines(self), LOOKED_AT):
            with suppress(LineError):
                found = parse_line(line.raw).params.get("model"), f"line {line.line} of {self.name}"
                break
            if line.too_long:
                break
        self._looking = False
        self._seen.seek(0)
        return found

    def readline(self, size: int = -1, /) -> bytes:
        """The next line with its newline, cut at `size` bytes; first those that were looked at."""
        line = b"" if self._looking else self._seen.readline(size)
        if not line.endswith(b"\n") and len(line) != size:
            self._reading = True
            line += self._file.readline(size - len(line) if size >= 0 else -1)
            self._reading = False
        if self._looking:
            self._seen.write(line)
        return line

    def close(self) -> None:
        """Close it, unless a thread still waits for a line: that would have to come first."""
        if not self._reading:
            self._file.close()

    def __enter__(self) -> StandardInput:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def model_of_first_row(paths: Sequence[str]) -> tuple[str | None, str]:
    """The model that the input names and where, if its first rows can be looked at."""
    from ollama_batch.sources import FileSource, ScannedRow, open_sources

    for source in open_sources(input_paths(paths))[:1]:
        if isinstance(source, FileSource):
            for row in islice(source.scan(), LOOKED_AT):
                if isinstance(row, ScannedRow):
                    return row.request.params.get("model"), f"line {row.line} of {source.name}"
    return None, ""


def input_paths(paths: Sequence[str]) -> list[Path]:
    """Files and patterns as the library takes them: never prompts, whatever they are called."""
    if "-" in paths:
        raise ConfigError("- (standard input) cannot be used here, or beside other inputs")
    return [Path(path) for path in paths]
