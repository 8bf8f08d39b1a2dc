"""Small servers and transports for the tests of engines."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import orjson

from ollama_batch.types import ChatRequest

HELLO = [{"role": "user", "content": "hello"}]

OLLAMA_ANSWER: dict[str, Any] = {
    "model": "m:1b",
    "created_at": "2026-08-21T10:00:00.123456789Z",
    "message": {"role": "assistant", "content": "good day"},
    "done": True,
    "done_reason": "stop",
    "total_duration": 10_000_000_000,
    "load_duration": 1_000_000_000,
    "prompt_eval_count": 26,
    "prompt_eval_duration": 2_000_000_000,
    "eval_count": 7,
    "eval_duration": 3_000_000_000,
}

OPENAI_ANSWER: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1_787_000_000,
    "model": "m:1b",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "good day"}, "finish_reason": "stop"}
    ],
    "usage": {"prompt_tokens": 26, "completion_tokens": 7, "total_tokens": 33},
}


def request(**changes: Any) -> ChatRequest:
    """A plain request, with `changes`."""
    settings: dict[str, Any] = {
        "custom_id": "r1",
        "model": "m:1b",
        "messages": HELLO,
        "params": {},
        "max_tokens": 100,
        "num_ctx": 4096,
    }
    return ChatRequest(**{**settings, **changes})


def soon(seconds: float = 20.0) -> float:
    """A deadline."""
    return time.monotonic() + seconds


class Canned(httpx.AsyncBaseTransport):
    """A transport that answers every request alike, or by path, and keeps what it was sent."""

    def __init__(
        self,
        answer: Any = None,
        *,
        status: int = 200,
        headers: dict[str, str] | None = None,
        paths: dict[str, Any] | None = None,
    ) -> None:
        self.answer = answer
        self.status = status
        self.headers = headers or {}
        self.paths = paths or {}
        self.requests: list[httpx.Request] = []
        self.closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.paths.get(request.url.path, self.answer)
        status = self.status
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if isinstance(answer, tuple):
            status, answer = answer
        if isinstance(answer, Exception):
            raise answer
        if answer is None:
            status, answer = 404, "404 page not found"
        content = answer.encode() if isinstance(answer, str) else orjson.dumps(answer)
        return httpx.Response(status, headers=self.headers, content=content)

    async def aclose(self) -> None:
        self.closed = True

    def sent(self, position: int = -1) -> dict[str, Any]:
        """The JSON body of a request."""
        body: dict[str, Any] = orjson.loads(self.requests[position].content)
        return body


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def raw_server(serve: Serve) -> AsyncIterator[str]:
    """The URL of a server that does with every connection what `serve` says."""

    handlers: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        handlers.add(task)
        gone = (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError)
        with contextlib.suppress(*gone):
            await serve(reader, writer)
            writer.close()
            await writer.wait_closed()
        writer.transport.abort()
        handlers.discard(task)

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        for listening in server.sockets:
            asyncio.get_running_loop().remove_reader(listening.fileno())
        for _ in range(3):  # what was accepted is set up, and its handler begun, before the server closes
            await asyncio.sleep(0)
        server.close()
        for task in list(handlers):
            task.cancel()
        await asyncio.gather(*handlers)
        await server.wait_closed()


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """One whole HTTP request with a content-length."""
    head = await reader.readuntil(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return head + await reader.readexactly(int(line.split(b":")[1]))
    return head


def http_answer(body: bytes, *, status: str = "200 OK", extra: str = "") -> bytes:
    """A complete HTTP answer."""
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
    )
    return head.encode() + body
