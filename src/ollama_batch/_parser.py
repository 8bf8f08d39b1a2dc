"""The parser of the command line."""

from __future__ import annotations

import argparse
from difflib import get_close_matches
from typing import Any


class Parser(argparse.ArgumentParser):
    """Says which option was meant by one that it does not know."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does it, except that what is not known ends it here: this parser knows what is near."""
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._meant(unknown)}")
        return known, unknown

    def _meant(self, unknown: list[str]) -> str:
        options = [each for action in self._actions for each in action.option_strings if len(each) > 2]
        near = [
            found
            for each in unknown
            if each.startswith("-")
            for found in get_close_matches(each.partition("=")[0], options, n=1)
        ]
        return f" (did you mean {', '.join(dict.fromkeys(near))}?)" if near else ""
