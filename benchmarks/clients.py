"""The clients that are compared: each reads the same JSONL, sends every body, writes an output line per row.

    python benchmarks/clients.py NAME --input IN --output OUT --url URL [--concurrency N]

Run in a process of its own; the last line printed is a JSON object with `rows`, `work_s` (without
interpreter start and imports) and `peak_rss_bytes`. The loops are written as a user would write them;
every answer is waited for, its text taken out, and a line with id and text written.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from harness import MODEL, own_peak_rss_bytes


@dataclass(frozen=True, slots=True)
class Job:
    """What a client is asked to do."""

    input: Path
    output: Path
    url: str
    concurrency: int
    options: dict[str, Any]

    def bodies(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(custom_id, body) of every line; nothing is held."""
        with self.input.open("rb") as file:
            for raw in file:
                line = json.loads(raw)
                yield line["custom_id"], line["body"]


Send = Callable[[dict[str, Any]], Awaitable[str]]


async def _pool(job: Job, make_send: Callable[[], Awaitable[Send]]) -> int:
    """The loop all bare clients share: `concurrency` workers on one iterator, one output file."""
    rows = job.bodies()
    count = 0
    with job.output.open("w", encoding="utf-8") as out:

        async def work() -> None:
            nonlocal count
            send = await make_send()
            for custom_id, body in rows:
                out.write(json.dumps({"custom_id": custom_id, "output": await send(body)}) + "\n")
                count += 1

        async with asyncio.TaskGroup() as group:
            for _ in range(job.concurrency):
                group.create_task(work())
    return count


def sockets(job: Job) -> Callable[[], int]:
    """Bare non-blocking sockets: the floor. Opens a new connection when the server closes one."""
    import socket

    parts = urlsplit(job.url)
    address = (parts.hostname or "127.0.0.1", parts.port or 80)

    async def make_send() -> Send:
        loop = asyncio.get_running_loop()
        sock: socket.socket | None = None

        async def connect() -> socket.socket:
            made = socket.socket()
            made.setblocking(False)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(made, address)
            return made

        async def send(body: dict[str, Any]) -> str:
            nonlocal sock
            content = json.dumps(body).encode()
            request = (
                f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address[0]}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
            ).encode() + content
            for fresh in (False, True):
                if sock is None:
                    sock = await connect()
                try:
                    await loop.sock_sendall(sock, request)
                    data = await loop.sock_recv(sock, 65536)
                except ConnectionError:
                    data = b""
                if data:
                    break
                sock.close()  # closed between two requests, as keep-alive allows: send it once more
                sock = None
                if fresh:
                    raise ConnectionError("the server closes every connection")
            assert sock is not None
            while (end := data.find(b"\r\n\r\n")) < 0:
                data += await loop.sock_recv(sock, 65536)
            head = data[:end].lower()
            if not head.startswith((b"http/1.1 200", b"http/1.0 200")):
                raise RuntimeError(data[:500].decode(errors="replace"))
            length = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
            while len(data) < end + 4 + length:
                piece = await loop.sock_recv(sock, 65536)
                if not piece:
                    raise ConnectionError("the reply was cut off")
                data += piece
            if b"connection: close" in head:
                sock.close()
                sock = None
            text: str = json.loads(data[end + 4 :])["choices"][0]["message"]["content"]
            return text

        return send

    return lambda: asyncio.run(_pool(job, make_send))


def aiohttp(job: Job) -> Callable[[], int]:
    """A bare aiohttp loop."""
    import aiohttp as library

    async def go() -> int:
        url = job.url + "/v1/chat/completions"
        async with library.ClientSession(timeout=library.ClientTimeout(total=None)) as session:

            async def make_send() -> Send:
                async def send(body: dict[str, Any]) -> str:
                    async with session.post(url, json=body) as reply:
                        reply.raise_for_status()
                        text: str = (await reply.json())["choices"][0]["message"]["content"]
                        return text

                return send

            return await _pool(job, make_send)

    return lambda: asyncio.run(go())


