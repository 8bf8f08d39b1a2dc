"""A real server on 127.0.0.1 with a fake Ollama behind it, and what tests send to it."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from unittest import mock

import httpx
import psutil
import uvicorn.server
from openai import OpenAI

from ollama_batch.server import ServerSettings, create_app, scheduler
from ollama_batch.server.service import Service
from ollama_batch.server.serving import make_server
from ollama_batch.testing import FakeOllama

CHAT = "/v1/chat/completions"
MODEL = "toy:1b"
OVER = ("completed", "failed", "expired", "cancelled")
PATIENCE_S = 20.0
RUNNER: dict[str, Any] = {"guards": (), "state_dir": None}
KEYS = ("sk-first-0123456789abcdef", "sk-second-0123456789abcdef")

FILE_KEYS = {
    "id": str,
    "object": str,
    "bytes": int,
    "created_at": int,
    "expires_at": (int, type(None)),
    "filename": str,
    "purpose": str,
    "status": str,
    "status_details": (str, type(None)),
}
STAMPS = (
    "in_progress_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
)
BATCH_KEYS: dict[str, Any] = {
    "id": str,
    "object": str,
    "endpoint": str,
    "errors": (dict, type(None)),
    "input_file_id": str,
    "completion_window": str,
    "status": str,
    "output_file_id": (str, type(None)),
    "error_file_id": (str, type(None)),
    "created_at": int,
    "expires_at": int,
    **dict.fromkeys(STAMPS, (int, type(None))),
    "request_counts": dict,
    "metadata": (dict, type(None)),
    "model": (str, type(None)),
    "usage": (dict, type(None)),
}


def check_keys(told: Mapping[str, Any], keys: Mapping[str, Any]) -> None:
    """Every key is there, with the right type, and no other."""
    assert set(told) == set(keys)
    for name, kind in keys.items():
        assert isinstance(told[name], kind), (name, told[name])
        assert not isinstance(told[name], bool), name


class MemoryGrowth:
    """How far the memory of this process, server and client together, grows meanwhile: `most`, in bytes."""

    def __init__(self) -> None:
        self.most = 0
        self._stop = threading.Event()
        self._watching = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._watching.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._watching.join()

    def _watch(self) -> None:
        process = psutil.Process()
        before = process.memory_info().rss
        while not self._stop.wait(0.005):
            self.most = max(self.most, process.memory_info().rss - before)


class Clock:
    """A time of day that tests move."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Serving:
    """A server at work."""

    url: str
    port: int
    service: Service
    fake: FakeOllama
    clients: list[Any] = field(default_factory=list)

    def sdk(self, key: str = "none", **options: Any) -> OpenAI:
        client = OpenAI(base_url=f"{self.url}/v1", api_key=key, **{"max_retries": 0, **options})
        self.clients.append(client)
        return client

    def http(self, key: str | None = None) -> httpx.Client:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        client = httpx.Client(base_url=self.url, headers=headers, timeout=30)
        self.clients.append(client)
        return client

    def wake(self) -> None:
        loop = self.service.loop
        assert loop is not None
        loop.call_soon_threadsafe(self.service.scheduler.wake)

    def raw(self, data: bytes, *, timeout: float = 10.0) -> bytes:
        """What is answered to `data` on a connection of its own, until it is closed or silent."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as sock:
            sock.sendall(data)
            answer = b""
            while True:
                try:
                    piece = sock.recv(65536)
                except TimeoutError:
                    return answer
                if not piece:
                    return answer
                answer += piece
                if complete(answer):
                    return answer


def complete(answer: bytes) -> bool:
    """Whether an answer with a Content-Length is all there."""
    head, found, body = answer.partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if found and line.startswith(b"content-length:"):
            return len(body) >= int(line.partition(b":")[2])
    return False


class _Hasty:
    """asyncio for uvicorn, which looks every 0.1 s whether it is to stop, and waits as long once more."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    @staticmethod
    async def sleep(seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.02))


