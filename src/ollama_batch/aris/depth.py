"""A watch on how deep JSON nests, chunk by chunk, before a parser sees it.

ijson keeps the whole path to every level: 400 KB of "[" would take it 100 GB.
"""

from __future__ import annotations

_MARKS = b'[]{}"'
_ONE_KIND = bytes.maketrans(b"{}", b"[]")
_OTHERS = bytes(byte for byte in range(256) if byte not in _MARKS)


class NestingWatch:
    """Told all of a document in order, says when it nests deeper than `limit` levels (or up to twice that).

    Text that is no JSON is judged somehow: its parser refuses it.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._depth = 0
        self._in_string = False
        self._backslash = False

    def too_deep(self, chunk: bytes) -> bool:
        """Whether the document is too deep with `chunk`, the next of its bytes."""
        if self._backslash:
            chunk = b"\\" + chunk
            self._backslash = False
        if b"\\" in chunk:
            self._backslash = (len(chunk) - len(chunk.rstrip(b"\\"))) % 2 == 1
            chunk = chunk.replace(b"\\\\", b"").replace(b'\\"', b"")
        # Only brackets and quotes are left, then only the brackets outside of strings. Two quotes side by
        # side go whatever they are: every other mark stays on its side of the strings.
        marks = chunk.translate(_ONE_KIND, _OTHERS)
        if self._in_string:
            marks = b'"' + marks
        marks = marks.replace(b'""', b"")
        self._in_string = marks.count(b'"') % 2 == 1
        if b'"' in marks:
            marks = b"".join(marks.split(b'"')[::2])
        for _ in range(self._limit + 1):
            fewer = marks.replace(b"[]", b"")  # one level less
            if len(fewer) == len(marks):
                break
            marks = fewer
        else:
            return True
        self._depth += len(marks) - 2 * marks.count(b"]")
        return self._depth > self._limit
