"""The option `--notify`: who is told that a run has ended, or makes no progress."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

from ollama_batch._command_words import command_words
from ollama_batch.errors import ConfigError

if TYPE_CHECKING:
    from ollama_batch.hooks import CommandHook, WebhookHook

_URL: Final = ("http://", "https://")


def add_notify_option(group: argparse._ArgumentGroup) -> None:
    """`--notify`."""
    group.add_argument(
        "--notify",
        action="append",
        default=[],
        metavar="HOW",
        help="tell somebody when the run ends or stalls: a URL, which gets JSON, or a command, as in "
        "'notify-send {message}'; repeatable",
    )


def notice_hooks(arguments: argparse.Namespace) -> tuple[CommandHook | WebhookHook, ...]:
    """What `--notify` asks for. Raises ConfigError for what could tell nobody."""
    return tuple(_hook(how) for how in arguments.notify)


def _hook(how: str) -> CommandHook | WebhookHook:
    from ollama_batch.hooks import CommandHook, WebhookHook

    try:
        if how.lower().startswith(_URL):
            return WebhookHook(how)
        return CommandHook(command_words("--notify", how, kinds="a URL, or a command"))
    except ConfigError as error:
        if str(error).startswith("--notify"):
            raise
        # A URL may be a secret, and the error names what is wrong with a command.
        raise ConfigError(f"--notify: {error}") from error
