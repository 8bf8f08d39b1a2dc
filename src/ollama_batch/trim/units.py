"""A conversation as a head and exchanges: what may be dropped, and only as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ollama_batch.errors import ConfigError
from ollama_batch.types import Message

HEAD_ROLES = frozenset({"system", "developer"})
RESULT_ROLES = frozenset({"tool", "function"})

Pinned: TypeAlias = str | Callable[[Message], bool] | None
"""Which messages are to survive: a function of the message, or a key whose value in the message is true."""


@dataclass(frozen=True, slots=True)
class Unit:
    """The messages `[start, stop)` of a conversation, which are kept or dropped together.

    One exchange: a user message and everything up to the next user message. `pinned`: one of its
    messages is. `lead_in`: it has no user message at its beginning, which only the first unit of an odd
    conversation can lack (an assistant's greeting, say).
    """

    start: int
    stop: int
    pinned: bool = False
    lead_in: bool = False


def split_units(messages: Sequence[Message], pinned: Pinned = None) -> tuple[int, tuple[Unit, ...]]:
    """The number of head messages, and the units of the rest, in order and without gaps.

    The head is the leading run of system and developer messages; such messages further on belong to
    the exchange they stand in. A tool result that comes after another user message joins its exchange
    and that of its call into one, so that no unit holds a result without its call. A result whose call
    is nowhere stays where it stands.
    """
    head = 0
    while head < len(messages) and messages[head].get("role") in HEAD_ROLES:
        head += 1
    starts: list[int] = []
    calls: dict[str, int] = {}  # id of a call -> the message that made it; engines reuse ids, the last counts
    last_call: int | None = None
    for index in range(head, len(messages)):
        message = messages[index]
        role = message.get("role")
        if role == "user" or not starts:
            starts.append(index)
        if role == "assistant" and (message.get("tool_calls") or message.get("function_call")):
            last_call = index
            for call in message.get("tool_calls") or ():
                if isinstance(call, Mapping) and isinstance(call.get("id"), str):
                    calls[call["id"]] = index
        elif role in RESULT_ROLES:
            call_id = message.get("tool_call_id")
            made = calls.get(call_id) if isinstance(call_id, str) else last_call
            while made is not None and starts[-1] > made:
                starts.pop()
    is_pinned = pin_test(pinned)
    stops = [*starts[1:], len(messages)]
    units = tuple(
        Unit(
            start,
            stop,
            pinned=any(is_pinned(message) for message in messages[start:stop]),
            lead_in=messages[start].get("role") != "user",
        )
        for start, stop in zip(starts, stops, strict=False)  # no starts, but one stop: there are no units
    )
    return head, units


def pin_test(pinned: Pinned) -> Callable[[Message], bool]:
    """`pinned` as a function of a message."""
    if pinned is None:
        return lambda message: False
    if isinstance(pinned, str):
        key = pinned
        return lambda message: bool(message.get(key))
    return pinned


def check_pinned(pinned: object) -> None:
    """Raises ConfigError unless `pinned` is a function, the name of a message key, or None."""
    if pinned is None or callable(pinned) or (isinstance(pinned, str) and pinned):
        return
    raise ConfigError(
        f"pinned={pinned!r}: wanted a function of a message, the name of a message key, or None"
    )


def without_key(messages: Sequence[Message], key: str) -> list[Message]:
    """The messages without `key`, ready to be sent; those that lack it are the same objects."""
    return [
        {name: value for name, value in message.items() if name != key} if key in message else message
        for message in messages
    ]
