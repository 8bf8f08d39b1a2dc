"""A server that answers every route of a batch at once with a fixed, valid reply.

It speaks just enough HTTP/1.1 for the clients compared here, so that the client is what a benchmark
measures. Prints {"url": ...} as its first line and ends when its stdin closes.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

MODEL = "toy:1b"
DIGEST = "0" * 64
TEXT = "Strong fit: ten years of backend work with growing scope, solid schools, hands on to this day. " * 3
CREATED = "2026-01-01T00:00:00Z"
DETAILS = {
    "format": "gguf",
    "family": "llama",
    "families": ["llama"],
    "parameter_size": "1B",
    "quantization_level": "F16",
}


def _reply(body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


_METRICS = {
    "total_duration": 40_000_000,
    "load_duration": 1_000_000,
    "prompt_eval_count": 1000,
    "prompt_eval_duration": 9_000_000,
    "eval_count": 60,
    "eval_duration": 30_000_000,
}
_DONE = {"model": MODEL, "created_at": CREATED, "done": True, "done_reason": "stop", **_METRICS}
_LOADED = {"model": MODEL, "created_at": CREATED, "done": True, "done_reason": "load"}
_LISTED = {
    "name": MODEL,
    "model": MODEL,
    "modified_at": CREATED,
    "size": 10**9,
    "digest": DIGEST,
    "details": DETAILS,
}

CHAT = _reply({**_DONE, "message": {"role": "assistant", "content": TEXT}})
PRELOAD = _reply({**_LOADED, "message": {"role": "assistant", "content": ""}})
NOT_FOUND = (
    b"HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\nContent-Length: 18\r\n\r\n404 page not found"
)
ROUTES = {
    b"/": b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 17\r\n\r\nOllama is running",
    b"/api/version": _reply({"version": "0.33.0"}),
    b"/api/tags": _reply({"models": [_LISTED]}),
    b"/api/ps": _reply(
        {
            "models": [
                {**_LISTED, "size_vram": 10**9, "context_length": 8192, "expires_at": "2318-01-01T00:00:00Z"}
            ]
        }
    ),
    b"/api/show": _reply(
        {
            "template": "{{ .Prompt }}",
            "details": DETAILS,
            "capabilities": ["completion", "tools"],
            "modified_at": CREATED,
            "model_info": {
                "general.architecture": "llama",
                "general.parameter_count": 10**9,
                "llama.context_length": 131072,
                "llama.block_count": 16,
                "llama.embedding_length": 2048,
                "llama.attention.head_count": 32,
                "llama.attention.head_count_kv": 8,
            },
        }
    ),
    b"/api/generate": _reply({**_LOADED, "response": ""}),
    b"/v1/models": _reply(
        {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 0, "owned_by": "library"}]}
    ),
    b"/v1/chat/completions": _reply(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 0,
            "model": MODEL,
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"},
            ],
            "usage": {"prompt_tokens": 1000, "completion_tokens": 60, "total_tokens": 1060},
        }
    ),
}


class Connection(asyncio.Protocol):
    """One keep-alive connection; requests may arrive in any number of pieces."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.data = b""

    def data_received(self, data: bytes) -> None:
        self.data = data = self.data + data if self.data else data
        while True:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                return
            head = data[:end].lower()
            at = head.find(b"content-length:")
            if at >= 0:
                total = end + 4 + int(head[at + 15 :].split(b"\r\n", 1)[0])
            elif b"transfer-encoding: chunked" in head:
                last = data.find(b"\r\n0\r\n\r\n", end)
                total = last + 7 if last >= 0 else len(data) + 1
            else:
                total = end + 4
            if len(data) < total:
                return
            path = data[:end].split(b" ", 2)[1].split(b"?", 1)[0]
            if path == b"/api/chat":
                preload = total - end < 600 and b'"messages":[]' in data[end:total].replace(b" ", b"")
                self.transport.write(PRELOAD if preload else CHAT)
            else:
                self.transport.write(ROUTES.get(path, NOT_FOUND))
            self.data = data = data[total:]


async def main() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Connection, "127.0.0.1", 0, backlog=1024)
    print(json.dumps({"url": f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"}), flush=True)
    async with server:
        await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
