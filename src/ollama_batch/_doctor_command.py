"""The command `doctor`: its options, and what it prints."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from typing import Final

DOCTOR_CODES: Final = (
    "exit codes: 0 no problem was found (there may be warnings); 1 there are problems; 2 wrong usage, or\n"
    "an input file that cannot be read; 130 interrupted"
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `doctor`."""
    parser.add_argument(
        "inputs", nargs="*", metavar="IN", help="files of the run: a few of their rows are measured with"
    )
    parser.add_argument("--model", metavar="M", help="default: the one that the rows name")
    parser.add_argument("--base-url", metavar="URL", help="default: OLLAMA_HOST, else this machine")
    parser.add_argument("--api-key-env", metavar="VAR", help="environment variable that holds the API key")
    parser.add_argument(
        "--for",
        dest="rows",
        type=int,
        metavar="ROWS",
        help="will so many rows be done in a night (default: as many as IN has)",
    )
    parser.add_argument("--hours", type=float, default=10.0, metavar="H", help="of the night (default: 10)")
    parser.add_argument(
        "--num-ctx",
        type=int,
        metavar="N",
        help="context length of the run (default: what it chooses for the rows of IN, else the server's own)",
    )
    parser.add_argument(
        "-o", "--output", metavar="OUT", help="where the run's output will be (default: this folder)"
    )
    parser.add_argument(
        "--no-load", action="store_true", help="only look: do not load the model, send no requests"
    )
    parser.add_argument("--json", action="store_true", help="print JSON: sizes in bytes, times in seconds")


def doctor(arguments: argparse.Namespace, *, api_key: str | None) -> int:
    """Examine, print, and return the exit code."""
    from ollama_batch.doctor import diagnose
    from ollama_batch.doctor.page import page

    terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def told(text: str) -> None:
        if terminal:
            sys.stderr.write(f"\r\x1b[K{text} ...")
            sys.stderr.flush()

    try:
        found = asyncio.run(
            diagnose(
                arguments.model,
                base_url=arguments.base_url,
                api_key=api_key,
                rows=arguments.rows,
                inputs=arguments.inputs,
                num_ctx=arguments.num_ctx,
                hours=arguments.hours,
                output=arguments.output,
                load=not arguments.no_load,
                told=told,
            )
        )
    finally:
        if terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
    text = json.dumps(found.to_dict(), indent=2) if arguments.json else page(found, colour=colours())
    sys.stdout.write(f"{text}\n")
    return 0 if found.ok else 1


def colours() -> bool:
    """Whether standard output is a terminal that shows colours, and nobody asked it not to (no-color.org)."""
    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    return sys.stdout.isatty() and not plain
