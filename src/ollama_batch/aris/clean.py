"""Text of an export as it may stand in a prompt: one line, nothing invisible, nothing an engine obeys."""

from __future__ import annotations

import re

_HARMLESS = re.compile(r"[\w.,;:/&()+#'%!?*|-]+(?: [\w.,;:/&()+#'%!?*|-]+)*")
_DIGIT = re.compile(r"\d")
_INVISIBLE = re.compile(
    # Controls, marks and overrides of direction, zero-width characters (not the joiners that scripts
    # and emoji need), tags: nobody sees them, and a model reads them.
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f"
    "\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_TAG = re.compile(r"<(?=[|/!?_A-Za-z])|\[(?=/?INST\])")
_MAIL = re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]+")
_PHONE = re.compile(
    # With a country code, or in the North American form: years and amounts are to stay.
    r"(?<![\w+])(?:\+|00)[1-9][\d ()./-]{6,18}\d(?!\w)|(?<!\w)(?:\(\d{3}\) ?|\d{3}[-.])\d{3}[-.]\d{4}(?!\w)"
)

CUT = " [...]"
"""Stands where the rest of a text was left out."""


def clean(text: object, limit: int) -> str:
    """`text` on one line, at most `limit` characters of it and a mark where more was; "" for no text.

    White space becomes single spaces; invisible characters go, unpaired surrogates become U+FFFD. What
    looks like a tag (`</profile>`, `<|im_end|>`) loses its "<" to U+2039, so that no field can end the
    profile or speak for somebody else. E-mail addresses and phone numbers become "[e-mail]", "[phone]".
    """
    if text is None or text == "":
        return ""
    line = text if isinstance(text, str) else str(text)
    if len(line) <= limit and _HARMLESS.fullmatch(line) and not _DIGIT.search(line):
        return line
    line = line[: 4 * limit]
    cut = len(line) < len(text) if isinstance(text, str) else False
    line = " ".join(_INVISIBLE.sub("", _SURROGATE.sub("\ufffd", line)).split())
    if "<" in line or "[" in line:
        line = _TAG.sub("\u2039", line)
    if "@" in line:
        line = _MAIL.sub("[e-mail]", line)
    line = _PHONE.sub("[phone]", line)
    if len(line) > limit:
        return line[:limit].rstrip() + CUT
    return line + CUT if cut and line else line