def httpx(job: Job) -> Callable[[], int]:
    """A bare httpx loop."""
    import httpx as library

    async def go() -> int:
        url = job.url + "/v1/chat/completions"
        async with library.AsyncClient(timeout=None) as client:

            async def make_send() -> Send:
                async def send(body: dict[str, Any]) -> str:
                    reply = await client.post(url, json=body)
                    reply.raise_for_status()
                    text: str = reply.json()["choices"][0]["message"]["content"]
                    return text

                return send

            return await _pool(job, make_send)

    return lambda: asyncio.run(go())


def openai(job: Job) -> Callable[[], int]:
    """A loop over the official openai SDK."""
    from openai import AsyncOpenAI

    async def go() -> int:
        async with AsyncOpenAI(base_url=job.url + "/v1", api_key="none", timeout=3600) as client:

            async def make_send() -> Send:
                async def send(body: dict[str, Any]) -> str:
                    extra = {key: body.pop(key) for key in ("ignore_eos",) if key in body}
                    reply = await client.chat.completions.create(**body, extra_body=extra or None)
                    return reply.choices[0].message.content or ""

                return send

            return await _pool(job, make_send)

    return lambda: asyncio.run(go())


def ollama_batch(job: Job) -> Callable[[], int]:
    """BatchRunner, complete: validation, journal, metrics, both passes, export.

    Options: api "ollama" (default) or "openai"; extra_body for the openai engine; runner and run
    keyword arguments.
    """
    from ollama_batch import BatchRunner

    options = dict(job.options)
    engine: Any
    if options.get("api", "ollama") == "openai":
        from ollama_batch.engines import OpenAIEngine

        engine = OpenAIEngine(job.url + "/v1", extra_body=options.get("extra_body"))
    else:
        from ollama_batch.engines import OllamaEngine

        engine = OllamaEngine(job.url)
    settings = {"num_ctx": 8192, "progress": "none", **options.get("runner", {})}
    runner = BatchRunner(model=MODEL, engine=engine, concurrency=job.concurrency, **settings)

    def go() -> int:
        try:
            report = runner.run(job.input, output=job.output, **options.get("run", {}))
        finally:
            asyncio.run(engine.aclose())
        if not report.ok:
            raise RuntimeError(str(report))
        with job.output.open("rb") as file:
            return sum(1 for _ in file)

    return go


def curator(job: Job) -> Callable[[], int]:
    """bespokelabs-curator with its OpenAI backend, cache in a folder beside the output."""
    import importlib.util
    import os

    os.environ.update(CURATOR_CACHE_DIR=str(job.output) + ".cache", TELEMETRY_ENABLED="0", CURATOR_VIEWER="0")
    litellm_spec = importlib.util.find_spec("litellm")
    if litellm_spec is not None and litellm_spec.origin is not None:
        # curator counts with tiktoken, which downloads its table; litellm, which it needs anyway, brings it
        tables = Path(litellm_spec.origin).parent / "litellm_core_utils" / "tokenizers"
        os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(tables))
    os.environ.setdefault("OPENAI_API_KEY", "none")
    from bespokelabs import curator as library

    class Judge(library.LLM):  # type: ignore[misc]  # the library ships no types
        def prompt(self, row: dict[str, Any]) -> Any:
            return row["messages"]

        def parse(self, row: dict[str, Any], response: str) -> dict[str, Any]:
            return {"custom_id": row["custom_id"], "output": response}

    def go() -> int:
        rows: list[dict[str, Any]] = []
        first: dict[str, Any] = {}
        for custom_id, body in job.bodies():
            first = first or body
            rows.append({"custom_id": custom_id, "messages": body["messages"]})
        known = {key: first[key] for key in ("temperature", "max_tokens") if key in first}
        extra = {key: first[key] for key in ("ignore_eos",) if key in first}
        judge = Judge(
            model_name=MODEL,
            backend="openai",
            backend_params={
                "base_url": job.url + "/v1",
                "api_key": "none",
                "max_concurrent_requests": job.concurrency,
                "max_requests_per_minute": 10**7,
                "max_tokens_per_minute": 10**10,
                "request_timeout": 3600,
            },
            generation_params={**known, **({"extra_body": extra} if extra else {})},
        )
        answers = judge(rows)
        dataset = getattr(answers, "dataset", answers)
        with job.output.open("w", encoding="utf-8") as out:
            for row in dataset:
                out.write(json.dumps({"custom_id": row["custom_id"], "output": row["output"]}) + "\n")
        return len(dataset)

    return go