class _Said(logging.Handler):
    """Remembers what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@contextmanager
def nothing_private_logged() -> Iterator[None]:
    """Fails if a prompt of `line` or one of KEYS is logged at a server's own level, in whatever test."""
    said, loggers = _Said(), [logging.getLogger(name) for name in ("ollama_batch", "uvicorn.error")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(said)
        logger.setLevel(min(logger.level or logging.INFO, logging.INFO))
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.removeHandler(said)
            logger.setLevel(level)
    private = [each for each in said.lines if "hello" in each or any(key in each for key in KEYS)]
    assert private == []
    assert any("batch_" in each or "server" in each for each in said.lines), "nothing was heard at all"


@contextmanager
def serving(
    folder: Path,
    fake: FakeOllama,
    *,
    keys: tuple[str, ...] = (),
    clock: Callable[[], float] = time.time,
    engine: Any = None,
    **settings: Any,
) -> Iterator[Serving]:
    """A server on a free port."""
    settings = {"cancel_grace_s": 5.0, "runner": RUNNER, **settings}
    app = create_app(
        folder,
        base_url=None if engine is not None else fake.url,
        engine=engine,
        keys=keys,
        settings=ServerSettings(**settings),
        clock=clock,
    )
    # What is waited for by the clock alone is waited for briefly.
    brief = mock.patch.multiple(scheduler, TICK_S=0.1, MOST_WAIT_S=0.1)
    hasty = mock.patch.object(uvicorn.server, "asyncio", _Hasty())
    with brief, hasty, nothing_private_logged(), socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        server = make_server(app, port=port)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        until(lambda: server.started or not thread.is_alive())
        assert server.started, "the server did not start"
        try:
            served = Serving(f"http://127.0.0.1:{port}", port, app.state.service, fake)
            yield served
        finally:
            for client in served.clients:
                client.close()
            with suppress(RuntimeError):  # a test may have ended it
                fake.release()
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


def until(done: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
    """Wait until `done()` is true, and return that."""
    end = time.monotonic() + patience_s
    while not (found := done()):
        assert time.monotonic() < end, "waited for too long"
        time.sleep(0.005)  # between two looks
    return found


def line(custom_id: Any, *, text: str | None = None, **body: Any) -> str:
    """One line of an input; its ledger key is its custom_id."""
    said = f"{custom_id}\nhello" if text is None else text
    inner = {"model": MODEL, "messages": [{"role": "user", "content": said}], **body}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": CHAT, "body": inner})


def jsonl(*lines: str | bytes) -> bytes:
    return b"".join((each.encode() if isinstance(each, str) else each) + b"\n" for each in lines)


def rows(count: int, prefix: str = "row") -> bytes:
    return jsonl(*(line(f"{prefix}-{n}") for n in range(count)))


def upload(client: OpenAI, data: bytes, **options: Any) -> Any:
    return client.files.create(file=("in.jsonl", data), purpose="batch", **options)


def create(client: OpenAI, data: bytes | str, **options: Any) -> Any:
    file_id = data if isinstance(data, str) else upload(client, data).id
    return client.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h", **options)


def ended(client: OpenAI, batch_id: str, patience_s: float = PATIENCE_S) -> Any:
    """The batch once it is over."""

    def look() -> Any:
        batch = client.batches.retrieve(batch_id)
        return batch if batch.status in OVER else None

    return until(look, patience_s)


def run(client: OpenAI, data: bytes, **options: Any) -> Any:
    return ended(client, create(client, data, **options).id)


def read(client: OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    """The lines of a result file, none of no file."""
    if file_id is None:
        return []
    return [json.loads(each) for each in client.files.content(file_id).content.splitlines()]


def results(client: OpenAI, batch: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    return read(client, batch.output_file_id), read(client, batch.error_file_id)


def ids(*files: list[dict[str, Any]]) -> list[str]:
    return [each["custom_id"] for file in files for each in file]


def errors_of(batch: Any) -> list[tuple[str, int | None, str | None]]:
    """(code, line, param) of a failed batch."""
    assert batch.status == "failed", batch
    return [(each.code, each.line, each.param) for each in batch.errors.data]
