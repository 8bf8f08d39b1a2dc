"""What the tests of conversations share: a server that writes down every prompt it was sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ollama_batch import BatchRunner, ConversationPolicy
from ollama_batch.testing import FakeOllama
from ollama_batch.types import Message
from runner_support import line, runner_on

HEAD = {"role": "system", "content": "you judge"}


class WordCounter:
    """Counts as FakeOllama(tokenizer="words") does, but for the mark of a message's role, which it joins."""

    def count_text(self, text: str) -> int:
        return len(text.split())

    def count_message(self, message: Message) -> int:
        return max(1, self.count_text(str(message.get("content") or "")))

    def count_messages(self, messages: Sequence[Message]) -> int:
        return sum(map(self.count_message, messages))


class Prompts:
    """A `reply` for FakeOllama that keeps what was asked, in the order it came."""

    def __init__(self) -> None:
        self.asked: list[list[dict[str, Any]]] = []

    def __call__(self, body: Mapping[str, Any]) -> str | None:
        messages = [dict(message) for message in body["messages"]]
        self.asked.append(messages)
        return answer_to(messages)

    def of(self, name: str) -> list[dict[str, Any]]:
        """The last prompt whose last message begins with `name`."""
        return next(each for each in reversed(self.asked) if own_name(each) == name)

    def names(self) -> list[str]:
        """The rows in the order they were asked."""
        return [own_name(each) for each in self.asked]


def answer_to(messages: Sequence[Mapping[str, Any]]) -> str:
    """An answer that depends on the whole prompt."""
    return f"answer to {own_name(messages)} behind {len(messages) - 1}"


def own_name(messages: Sequence[Mapping[str, Any]]) -> str:
    """What the row is called that these messages were sent for."""
    return str(messages[-1]["content"]).split()[0]


def row(name: str, words: int = 3, head: str | None = "you judge") -> dict[str, Any]:
    made = line(name, " ".join([f"{name}-word"] * max(0, words - 1)))
    if head is not None:
        made["body"]["messages"].insert(0, {"role": "system", "content": head})
    return made


def talker(fake: FakeOllama, **options: Any) -> BatchRunner:
    """A runner in conversation mode; `lanes` and the other fields of a policy may be given by themselves."""
    policy = {
        name: options.pop(name)
        for name in ("lanes", "high", "low", "every", "keep_messages", "limit")
        if name in options
    }
    return runner_on(
        fake,
        **{
            "mode": "conversation",
            "conversation": ConversationPolicy(**policy),
            "counter": WordCounter(),
            "state_dir": None,
            "num_ctx": 4096,
            "max_tokens": 32,
            **options,
        },
    )
