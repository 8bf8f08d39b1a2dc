"""PraxisTemplate: from a candidate to the request that evaluates it."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self, TypeAlias

from ollama_batch.aris.candidate import Candidate, GemProfile
from ollama_batch.aris.praxis import ANSWER_FORMAT, CRITERIA, MESSAGE
from ollama_batch.aris.profile import PARTS, says_nothing
from ollama_batch.aris.sections import TITLES, names_of, section, without_names
from ollama_batch.errors import ConfigError
from ollama_batch.tokens import EstimateCounter, TokenCounter
from ollama_batch.types import BatchRequest, Message

Words: TypeAlias = str | Path | Callable[[], str]
"""A text, the file it is in, or what makes it: read, or called, once, when the template is made."""

CONTACT: Final = frozenset({"email", "phone", "photo"})
"""Never in a prompt; may be named in `omit` all the same."""

PLACES: Final = (*PARTS, "sections", "answer_format")

_LOG: Final = logging.getLogger(__name__)
_PLACE = re.compile(r"\{(\w+)\}")
_NOBODY: Final = GemProfile()


@dataclass(frozen=True, slots=True, kw_only=True)
class PraxisTemplate:
    """Makes the request that evaluates a candidate: criteria, then profile, then the form of the answer.

    `criteria`: the system prompt, the same for all. `message`: the user message, with `{name}`, `{role}`,
    `{location}`, `{work}`, `{education}`, `{skills}`, `{sections}` and `{answer_format}` where they are to
    stand, or a function of the Candidate that returns it whole. `answer_format`: what is asked for. Each
    may be a text or a Path.

    `omit`: parts of the profile to leave out, such as "name": a line of `message` that has nothing but
    omitted parts is left out whole. Without the name, it is also taken out of the other fields where it
    stands in full, and of the sections. A text must name something of the candidate that is not omitted, or
    all prompts would be the same, and `{sections}` where one is on. E-mail addresses, phone numbers and
    photos are never in a prompt.
    `cv_tokens`, `swarm_tokens`, `praxis_tokens`: up to so many tokens of the resume, the enrichment and
    the earlier analysis (0: nothing of it), counted by `counter` (None: estimated, the same on every
    machine).

    `temperature`, `max_tokens`, `model` and `params` go into the body of every request; None leaves out.
    Raises ConfigError; its message names field, value and rule.
    """

    criteria: Words = CRITERIA
    message: str | Path | Callable[[Candidate], str] = MESSAGE
    answer_format: Words = ANSWER_FORMAT
    omit: Collection[str] = ()
    cv_tokens: int = 0
    swarm_tokens: int = 0
    praxis_tokens: int = 0
    counter: TokenCounter | None = None
    temperature: float | None = 0
    max_tokens: int | None = 1024
    model: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    _files: tuple[Path, ...] = field(init=False, repr=False, compare=False)
    _body: Mapping[str, Any] = field(init=False, repr=False, compare=False)
    _lines: tuple[tuple[str, tuple[str, ...]], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        put = object.__setattr__
        words = (self.criteria, self.message, self.answer_format)
        put(self, "_files", tuple(each for each in words if isinstance(each, Path)))
        for option in ("criteria", "answer_format"):
            text = _text(getattr(self, option), option)
            put(self, option, text)
            for name in _PLACE.findall(text):
                if name in PLACES:
                    _LOG.warning(
                        "%s= has {%s}, which is sent as it is: it belongs in the message", option, name
                    )
        if isinstance(self.message, str | Path):
            put(self, "message", _text(self.message, "message"))
        if isinstance(self.omit, str):
            raise ConfigError(f"omit={self.omit!r}: must be a list of parts, as in [{self.omit!r}]")
        for part in self.omit:
            if part not in PARTS and part not in CONTACT:
                raise ConfigError(f"omit={part!r}: must be one of {', '.join([*PARTS, *sorted(CONTACT)])}")
        for name in ("cv_tokens", "swarm_tokens", "praxis_tokens"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)}: must be 0 or more")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ConfigError(f"max_tokens={self.max_tokens}: must be 1 or more")
        if self.temperature is not None and not 0 <= self.temperature <= 2:
            raise ConfigError(f"temperature={self.temperature}: must be between 0 and 2")
        put(self, "_lines", self._read_message())
        own = {"model": self.model, "temperature": self.temperature, "max_tokens": self.max_tokens}
        put(self, "_body", {**{k: v for k, v in own.items() if v is not None}, **self.params})

    @property
    def sections_on(self) -> tuple[str, ...]:
        """Those of cv, swarm and praxis that prompts tell."""
        return tuple(part for part in TITLES if getattr(self, f"{part}_tokens"))

    @property
    def inputs(self) -> tuple[Path, ...]:
        """The files that its texts were read from."""
        return self._files

    @classmethod
    def original(cls, **changes: Any) -> Self:
        """The settings that the first converter of Aris exports had: temperature 0.7, 2,000 tokens."""
        return cls(**{"temperature": 0.7, "max_tokens": 2000, **changes})

    def _read_message(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """The lines of the message, each with the parts it names; those of omitted parts are gone."""
        if not isinstance(self.message, str):
            return ()
        lines = []
        for line in self.message.split("\n"):
            named = tuple(_PLACE.findall(line))
            for name in named:
                if name not in PLACES:
                    places = ", ".join(f"{{{place}}}" for place in PLACES)
                    raise ConfigError(
                        f"message has {{{name}}}, which is no part of a profile: there are {places}"
                    )
            kept = [name for name in named if name not in self.omit]
            if kept or not named:
                lines.append((line, named))
        self._check_places({name for _, named in lines for name in named})
        return tuple(lines)

    def _check_places(self, named: Collection[str]) -> None:
        """Raise ConfigError for a message that loses the candidate, or a section that is on."""
        on = self.sections_on
        if on and "sections" not in named:
            name, most = f"{on[0]}_tokens", getattr(self, f"{on[0]}_tokens")
            raise ConfigError(
                f"{name}={most}: would be in no prompt, since message has no {{sections}}: put it where "
                "they are to stand"
            )
        if on or any(part in named for part in PARTS if part not in self.omit):
            return
        why = ""
        if "sections" in named:
            why = " ({sections} is empty without cv_tokens=, swarm_tokens= or praxis_tokens=)"
        elif self.omit:
            why = " that is not omitted"
        places = ", ".join(f"{{{part}}}" for part in PARTS)
        raise ConfigError(
            f"message names nothing of a candidate{why}, so that all prompts would be the same: put some of "
            f"{places}, {{sections}} where they are to stand"
        )

    def request(self, candidate: Candidate) -> BatchRequest | None:
        """The request for `candidate`, its id that of the candidate; None if there is nothing to judge.

        There is nothing where neither the profile (work, education, title, company, skills) nor a section
        that is on says anything. A `message` that is a function decides by itself: "" is nothing.
        """
        messages = self.messages(candidate)
        if messages is None:
            return None
        return BatchRequest(messages=messages, custom_id=candidate.aristotle_id, params=self._body)

    def messages(self, candidate: Candidate) -> list[Message] | None:
        """The messages of the request; None as for `request`."""
        if isinstance(self.message, str):
            text = self._user_message(candidate)
        else:
            text = self.message(candidate) if callable(self.message) else ""
        if not text:
            return None
        return [{"role": "system", "content": self.criteria}, {"role": "user", "content": text}]

    def _user_message(self, candidate: Candidate) -> str:
        gem = candidate.gem if candidate.gem is not None else _NOBODY
        sections = self._sections(candidate)
        if not sections and says_nothing(candidate):
            return ""
        hidden = names_of(candidate) if "name" in self.omit else ()

        def told(found: re.Match[str]) -> str:
            name = found[1]
            if name == "sections":
                return sections
            if name == "answer_format":
                return str(self.answer_format)
            return "" if name in self.omit else without_names(PARTS[name](gem), hidden, whole=True)

        lines: list[str] = []
        for line, named in self._lines:
            text = _PLACE.sub(told, line) if named else line
            if text or not named:
                lines.append(text)
        return _spaced("\n".join(lines))

    def _sections(self, candidate: Candidate) -> str:
        found = []
        for part in TITLES:
            most = getattr(self, f"{part}_tokens")
            if most and getattr(candidate, part):
                counter = self.counter if self.counter is not None else _ESTIMATE
                text = section(
                    candidate, part, most_tokens=most, counter=counter, names="name" not in self.omit
                )
                if text:
                    found.append(text)
        return "\n\n".join(found)


_ESTIMATE: Final = EstimateCounter()
_GAPS = re.compile(r"\n{3,}")


def _spaced(text: str) -> str:
    """`text` without the gaps that parts leave where they are empty."""
    return _GAPS.sub("\n\n", text)


def _is_path(words: str) -> bool:
    """Whether a text can be meant for the path of a file only."""
    if "\n" in words or not words.strip().lower().endswith((".txt", ".md", ".text", ".prompt", ".json")):
        return False
    return len(words.split()) == 1 or os.path.isfile(words)  # noqa: PTH113 - of a text that is no path


def _text(words: Words, option: str) -> str:
    text: Any
    if isinstance(words, Path):
        try:
            text = words.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as exc:
            why = getattr(exc, "strerror", None) or "it is not UTF-8"
            raise ConfigError(f"{option}={str(words)!r}: cannot be read: {why}") from exc
    else:
        text = words() if callable(words) else words
        if isinstance(words, str) and _is_path(words):
            raise ConfigError(
                f"{option}={words!r} is the name of a file; to have what is in it, give Path({words!r})"
            )
    if isinstance(text, str) and text.strip():
        return text
    raise ConfigError(f"{option}: must be a text, and not an empty one")
