"""The options that say which engine answers, and the engine they ask for."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ollama_batch._option_values import count
from ollama_batch.errors import ConfigError

if TYPE_CHECKING:
    from ollama_batch.engines.base import Engine

KV_TYPES: Final = ("f16", "q8_0", "q4_0")


def add_engine_options(
    parser: argparse.ArgumentParser, there: argparse._ArgumentGroup, *, key_option: str, key_help: str
) -> None:
    """Options of an engine that is there, in the group `there`, and of one that is started.

    `key_option` is what the option for its key is called.
    """
    there.add_argument("--base-url", metavar="URL", help="default: OLLAMA_HOST, else this machine")
    there.add_argument(
        "--api",
        choices=("ollama", "openai"),
        help="ollama (default), or openai: vLLM, llama.cpp, LM Studio; needs --base-url",
    )
    there.add_argument(key_option, dest="key_variable", metavar="VAR", help=key_help)
    parser.set_defaults(key_option=key_option)
    own = parser.add_argument_group(
        "engine of its own",
        "Started instead of using one that is there, restarted when it dies, ended at the end.",
    )
    own.add_argument(
        "--managed", action="store_true", help="an `ollama serve`, with --slots and --kv-cache-type"
    )
    own.add_argument("--embedded", action="store_true", help="a llama.cpp, no server needed; with --gguf")
    own.add_argument("--gguf", metavar="F", help="the model file of --embedded")
    own.add_argument("--toy", action="store_true", help="embedded, with random weights: to try things out")
    own.add_argument(
        "--slots",
        type=count,
        metavar="N",
        help="requests it works on at a time, each with a context of its own (default: 4)",
    )
    own.add_argument(
        "--kv-cache-type",
        choices=KV_TYPES,
        help="of --managed: q8_0 takes half the memory of f16, q4_0 a quarter, and changes answers a little "
        "(default: the environment's, else f16)",
    )


def own_engine(arguments: argparse.Namespace) -> str | None:
    """The option that asks for an engine of the run's own; None if somebody else runs it."""
    for option in ("managed", "toy", "gguf", "embedded"):
        if getattr(arguments, option):
            return f"--{option}"
    return None


def make_engine(arguments: argparse.Namespace, model: str | None) -> Engine:
    """The engine that is asked for; `model` is the name an embedded one answers to.

    Raises ConfigError for options that do not go together, and what the engine's own constructor raises.
    """
    own = own_engine(arguments)
    if arguments.kv_cache_type is not None and own != "--managed":
        raise ConfigError("--kv-cache-type is for --managed: add that, or leave it out")
    if own is None:
        return _there(arguments)
    for option, value in (
        ("--base-url", arguments.base_url),
        ("--api", arguments.api),
        (arguments.key_option, arguments.key_variable),
    ):
        if value is not None:
            raise ConfigError(
                f"{option} is for servers that are there, and {own} starts one: leave one of them out"
            )
    return _managed(arguments) if own == "--managed" else _embedded(arguments, model)


def _there(arguments: argparse.Namespace) -> Engine:
    if arguments.slots is not None:
        raise ConfigError(
            "--slots is for --managed, --embedded and --toy: a server that is there has its own "
            "(OLLAMA_NUM_PARALLEL of `ollama serve`)"
        )
    key = api_key(arguments.key_option, arguments.key_variable)
    if arguments.api == "openai":
        from ollama_batch.engines.openai import OpenAIEngine

        if arguments.base_url is None:
            raise ConfigError("--api openai needs --base-url URL, as in http://127.0.0.1:8000/v1")
        return OpenAIEngine(arguments.base_url, api_key=key)
    from ollama_batch.engines.ollama import OllamaEngine

    return OllamaEngine(arguments.base_url, api_key=key)


def _managed(arguments: argparse.Namespace) -> Engine:
    for option in ("toy", "gguf", "embedded"):
        if getattr(arguments, option):
            raise ConfigError(f"--managed and --{option} are two engines: leave one of them out")
    from ollama_batch.engines.ollama import OllamaEngine

    slots = {} if arguments.slots is None else {"num_parallel": arguments.slots}
    return OllamaEngine.managed(kv_cache_type=arguments.kv_cache_type, **slots)


def _embedded(arguments: argparse.Namespace, model: str | None) -> Engine:
    if arguments.toy and arguments.gguf is not None:
        raise ConfigError("--toy has a model of its own: leave --gguf or --toy out")
    if not arguments.toy and arguments.gguf is None:
        raise ConfigError("--embedded needs --gguf FILE, or use --toy")
    from ollama_batch.engines.embedded import EmbeddedEngine

    # An embedded engine takes memory for its whole context when it starts, so it is told before.
    room = {} if arguments.num_ctx == "auto" else {"num_ctx": arguments.num_ctx}
    if arguments.slots is not None:
        room["slots"] = arguments.slots
    if arguments.toy:
        return EmbeddedEngine.toy(alias=model, **room)
    return EmbeddedEngine(gguf=Path(arguments.gguf), alias=model, **room)


def api_key(option: str, variable: str | None) -> str | None:
    """The key in the environment variable that `option` names. Raises ConfigError if it is not set."""
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise ConfigError(f"{option} {variable}: the environment variable {variable} is not set")
    return key
