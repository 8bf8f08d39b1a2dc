"""The command `aris`: its options, and what it prints."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ollama_batch._spelling import as_options
from ollama_batch._text import count, duration, plain, rate, share

if TYPE_CHECKING:
    from ollama_batch.aris import CandidateReader, PraxisTemplate, ReadProgress, RequestCounts

ARIS_CODES: Final = (
    "exit codes: 0 written (or all are evaluated already, and no OUT is there); 1 written, but broken\n"
    "candidates were left out (--on-invalid skip); 2 wrong usage, an export that is refused or has nothing\n"
    "to judge by, or a file in the way; nothing was written, and an OUT that is there is an earlier one;\n"
    "130 interrupted"
)

_SHOWN: Final = 10


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `aris`."""
    parser.add_argument(
        "export",
        metavar="EXPORT",
        help="export.json, export.jsonl, either of them .gz; - reads standard input",
    )
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="the batch file to write")
    words = parser.add_argument_group("the prompt")
    words.add_argument("--criteria", metavar="F", help="file with the system prompt (default: our own words)")
    words.add_argument(
        "--template", metavar="F", help="file with the user message: {name}, {work}, {answer_format} ..."
    )
    words.add_argument(
        "--omit",
        type=lambda text: [part.strip() for part in text.split(",") if part.strip()],
        default=[],
        metavar="NAME,...",
        help="leave out: name, role, location, work, education, skills (contact data always is)",
    )
    for part, what in (("cv", "resume"), ("swarm", "enrichment"), ("praxis", "earlier analysis")):
        words.add_argument(
            f"--{part}-tokens",
            type=int,
            default=0,
            metavar="N",
            help=f"up to so much of the {what} (default: 0)",
        )
    words.add_argument(
        "--model",
        metavar="M",
        help="written into every line, as a batch server needs it (default: none, `run --model` says it)",
    )
    words.add_argument(
        "--max-tokens", type=int, default=1024, metavar="N", help="of the answer (default: 1024)"
    )
    words.add_argument("--temperature", type=float, default=0.0, metavar="T", help="default: 0")
    which = parser.add_argument_group("candidates and files")
    which.add_argument(
        "--skip-evaluated",
        action="store_true",
        help="leave out who has praxisData already; if nobody is left, nothing is written, and a file that "
        "is there is of an earlier time (exit code 2)",
    )
    which.add_argument("--limit", type=int, metavar="N", help="only the first N requests")
    which.add_argument("--split", type=int, metavar="N", help="files of N requests: OUT-0001.jsonl ...")
    which.add_argument(
        "--on-invalid",
        choices=("fail", "skip"),
        default="fail",
        help="broken candidates refuse the export (default) or are left out and listed",
    )
    which.add_argument(
        "--overwrite", action="store_true", help="replace OUT, or the parts of an earlier split"
    )
    which.add_argument("--quiet", action="store_true", help="no lines about progress")


def convert(arguments: argparse.Namespace) -> int:
    """Convert, print what was found, and return the exit code."""
    from ollama_batch.aris import read_candidates, to_requests, write_requests
    from ollama_batch.aris.batch_files import files_in_the_way

    template = _template(arguments)
    stdin = arguments.export == "-"
    told = Teller()
    progress = None if arguments.quiet else told
    source = sys.stdin.buffer if stdin else Path(arguments.export)
    with read_candidates(source, on_invalid=arguments.on_invalid, progress=progress) as candidates:
        requests = to_requests(
            candidates, template, skip_evaluated=arguments.skip_evaluated, limit=arguments.limit
        )
        warnings: list[str] = []
        requests.warn = warnings.append
        try:
            files = write_requests(
                requests, arguments.output, split=arguments.split, overwrite=arguments.overwrite
            )
        finally:
            told.close()
        counts, quality = requests.counts, candidates.quality
        _print(files, candidates, counts, whole=arguments.limit is None)
        for warning in warnings:
            _warn(as_options(warning))
        if not files:
            stale = files_in_the_way(Path(arguments.output), arguments.split)
            if stale:
                _warn(f"{stale[0]} is of an earlier time and stays: there was no request to write. Remove it")
            if stale or (counts.empty and not counts.evaluated):
                return 2
        return 1 if quality.invalid else 0


def _warn(message: str) -> None:
    sys.stderr.write(f"ollama-batch: {message}\n")
    sys.stderr.flush()


def _template(arguments: argparse.Namespace) -> PraxisTemplate:
    from ollama_batch.aris import PraxisTemplate

    words: dict[str, Any] = {
        name: Path(file)
        for name, file in (("criteria", arguments.criteria), ("message", arguments.template))
        if file is not None
    }
    return PraxisTemplate(
        **words,
        omit=arguments.omit,
        cv_tokens=arguments.cv_tokens,
        swarm_tokens=arguments.swarm_tokens,
        praxis_tokens=arguments.praxis_tokens,
        temperature=arguments.temperature,
        max_tokens=arguments.max_tokens,
        model=arguments.model,
    )


class Teller:
    """Writes progress to standard error: one line that changes in a terminal, else a line each time."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._said = ""

    def __call__(self, now: ReadProgress) -> None:
        """Say how far the reading is, unless that was said last."""
        rows = now.candidates + now.invalid
        text = f"{count(rows)} candidates read"
        if text == self._said:
            return
        self._said = text
        if now.total_bytes:
            text += f", {share(now.read_bytes / now.total_bytes)}"
        if now.elapsed_s > 0:
            text += f", {rate(rows / now.elapsed_s)}/s, {duration(now.elapsed_s)}"
        sys.stderr.write(f"\r\x1b[K{text}" if self._terminal else f"{text}\n")
        sys.stderr.flush()

    def close(self) -> None:
        """Leave a line that changed for good."""
        if self._terminal and self._said:
            sys.stderr.write("\n")
            sys.stderr.flush()


def _print(files: list[Path], candidates: CandidateReader, counts: RequestCounts, *, whole: bool) -> None:
    lines = [str(candidates.quality)]
    declared = (candidates.metadata or {}).get("batchSize")
    quality = candidates.quality
    found = quality.candidates + quality.invalid
    if whole and isinstance(declared, int) and declared != found:
        lines.append(f"  the export says that it has {declared:,} candidates; {found:,} were read")
    lines += [f"  left out: {row}" for row in candidates.invalid]
    if quality.invalid > len(candidates.invalid):
        lines.append(f"  ... and {quality.invalid - len(candidates.invalid):,} more")
    without = [
        text
        for number, text in (
            (counts.evaluated, "evaluated before"),
            (counts.empty, "with nothing to judge by"),
        )
        if number
        for text in [f"{number:,} {text}"]
    ]
    lines.append(f"{counts.made:,} requests" + (f"; none for {' and '.join(without)}" if without else ""))
    if counts.empty_items:
        named = [plain(name, 40) for name in counts.empty_items[:_SHOWN]]
        more = ", ..." if counts.empty > len(named) else ""
        lines.append(f"  nothing to judge by: {', '.join(named)}{more}")
    if files:
        lines.append(f"written: {files[0]}" + (f" to {files[-1].name}" if len(files) > 1 else ""))
    else:
        lines.append("nothing was written")
    sys.stdout.write("\n".join(lines) + "\n")
