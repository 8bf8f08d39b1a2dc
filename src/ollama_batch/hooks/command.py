"""A command that is run when a run ends or stalls."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Collection, Sequence
from typing import Final

from ollama_batch.errors import ConfigError
from ollama_batch.hooks._outbox import log
from ollama_batch.hooks.notice import FIELDS, Notice, NoticeHook, Occasion

_PLACE: Final = re.compile(r"\{([a-z_]+)\}")


class CommandHook(NoticeHook):
    """Runs `command` at the end of a run and when it stalls, or `on` other occasions.

    `command` is a program and its arguments, without a shell. An argument that is `{message}`, or another
    field of Notice, is replaced by it; the whole Notice comes on standard input, as one line of JSON. What it
    prints is dropped. It has `timeout_s` seconds, then it is killed. The run does not wait for it, and goes
    on whatever becomes of it; the process waits for it at its exit. Raises ConfigError if there is no such
    program.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        on: Collection[Occasion] = ("finished", "stalled"),
        timeout_s: float = 30.0,
    ) -> None:
        super().__init__(on=on, timeout_s=timeout_s)
        words = None if isinstance(command, str) else list(command)
        if not words or not all(isinstance(word, str) for word in words):
            raise ConfigError(
                f"command={command!r}: must be a list of words, as in ['notify-send', '{{message}}']"
            )
        for word in words:
            place = _PLACE.fullmatch(word)
            if place is not None and place[1] not in FIELDS:
                raise ConfigError(f"command: {word} is no field of a notice ({', '.join(sorted(FIELDS))})")
        if shutil.which(words[0]) is None:
            raise ConfigError(f"command: there is no program {words[0]!r}, or it may not be run")
        self._command = words

    def _deliver(self, notice: Notice) -> None:
        told = notice.to_dict()
        command = []
        for word in self._command:
            place = _PLACE.fullmatch(word)
            command.append(word if place is None else _shown(told[place[1]]))
        try:
            done = subprocess.run(  # noqa: S603 - the user's own command, in words
                command,
                input=json.dumps(told) + "\n",
                text=True,
                encoding="utf-8",
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=self._timeout_s,
                check=False,
                # Ctrl-C at the terminal is meant for the run.
                start_new_session=True,
            )
        except subprocess.TimeoutExpired:
            log.warning("the command %r took more than %g s and was ended", command[0], self._timeout_s)
            return
        if done.returncode != 0:
            log.warning("the command %r ended with %d", command[0], done.returncode)


def _shown(value: object) -> str:
    return "" if value is None else str(value)