def litellm(job: Job) -> Callable[[], int]:
    """A loop over litellm.acompletion with its openai provider."""
    import litellm as library

    library.telemetry = False
    library.suppress_debug_info = True

    async def make_send() -> Send:
        async def send(body: dict[str, Any]) -> str:
            fields = {**body, "model": "openai/" + body["model"]}
            reply = await library.acompletion(
                **fields, api_base=job.url + "/v1", api_key="none", timeout=3600
            )
            return reply.choices[0].message.content or ""

        return send

    return lambda: asyncio.run(_pool(job, make_send))


def inspect_ai(job: Job) -> Callable[[], int]:
    """inspect_ai: an eval of one task over all rows, its log beside the output."""
    import os

    os.environ.setdefault("INSPECT_DISPLAY", "none")
    from inspect_ai import Task, eval  # noqa: A004  # the library's own name
    from inspect_ai.dataset import MemoryDataset, Sample
    from inspect_ai.model import ChatMessageSystem, ChatMessageUser, get_model
    from inspect_ai.solver import generate

    def go() -> int:
        samples = []
        for custom_id, body in job.bodies():
            system, user = (message["content"] for message in body["messages"])
            messages: list[Any] = [ChatMessageSystem(content=system), ChatMessageUser(content=user)]
            samples.append(Sample(id=custom_id, input=messages))
        model = get_model("openai/" + MODEL, base_url=job.url + "/v1", api_key="none", responses_api=False)
        log = eval(
            Task(dataset=MemoryDataset(samples), solver=generate()),
            model=model,
            max_connections=job.concurrency,
            max_samples=job.concurrency,
            temperature=0.0,
            max_tokens=256,
            log_dir=str(job.output) + ".logs",
            display="none",
        )[0]
        if log.status != "success" or log.samples is None:
            raise RuntimeError(f"inspect_ai ended with {log.status}")
        with job.output.open("w", encoding="utf-8") as out:
            for sample in log.samples:
                out.write(json.dumps({"custom_id": sample.id, "output": sample.output.completion}) + "\n")
        return len(log.samples)

    return go


CLIENTS: dict[str, Callable[[Job], Callable[[], int]]] = {
    "sockets": sockets,
    "aiohttp": aiohttp,
    "httpx": httpx,
    "openai": openai,
    "ollama_batch": ollama_batch,
    "curator": curator,
    "litellm": litellm,
    "inspect_ai": inspect_ai,
}


def command(
    name: str,
    *,
    input: Path,  # noqa: A002  # named as the option it becomes
    output: Path,
    url: str,
    concurrency: int,
    python: str | None = None,
    options: dict[str, Any] | None = None,
) -> list[str]:
    """The command line that runs client `name` in a fresh interpreter (`python`, default this one)."""
    line = [python or sys.executable, str(Path(__file__)), name]
    line += ["--input", str(input), "--output", str(output), "--url", url, "--concurrency", str(concurrency)]
    return [*line, "--options", json.dumps(options or {})]


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("client", choices=sorted(CLIENTS))
    args.add_argument("--input", type=Path, required=True)
    args.add_argument("--output", type=Path, required=True)
    args.add_argument("--url", required=True)
    args.add_argument("--concurrency", type=int, default=8)
    args.add_argument("--options", type=json.loads, default={}, help="a JSON object for the client")
    found = args.parse_args()
    go = CLIENTS[found.client](Job(found.input, found.output, found.url, found.concurrency, found.options))
    started = time.monotonic()
    rows = go()
    work_s = time.monotonic() - started
    print(json.dumps({"rows": rows, "work_s": work_s, "peak_rss_bytes": own_peak_rss_bytes()}), flush=True)


if __name__ == "__main__":
    main()
