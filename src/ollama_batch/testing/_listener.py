"""The listening socket of a fake server: up, down, and up again on the same port."""

from __future__ import annotations

import asyncio
import socket
import struct
from time import monotonic
from typing import Any

from aiohttp import web

from ollama_batch.testing._http import MAX_BODY, Service
from ollama_batch.testing._ollama import Ollama
from ollama_batch.testing._replies import Replies
from ollama_batch.testing.config import FakeConfig
from ollama_batch.testing.faults import FaultPlan
from ollama_batch.testing.ledger import Ledger

HOST = "127.0.0.1"


class Listener:
    """A fake server on one event loop. `open` and `shut` may be called in turn."""

    def __init__(self, config: FakeConfig, ledger: Ledger, replies: Replies) -> None:
        self.plan = FaultPlan(config.faults, config.seed)
        self.ollama = Ollama(config, ledger, replies)
        self.service = Service(self.ollama, ledger, self.plan, self._go_down)
        self.port = 0
        self._http: web.Server | None = None
        self._server: asyncio.Server | None = None
        self._return: asyncio.Task[None] | None = None
        self._start_s = config.start_s
        self._starting: asyncio.Task[None] | None = None

    async def open(self, port: int = 0) -> None:
        """Listen; on the port of before, or on `port` the first time. Raises OSError if it is taken."""
        if self._server is not None:
            return
        self._http = web.Server(
            self.service.handle,
            request_factory=_request,
            handler_cancellation=True,  # a handler learns at once that its client has left
            access_log=None,
            keepalive_timeout=3600,
        )
        self._server = await asyncio.get_running_loop().create_server(
            self._http, HOST, self.port or port, backlog=1024, start_serving=False
        )
        self.port = self._server.sockets[0].getsockname()[1]
        if self._start_s:  # the port is ours, and connections are refused
            self._starting = asyncio.get_running_loop().create_task(self._serve(self._server))
        else:
            await self._serve(self._server)

    async def shut(self) -> None:
        """Close the listener and reset every connection, as Ollama does when it is told to end."""
        if self._return is not None and self._return is not asyncio.current_task():
            self._return.cancel()
            self._return = None
        if self._starting is not None:
            self._starting.cancel()
            self._starting = None
        if self._server is None or self._http is None:
            return
        # A connection that is accepted but not set up yet when its server closes is lost with its socket open
        # (`asyncio.Server._attach` fails): accept no more, let those be set up, and close then.
        for listening in self._server.sockets:
            asyncio.get_running_loop().remove_reader(listening.fileno())
        await _turns()
        self._server.close()
        for connection in self._http.connections:
            transport = connection.transport
            if transport is not None:  # one that is closing may still wait for its client to read
                peer = transport.get_extra_info("socket")
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                transport.abort()
        http, self._http, self._server = self._http, None, None
        await _turns()
        await http.shutdown(0.1)
        await _turns()  # closed transports give their sockets back in the loop's next turn
        self.ollama.forget()

    async def _serve(self, server: asyncio.Server) -> None:
        if self._start_s:
            await asyncio.sleep(self._start_s)
        self.service.up_since = monotonic()
        await server.start_serving()

    def _go_down(self, seconds: float) -> None:
        if self._return is None:
            self._return = asyncio.get_running_loop().create_task(self._come_back(seconds))

    async def _come_back(self, seconds: float) -> None:
        await self.shut()
        await asyncio.sleep(seconds)
        await self.open()
        self._return = None


async def _turns() -> None:
    """Let the loop do what is due: making or ending a connection takes it three turns at most."""
    for _ in range(3):
        await asyncio.sleep(0)


def _request(
    message: Any, payload: Any, protocol: Any, writer: Any, task: asyncio.Task[None]
) -> web.BaseRequest:
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=MAX_BODY)
