"""Which texts of a message count, and the bound from their length alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_batch.tokens import byte_bound
from ollama_batch.tokens._texts import Texture, digits_and_wide, images_of, texts_of

PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
CALL = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"q":"x"}'}}


@pytest.mark.parametrize(
    ("message", "texts", "images"),
    [
        ({"role": "user", "content": "hello"}, ["hello"], 0),
        ({"role": "assistant", "content": None}, [], 0),
        ({"role": "assistant"}, [], 0),
        ({"role": "user", "content": [{"type": "text", "text": "a"}, PICTURE, PICTURE]}, ["a"], 2),
        ({"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, ["no"], 0),
        ({"role": "user", "content": "look", "images": ["AAAA"]}, ["look"], 1),
        ({"role": "tool", "content": "42", "tool_call_id": "c1"}, ["42", "c1"], 0),
        ({"role": "user", "content": "hi", "name": "ann"}, ["hi", "ann"], 0),
        ({"role": "assistant", "content": "", "reasoning_content": "hm"}, ["", "hm"], 0),
    ],
)
def test_texts_and_images_of_a_message(message: dict[str, Any], texts: list[str], images: int) -> None:
    assert list(texts_of(message)) == texts
    assert images_of(message) == images


def test_tool_calls_count_as_compact_json() -> None:
    (text,) = texts_of({"role": "assistant", "content": None, "tool_calls": [CALL]})
    assert json.loads(text) == [CALL]
    assert ": " not in text


def test_the_byte_bound_of_a_prompt_is_its_bytes_and_stated_overheads() -> None:
    messages = [{"role": "system", "content": "ab"}, {"role": "user", "content": "ü中😀"}]
    assert byte_bound(messages) == 2 + (2 + 3 + 4) + 2 * 16 + 128
    assert byte_bound([]) == 128


def test_images_and_tools_raise_the_byte_bound() -> None:
    plain = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
    seen = [{"role": "user", "content": [{"type": "text", "text": "a"}, PICTURE]}]
    assert byte_bound(seen, image_tokens=256) == byte_bound(plain) + 256
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    indented = len(json.dumps(tools, indent=4))
    assert byte_bound(plain, tools=tools) >= byte_bound(plain) + indented


@given(st.text(st.characters(exclude_categories=())))
def test_a_texture_accounts_for_every_byte(text: str) -> None:
    found = Texture.of(text)
    size = len(text.encode("utf-8", "surrogatepass"))
    ascii_part = found.letters + found.digits + found.marks
    assert ascii_part + 3 * found.wide + 4 * found.astral + found.other_bytes == size
    assert found.digits == sum(char in "0123456789" for char in text)
    assert found.astral == sum(ord(char) > 0xFFFF for char in text)
    assert found.wide == sum(0x3000 <= ord(char) <= 0xFFFF for char in text)
    assert min(found.letters, found.marks, found.other_bytes) >= 0


@pytest.mark.parametrize(
    ("text", "made_of"),
    [("", (0, 0, 0)), ("ab 12", (5, 2, 0)), ("中文 12", (5, 2, 2)), ("жж", (2, 0, 2)), ("😀1", (2, 1, 1))],
)
def test_the_digits_and_wide_characters_of_a_text(text: str, made_of: tuple[float, float, float]) -> None:
    assert digits_and_wide(text) == made_of
