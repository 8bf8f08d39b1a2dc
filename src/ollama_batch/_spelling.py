"""The library's messages in the spelling of the command line: `num_ctx=512` becomes `--num-ctx 512`."""

from __future__ import annotations

import logging
import re
import sys
from typing import Final

_PHRASES: Final = {
    'row_models="ignore"': "--ignore-row-models",
    "overwrite=True": "--overwrite",
    "retry_failed=True": "--retry-failed",
    "(load_timeout)": "(--load-timeout)",
    "(recover_timeout)": "(--recover-timeout)",
    "; a single prompt goes in a list: [prompt]": "",
    "think=True": "--think on",
    "think=False": "--think off",
    "turn think off": "set --think off",
    "raise num_ctx": "raise --num-ctx",
    "lower max_tokens": "lower --max-tokens",
    "raise max_tokens": "raise --max-tokens",
    "set trim": "set --trim",
    "raise the conversation limit": "raise --conversation-limit",
    "message='": "--template '",
    "message has {": "--template has {",
    "since message has no": "since --template has no",
    "message names nothing of": "--template names nothing of",
    "(OllamaEngine, --api ollama)": "(--api ollama)",
    "use OllamaEngine": "use --api ollama",
    "that OllamaEngine knows": "that the engine knows",
    "that OpenAIEngine knows": "that the engine knows",
    ", or give it to all requests with OpenAIEngine(extra_body=...)": "",
    "give that folder as models=": "set the variable OLLAMA_MODELS to that folder",
    "or give its place with binary=": "or put it on the PATH",
    "the same call": "the same command",
    "more in report.notes": "more in the log above",
    "give codes= that tell": "give --code that tell",
    'VramGuard(limit="15GiB")': "--vram-limit 15GiB",
    'VramGuard(limit="90%")': "--vram-limit 90%",
    'RamGuard(limit="15GiB")': "--ram-limit 15GiB",
    'RamGuard(limit="90%")': "--ram-limit 90%",
    ', or say how much there is (VramGuard(total="16GiB"))': "",
    "or give guards= other limits": "or give --vram-limit or --ram-limit another value",
    "to_parquet() needs": "--parquet needs",
}

_FLAGS: Final = {
    **{
        name: "--" + name.replace("_", "-")
        for name in (
            *("model", "base_url", "num_ctx", "max_tokens", "think", "on_length", "mode", "trim", "order"),
            *("concurrency", "timeout", "errors", "journal", "on_invalid", "max_failures", "deadline"),
            *("load_timeout", "recover_timeout"),
            *("limit", "lanes", "high", "low", "keep_messages", "gguf", "progress"),
            *("cv_tokens", "swarm_tokens", "praxis_tokens", "weights"),
            *("omit", "temperature", "criteria", "split", "hours"),
        )
    },
    "output": "-o",
    "rows": "--for",
    "every": "--trim-every",
    "allow_models": "--allow-model",
    "retry_failed": "--retry-failed",
    "response_model": "--schema",
}
"""The arguments of the library that `ollama-batch run`, `doctor`, `aris` and `aris-back` have options for."""

_CALL: Final = re.compile(r"\b(BatchRunner|ConversationPolicy)\((\w+)(=[^()]*)\)")
_PHRASE: Final = re.compile(
    # A report may have broken a line within one.
    "|".join(re.escape(phrase).replace("\\ ", r"\s+") for phrase in _PHRASES)
)
_ARGUMENT: Final = re.compile(
    # Not within a path or an address: those are the user's own.
    rf"(?<![\w./=&?\\-])({'|'.join(sorted(_FLAGS, key=len, reverse=True))})="
    r"""(?P<value>\.\.\.|"[^"\n]*"|'[^'\n]*'|[\w.+-]*\w)?"""
)


def as_options(text: str) -> str:
    """`text` with every argument of the library that has an option in that option's spelling."""
    phrased = _PHRASE.sub(lambda found: _PHRASES[" ".join(found[0].split())], _CALL.sub(_opened, text))
    return _ARGUMENT.sub(lambda found: _option(found[1], found["value"]), phrased)


class StandardError(logging.Handler):
    """Writes above a live bar, which puts itself in the place of `sys.stderr` while it runs."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line, in the spelling of options."""
        try:
            sys.stderr.write(as_options(self.format(record)) + "\n")
        except OSError:
            pass  # nobody reads it


def _opened(call: re.Match[str]) -> str:
    """The arguments of a call, where they have options; the call as it is where they have none."""
    name, first, rest = call.groups()
    if first not in _FLAGS:
        return call[0]
    # The limit of a conversation is another one than that of a run.
    own = name == "ConversationPolicy" and first == "limit"
    return f"--conversation-limit {rest[1:]}" if own else first + rest


def _option(name: str, value: str | None) -> str:
    return _FLAGS[name] if value is None else f"{_FLAGS[name]} {value.strip(chr(34) + chr(39))}"
