"""Bodies of requests: in pieces, never more than allowed, and never waited for without end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request

from ollama_batch._strict_json import JsonFault, loads
from ollama_batch.server.faults import ApiFault
from ollama_batch.server.settings import ServerSettings

FORM_BYTES = 64 * 2**10
"""What a form may have beside its file: boundaries, headers and fields."""


class Body:
    """The body of `request`, at most `most` bytes of it.

    Raises ApiFault: 413 as soon as it is known to be longer, 408 when nothing more comes, 400 when the client
    has left (which nobody reads) or the body is compressed.
    """

    def __init__(self, request: Request, settings: ServerSettings, *, most: int) -> None:
        self._receive = request.receive
        self._most = most
        self._idle_s = settings.idle_s
        self._until = time.monotonic() + settings.upload_s
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise ApiFault(
                415, f"Content-Encoding {encoding[:40]!r} is not supported: send the body as it is."
            )
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > most:
            raise self._too_large()

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body, piece by piece."""
        size = 0
        while True:
            left = min(self._idle_s, self._until - time.monotonic())
            try:
                async with asyncio.timeout(left):
                    message = await self._receive()
            except TimeoutError:
                raise ApiFault(
                    408, "The body of the request did not come in time.", headers={"connection": "close"}
                ) from None
            if message["type"] == "http.disconnect":
                raise ApiFault(400, "The client left before the request was complete.")
            piece: bytes = message.get("body", b"")
            size += len(piece)
            if size > self._most:
                raise self._too_large()
            if piece:
                yield piece
            if not message.get("more_body", False):
                return

    async def whole(self) -> bytes:
        """All of it."""
        found = bytearray()
        async for piece in self.pieces():
            found += piece
        return bytes(found)

    def _too_large(self) -> ApiFault:
        return ApiFault(
            413,
            f"The request is larger than the {self._most:,} bytes that are allowed here.",
            code="file_too_large",
        )


async def json_object(
    request: Request, settings: ServerSettings, *, most: int | None = None
) -> dict[str, Any]:
    """The JSON object in the body of `request`. Raises ApiFault."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind and kind != "application/json" and not kind.endswith("+json"):
        raise ApiFault(415, f"The body must be JSON (Content-Type: application/json), not {kind[:60]!r}.")
    raw = await Body(request, settings, most=settings.max_body_bytes if most is None else most).whole()
    try:
        value = loads(raw, max_depth=settings.max_depth)
    except JsonFault as exc:
        raise ApiFault(400, f"The body of the request is not valid JSON: {exc.reason}.") from None
    if not isinstance(value, dict):
        raise ApiFault(400, "The body of the request must be a JSON object.")
    return value


async def no_body(request: Request, settings: ServerSettings) -> None:
    """Read what there is of a body that nobody needs; its type does not matter."""
    await Body(request, settings, most=settings.max_body_bytes).whole()
