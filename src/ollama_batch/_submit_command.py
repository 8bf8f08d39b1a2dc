"""The command `submit`: a file to a batch server, and its results back."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Final

from ollama_batch.errors import ConfigError

SUBMIT_CODES: Final = (
    "exit codes: 0 every line ok, or (without --wait) submitted; 1 over, some lines failed or were not run;\n"
    "2 wrong usage, or refused by the server; 3 not over, or the server is away: the same line goes on;\n"
    "130 interrupted, the batch itself is not"
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `submit`."""
    parser.add_argument("input", metavar="IN", help="an OpenAI batch file")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="for the results")
    parser.add_argument("--errors", metavar="F", help="failed lines (default: beside OUT, STEM.errors.jsonl)")
    parser.add_argument(
        "--server", required=True, metavar="URL", help="of the server, as in http://127.0.0.1:8080/v1"
    )
    parser.add_argument(
        "--api-key-env", metavar="VAR", help="environment variable that holds the server's key"
    )
    parser.add_argument("--batch", metavar="ID", help="take up this batch instead of making one")
    parser.add_argument(
        "--anew",
        action="store_true",
        help="where the batch of OUT failed, expired or was cancelled: once more",
    )
    parser.add_argument("--wait", action="store_true", help="until it is over, then download and verify")
    parser.add_argument(
        "--poll", type=float, default=2.0, metavar="S", help="seconds between looks (default: 2)"
    )


def submit(arguments: argparse.Namespace) -> int:
    """Submit, watch, download, verify; returns the exit code."""
    from ollama_batch.server.submission import Submission

    key = None
    if arguments.api_key_env is not None:
        key = os.environ.get(arguments.api_key_env)
        if not key:
            raise ConfigError(f"--api-key-env {arguments.api_key_env}: the environment variable is not set")
    if arguments.anew and arguments.batch is not None:
        raise ConfigError("--anew makes a batch and --batch takes one up: leave one of them out")
    if not arguments.poll > 0:
        raise ConfigError(f"--poll {arguments.poll:g}: must be above 0")
    output = Path(arguments.output)
    beside = output.with_name(f"{output.name.removesuffix('.jsonl')}.errors.jsonl")
    with Submission(
        Path(arguments.input),
        output,
        beside if arguments.errors is None else Path(arguments.errors),
        server=arguments.server,
        key=key,
        say=_say,
    ) as submission:
        return submission.go(
            batch_id=arguments.batch, wait=arguments.wait, poll_s=arguments.poll, anew=arguments.anew
        )


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
