"""uvicorn's HTTP, with an end to every wait, and errors of its own in JSON."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import h11
import orjson
from uvicorn.protocols.http.h11_impl import H11Protocol

from ollama_batch.server.faults import error_body

HEAD_S = 30.0
"""Longest wait for the head of a request."""

HEAD_BYTES = 2 * 2**20
"""Longest head that is read at all; so that a long one can be refused by name."""

DRAIN_BYTES = 64 * 2**20
"""So much of a body that was refused is read and dropped, for the client to see the answer."""


class GuardedProtocol(H11Protocol):
    """Closes connections on which no request comes, or which go on sending what was refused."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._waiting: asyncio.TimerHandle | None = None
        self._dropped = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Begin to wait for a request."""
        super().connection_made(transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            # Head and body of an answer are two writes: the second must not wait for the first one's ACK.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._settle()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came; what comes after the answer is counted."""
        answered = not self._answering and bool(self.cycle)
        super().data_received(data)
        if self._answering:
            self._settle()
            self._dropped = 0
            return
        self._wait()
        if answered and self.conn.their_state is h11.SEND_BODY:
            self._dropped += len(data)
            if self._dropped > DRAIN_BYTES:
                self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, or not in time."""
        if self.transport.is_closing():
            return
        body = orjson.dumps(error_body(400, msg))
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        try:
            for event in (
                h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event))
        except h11.LocalProtocolError:
            pass  # an answer is under way already
        self.transport.close()

    @property
    def _answering(self) -> bool:
        """Whether a request is under way."""
        return bool(self.cycle) and not self.cycle.response_complete  # there is none before the first

    def _wait(self) -> None:
        if self._waiting is None:
            self._waiting = self.loop.call_later(HEAD_S, self._late)

    def _settle(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _late(self) -> None:
        self._waiting = None
        if not self._answering:
            self.transport.close()
