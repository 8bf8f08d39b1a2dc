"""Parts of a candidate that have no fixed shape, as a bounded outline for a prompt, without contact data."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ollama_batch.aris.candidate import Candidate
from ollama_batch.aris.clean import CUT, clean
from ollama_batch.aris.dates import stands_for_unknown
from ollama_batch.tokens import TokenCounter

TITLES: Final = {"cv": "resume", "swarm": "enrichment", "praxis": "earlier_analysis"}
"""The parts there are, by the names of Candidate's fields, and the tags they stand in."""

_DEPTH: Final = 12
_VALUE_CHARS: Final = 2_000
_CHARS_A_TOKEN: Final = 8

_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_CONTACT = frozenset(
    {
        *("email", "emails", "mail", "phone", "phones", "telephone", "fax", "photo", "photos", "picture"),
        *("avatar", "headshot", "birthday", "birthdate", "dob", "street", "zip", "postcode"),
    }
)
_CONTACT_KEYS = frozenset({"mobile", "cell", "tel", "image", "image_url", "birth_date", "postal_code"})
_NAMING = frozenset({"url", "urls", "link", "links", "handle", "username", "linkedin", "github", "website"})
_NAME_KEYS = re.compile(
    r"(first|last|full|middle|given|family|display|preferred|maiden|sur|nick)[_ ]?names?", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Outline:
    """Makes the text of a part. `names` are the candidate's, to be left out; () leaves them in."""

    names: tuple[str, ...] = ()

    def lines(self, value: Any) -> Iterator[str]:
        """`value` as lines of `key: value`, indented by depth; nothing for null, empty and contact data."""
        yield from self._lines(value, 0)

    def _lines(self, value: Any, depth: int) -> Iterator[str]:
        indent = "  " * depth
        if isinstance(value, Mapping):
            for key, inner in value.items():
                label = clean(key, 60)
                if not label or self._left_out(label, depth):
                    continue
                yield from self._entry(f"{indent}{label}:", inner, depth)
        elif isinstance(value, list | tuple):
            for inner in value:
                yield from self._entry(f"{indent}-", inner, depth)
        elif text := self._text(value):
            yield f"{indent}{text}"

    def _entry(self, label: str, value: Any, depth: int) -> Iterator[str]:
        if not isinstance(value, Mapping | list | tuple):
            if text := self._text(value):
                yield f"{label} {text}"
            return
        if depth >= _DEPTH:
            yield f"{label}{CUT}"
            return
        inner = self._lines(value, depth + 1)
        first = next(inner, None)
        if first is not None:
            yield label
            yield first
            yield from inner

    def _left_out(self, key: str, depth: int) -> bool:
        words = {word.lower() for word in _WORDS.findall(key)}
        plain = key.lower().replace(" ", "_").replace("-", "_")
        if words & _CONTACT or plain in _CONTACT_KEYS:
            return True
        if not self.names:
            return False
        return bool(words & _NAMING or _NAME_KEYS.fullmatch(key) or (depth == 0 and plain == "name"))

    def _text(self, value: Any) -> str:
        if value is None or value == "":
            return ""
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, str) and stands_for_unknown(value):
            return "unknown"
        return without_names(clean(value, _VALUE_CHARS), self.names)


def section(candidate: Candidate, part: str, *, most_tokens: int, counter: TokenCounter, names: bool) -> str:
    """One part in its tags, its text at most `most_tokens` long by `counter`; "" if there is none.

    Contact data (e-mail, phone, photo, street, birthday) never gets in. With `names` False, the
    candidate's name, links and handles do not either.
    """
    outline = Outline(() if names else names_of(candidate))
    room = most_tokens * _CHARS_A_TOKEN
    taken: list[str] = []
    for line in outline.lines(getattr(candidate, part)):
        taken.append(line)
        room -= len(line) + 1
        if room < 0:
            break
    text = shortened("\n".join(taken), most_tokens, counter, cut=room < 0)
    return f"<{TITLES[part]}>\n{text}\n</{TITLES[part]}>" if text else ""


def shortened(text: str, most_tokens: int, counter: TokenCounter, *, cut: bool = False) -> str:
    """The longest beginning of `text` with at most `most_tokens`, a mark behind it where it was cut."""
    if not cut and counter.count_text(text) <= most_tokens:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if counter.count_text(text[:middle].rstrip() + CUT) <= most_tokens:
            low = middle
        else:
            high = middle - 1
    return text[:low].rstrip() + CUT if low else ""


def names_of(candidate: Candidate) -> tuple[str, ...]:
    """First and last name, as far as they are known and longer than one character."""
    gem = candidate.gem
    found = () if gem is None else (clean(gem.first_name, 100), clean(gem.last_name, 100))
    return tuple(name for name in found if len(name) > 1)


def without_names(text: str, names: tuple[str, ...], *, whole: bool = False) -> str:
    """`text` with the full name of the candidate, and with `whole` False also each name alone, as "[name]".

    A single name must stand there as it is written: "will" stays where somebody is called Will.
    """
    if not names or not text:
        return text
    if len(names) > 1:
        first, last = map(re.escape, names)
        both = rf"(?<!\w){first}\W{{1,3}}{last}(?!\w)|(?<!\w){last}\W{{1,3}}{first}(?!\w)"
        text = re.sub(both, "[name]", text, flags=re.IGNORECASE)
    if not whole:
        for name in names:
            if name in text:
                text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "[name]", text)
    return text
