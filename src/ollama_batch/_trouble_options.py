"""The options for nights that nobody watches: how long to wait, what may restart, how full memory may be."""

from __future__ import annotations

import argparse

from ollama_batch._guard_options import add_guard_options
from ollama_batch._restart_option import add_restart_option


def add_trouble_options(parser: argparse.ArgumentParser) -> None:
    """Those of `run` and `serve` alike."""
    trouble = parser.add_argument_group("trouble")
    trouble.add_argument(
        "--load-timeout",
        type=float,
        default=1800.0,
        metavar="S",
        help="seconds to wait for the model to be loaded (default: 1800)",
    )
    trouble.add_argument(
        "--recover-timeout",
        type=float,
        default=900.0,
        metavar="S",
        help="seconds to wait for an engine that is down or answers with errors, and for memory "
        "(default: 900)",
    )
    add_restart_option(trouble)
    add_guard_options(parser)
