"""60 answers that models give when asked for a Verdict, and what must become of each: written by hand."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, Field

from ollama_batch.testing import FakeReply

Outcome = Literal["ok", "repaired", "asked again", "failed"]
"""Counts as it stands, counts and is marked, is asked for once more, or fails its row at once."""


class Detail(BaseModel):
    """Why, in one respect."""

    rating: Literal["Great", "Good", "None"]
    why: str


class Verdict(BaseModel):
    """What the answers are to be."""

    verdict: Literal["Yes", "No"]
    score: int = Field(ge=1, le=10)
    note: str | None = None
    details: list[Detail] = []


class Shape(NamedTuple):
    """An answer: `said` of it is True or the beginning of its fault; `means` what `parsed` dumps to, less
    what was not set.
    """

    name: str
    reply: str | FakeReply
    outcome: Outcome
    means: dict[str, Any] | None = None
    fault: str = ""


YES = {"verdict": "Yes", "score": 7}
PLAIN = '{"verdict": "Yes", "score": 7}'
DETAILED = '{"verdict": "Yes", "score": 7, "details": [{"rating": "None", "why": "no degree"}]}'
DETAILS = {**YES, "details": [{"rating": "None", "why": "no degree"}]}
FENCE = "```"
UNFIT = "does not fit Verdict: verdict:"


def noted(note: str) -> dict[str, Any]:
    return {**YES, "note": note}


def ok(name: str, text: str, means: dict[str, Any]) -> Shape:
    return Shape(name, text, "ok", means)


def repaired(name: str, text: str, means: dict[str, Any]) -> Shape:
    return Shape(name, text, "repaired", means)


def again(name: str, text: str, fault: str) -> Shape:
    return Shape(name, text, "asked again", fault=fault)


def failed(name: str, reply: FakeReply, code: str) -> Shape:
    return Shape(name, reply, "failed", fault=code)


SHAPES = [
    # As it stands
    ok("plain", PLAIN, YES),
    ok("white space around", f"\n  {PLAIN}\n\n", YES),
    ok("on several lines", '{\n  "verdict": "Yes",\n  "score": 7\n}', YES),
    ok("a byte order mark", "\ufeff" + PLAIN, YES),
    ok("an extra key, which the model ignores", '{"verdict": "Yes", "score": 7, "mood": "fine"}', YES),
    ok("a null where that may be", '{"verdict": "Yes", "score": 7, "note": null}', {**YES, "note": None}),
    ok("a list of objects inside", DETAILED, DETAILS),
    ok("the rating None is a word", DETAILED, DETAILS),
    ok("braces inside of text", '{"verdict": "Yes", "score": 7, "note": "{a} or [b]"}', noted("{a} or [b]")),
    ok("escapes", r'{"verdict": "Yes", "score": 7, "note": "caf\u00e9\n\"x\""}', noted('café\n"x"')),
    ok(
        "signs of other planes",
        '{"verdict": "Yes", "score": 7, "note": "漢 🙂 שלום"}',
        noted("漢 🙂 שלום"),
    ),
    ok("a number as text, which the model takes", '{"verdict": "Yes", "score": "7"}', YES),
    ok("thinking before it", f"<think>maybe {{no}}?</think>\n{PLAIN}", YES),
    # Clear, but not as it stands
    repaired("fenced", f"{FENCE}json\n{PLAIN}\n{FENCE}", YES),
    repaired("fenced without a language", f"{FENCE}\n{PLAIN}\n{FENCE}", YES),
    repaired("a fence that is not closed", f"{FENCE}json\n{PLAIN}", YES),
    repaired("prose before", f"Here is my verdict:\n\n{PLAIN}", YES),
    repaired("prose after", f"{PLAIN}\n\nI hope that helps!", YES),
    repaired("prose around a fence", f"Sure.\n{FENCE}json\n{PLAIN}\n{FENCE}\nAnything else?", YES),
    repaired("a comma too many", '{"verdict": "Yes", "score": 7,}', YES),
    repaired(
        "commas too many inside",
        '{"verdict": "Yes", "score": 7, "details": [{"rating": "None", "why": "no degree",},],}',
        DETAILS,
    ),
    repaired("single quotes", "{'verdict': 'Yes', 'score': 7}", YES),
    repaired("keys without quotes", '{verdict: "Yes", score: 7}', YES),
    repaired("curly quotes", "{\u201cverdict\u201d: \u201cYes\u201d, \u201cscore\u201d: 7}", YES),
    repaired("as Python writes it", "{'verdict': 'Yes', 'score': 7, 'note': None}", {**YES, "note": None}),
    repaired("a line break inside of text", '{"verdict": "Yes", "score": 7, "note": "a\nb"}', noted("a\nb")),
    repaired(
        "quotes inside of text",
        '{"verdict": "Yes", "score": 7, "note": "He says "hi", and goes"}',
        noted('He says "hi", and goes'),
    ),
    repaired(
        "fenced, with a comma too many", f'{FENCE}json\n{{"verdict": "Yes", "score": 7,}}\n{FENCE}', YES
    ),
    repaired("twice the same", f"{PLAIN}\n{PLAIN}", YES),
    repaired("twice the same, the second fenced", f"{PLAIN}\n{FENCE}json\n{PLAIN}\n{FENCE}", YES),
    # Not clear, or not what it is to be
    again("prose", "I would say yes, seven of ten.", "has no JSON object"),
    again("a refusal in words", "I'm sorry, but I can't help with that.", "has no JSON object"),
    again("an enumeration in another case", '{"verdict": "yes", "score": 7}', UNFIT),
    again("a value that is none of them", '{"verdict": "Maybe", "score": 7}', UNFIT),
    again("out of range", '{"verdict": "Yes", "score": 11}', "does not fit Verdict: score:"),
    again("a key is missing", '{"verdict": "Yes"}', "does not fit Verdict: score: Field required"),
    again("another type", '{"verdict": "Yes", "score": [7]}', "does not fit Verdict: score:"),
    again("a null where that may not be", '{"verdict": null, "score": 7}', UNFIT),
    again("wrong deep inside", DETAILED.replace("None", "none"), "does not fit Verdict: details.0.rating:"),
    again("nothing in it", "{}", "does not fit Verdict: verdict: Field required"),
    again("fenced and wrong", f'{FENCE}\n{{"verdict": "yes", "score": 7}}\n{FENCE}', "does not fit Verdict"),
    again("two objects", f'{PLAIN}\n{{"verdict": "No", "score": 2}}', "has 2 JSON objects, which differ"),
    again("a draft, then another", f"{PLAIN}\nNo: {PLAIN.replace('7', '3')}", "has 2 JSON objects, which"),
    again("a list", f"[{PLAIN}]", "is a list, no JSON object"),
    again("a list in prose", f"Verdicts: [{PLAIN}]", "has a list, no JSON object by itself"),
    again("text in quotes", '"Yes"', "is a string, no JSON object"),
    again("JSON in a string", '"{\\"verdict\\": \\"Yes\\", \\"score\\": 7}"', "is a string, no JSON object"),
    again("a number", "7", "is a number, no JSON object"),
    again("null", "null", "is null, no JSON object"),
    again("a key twice", '{"verdict": "Yes", "verdict": "No", "score": 7}', "has a key twice"),
    again("no end", '{"verdict": "Yes", "score": 7, "note": "and so', "has a JSON object without an end"),
    again(
        "no end, in text with braces",
        '{"verdict": "Yes", "score": 7, "note": "use {x} and',
        "is no valid JSON",
    ),
    again("a draft, then one without an end", f'{PLAIN} No: {{"verdict": "N', "has a JSON object without"),
    again("no end behind an inner one", DETAILED[:-2], "is no valid JSON"),
    again("a bracket of another kind", '{"verdict": "Yes", "score": 7]', "has a JSON object without an end"),
    again("a comment", '{"verdict": "Yes", // sure\n"score": 7}', "is no valid JSON"),
    again("no comma between", '{"verdict": "Yes" "score": 7}', "is no valid JSON"),
    again("a number that is none", '{"verdict": "Yes", "score": ~7}', "is no valid JSON"),
    again("three dots for the rest", '{"verdict": "Yes", "score": 7, ...}', "is no valid JSON"),
    # Not even text
    failed("cut off", FakeReply(PLAIN[:20], done_reason="length"), "output_truncated"),
    failed("cut off at its very end", FakeReply(PLAIN, done_reason="length"), "output_truncated"),
    failed("empty", FakeReply(""), "output_empty"),
    failed("withheld", FakeReply(PLAIN, done_reason="content_filter"), "output_refused"),
    failed("reasoning only", FakeReply("", thinking="Yes, I think."), "output_reasoning_only"),
    failed("a tool call", FakeReply("", tool_calls=({"name": "f", "arguments": {}},)), "output_unparsed"),
]
