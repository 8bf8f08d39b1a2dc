"""The option `--notify`: who is told that a run has ended, or makes no progress."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from ollama_batch._command_words import command_words
from ollama_batch._spelling import as_options
from ollama_batch.errors import ConfigError
from ollama_batch.events import Event, Hook, RunFinished, RunPaused

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


def notice_hooks(arguments: argparse.Namespace) -> tuple[Hook, ...]:
    """What `--notify` asks for. Raises ConfigError for what could tell nobody."""
    return tuple(_Spelled(_hook(how)) for how in arguments.notify)


class _Spelled:
    """Has a hook told in the words of the command line why a run has ended, or waits."""

    def __init__(self, hook: Hook) -> None:
        self._hook = hook

    def on_event(self, event: Event) -> None:
        if isinstance(event, RunFinished) and event.error is not None:
            event = replace(event, error=as_options(event.error))
        elif isinstance(event, RunPaused):
            event = replace(event, message=as_options(event.message))
        self._hook.on_event(event)


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
