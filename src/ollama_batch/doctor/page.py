"""A diagnosis as a person reads it in a terminal."""

from __future__ import annotations

import textwrap
from typing import Final

from ollama_batch._text import plain
from ollama_batch.doctor.finding import Diagnosis, Finding, FindingLevel
from ollama_batch.memory.amounts import show

WIDTH: Final = 80
LEVEL_WIDTH: Final = 8
CHECK_WIDTH: Final = 8
INDENT: Final = LEVEL_WIDTH + CHECK_WIDTH + 2

STYLES: Final[dict[FindingLevel, str]] = {
    "ok": "32",
    "note": "36",
    "unknown": "35",
    "warning": "33",
    "problem": "1;31",
}
"""How a terminal shows each level (SGR codes)."""

LONGEST: Final = 600


def page(diagnosis: Diagnosis, *, colour: bool = False, width: int = WIDTH) -> str:
    """All findings, wrapped to `width` columns; commands stand on lines of their own and are never broken."""
    model = "" if diagnosis.model is None else f"{plain(diagnosis.model)} at "
    lines = [f"ollama-batch doctor: {model}{plain(diagnosis.address)}", ""]
    again = [each for each in diagnosis.findings if each.sets is not None]
    # Commands that several findings share stand once, behind all of them.
    shared = len(again) > 1 and bool(diagnosis.settings)
    for finding in diagnosis.findings:
        lines += _lines(finding, colour=colour, width=width, shared=shared and finding.sets is not None)
    if shared:
        where = _where(again[-1])
        lines += ["", f"start the server again with all of these settings{where}{_takes(diagnosis)}:"]
        lines += [f"  {_printable(command)}" for command in again[-1].mend]
    return "\n".join([*lines, "", _summary(diagnosis)])


def _lines(finding: Finding, *, colour: bool, width: int, shared: bool) -> list[str]:
    level = f"{finding.level:<{LEVEL_WIDTH}}"
    if colour:
        level = f"\x1b[{STYLES[finding.level]}m{level}\x1b[0m"
    seen = _wrapped(finding.seen, width)
    lines = [f"{level} {finding.check:<{CHECK_WIDTH}} {seen[0]}", *(" " * INDENT + line for line in seen[1:])]
    for name, text in (("costs", finding.costs), ("assumed", "; ".join(finding.assumed) or None)):
        if text is not None:
            lines += [" " * INDENT + line for line in _wrapped(f"{name}: {text}", width)]
    if shared:
        settings = " ".join(f"{name}={value}" for name, value in (finding.sets or {}).items())
        text = f"mend: {settings or 'start it again'} (the commands are below)"
        lines += [" " * INDENT + line for line in _wrapped(text, width)]
    elif finding.mend:
        lines.append(" " * INDENT + f"mend{_where(finding)}:")
        # Not `plain`: a command is ours, and must be whole to be of use.
        lines += [" " * (INDENT + 2) + _printable(command) for command in finding.mend]
    return lines


def _where(finding: Finding) -> str:
    return "" if finding.on is None else f" (on {plain(finding.on)})"


def _takes(diagnosis: Diagnosis) -> str:
    return "" if diagnosis.needs_bytes is None else f", which take about {show(diagnosis.needs_bytes)}"


def _wrapped(text: str, width: int) -> list[str]:
    room = max(width - INDENT, 20)
    return textwrap.wrap(plain(text, LONGEST), room, break_long_words=False, break_on_hyphens=False) or [""]


def _printable(command: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in command)


def _summary(diagnosis: Diagnosis) -> str:
    counts = []
    for level in ("problem", "warning", "unknown"):
        number = len(diagnosis.of(level))
        if number:
            plural = "s" if number > 1 and level != "unknown" else ""
            counts.append(f"{number} {level}{plural}")
    return (", ".join(counts) or "nothing is wrong") + ("" if counts else ", as far as was looked")
