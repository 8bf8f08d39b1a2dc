"""What the batch server does under load: pollers, cancels, uploads, two keys, and what it costs.

The server is a process of its own (`tests/server_child.py`, as `ollama-batch serve` runs it), the engine a
fake one in another process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import harness
import httpx
import psutil
from harness import MIB, Goal, Outcome

from ollama_batch import BatchRunner, OllamaEngine
from ollama_batch.testing import CostModel, FakeOllama

CHILD = Path(__file__).parent.parent / "tests" / "server_child.py"
CHAT = "/v1/chat/completions"
OVER = ("completed", "failed", "expired", "cancelled")
BOUNDARY = "b0undary"


@contextlib.contextmanager
def server(
    latency_s: float, *, slots: int = 4, keys: tuple[str, ...] = ()
) -> Iterator[tuple[str, psutil.Process]]:
    """A server and its engine, each in a process of its own."""
    with (
        tempfile.TemporaryDirectory() as folder,
        FakeOllama.spawn(speed=CostModel(latency_s=latency_s), slots=slots) as fake,
        socket.socket() as free,
    ):
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        told = {"data": f"{folder}/data", "port": port, "engine": fake.url, "kill": None, "keys": keys}
        child = subprocess.Popen([sys.executable, str(CHILD), json.dumps(told)])
        try:
            url = f"http://127.0.0.1:{port}"
            until = time.monotonic() + 60
            while time.monotonic() < until:
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(f"{url}/health").status_code == 200:
                        break
                time.sleep(0.05)  # until it listens
            yield url, psutil.Process(child.pid)
        finally:
            child.terminate()
            child.wait(60)


def lines(count: int, prefix: str) -> bytes:
    made = []
    for n in range(count):
        body = {"model": "toy:1b", "messages": [{"role": "user", "content": f"{prefix}-{n}\nhello"}]}
        made.append(json.dumps({"custom_id": f"{prefix}-{n}", "method": "POST", "url": CHAT, "body": body}))
    return "\n".join(made).encode() + b"\n"


async def make(client: httpx.AsyncClient, data: bytes) -> str:
    form: Any = {"file": ("in.jsonl", data)}
    file = (await client.post("/v1/files", data={"purpose": "batch"}, files=form)).json()["id"]
    asked = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
    return str((await client.post("/v1/batches", json=asked)).json()["id"])


async def over(client: httpx.AsyncClient, batch: str, patience_s: float = 3600) -> dict[str, Any]:
    until = time.monotonic() + patience_s
    while True:
        told = (await client.get(f"/v1/batches/{batch}")).json()
        if told["status"] in OVER:
            return dict(told)
        if time.monotonic() > until:
            raise TimeoutError(f"{batch} is {told['status']}")
        await asyncio.sleep(0.02)


def p99(values: list[float]) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]


async def asked_every(
    client: httpx.AsyncClient, path: str, every_s: float, taken: list[float], stop: asyncio.Event
) -> None:
    """Ask at a steady pace until told to stop; how long each answer took."""
    await asyncio.sleep(random.random() * every_s)
    while not stop.is_set():
        began = time.perf_counter()
        (await client.get(path)).raise_for_status()
        taken.append(time.perf_counter() - began)
        await asyncio.sleep(max(0.0, every_s - (time.perf_counter() - began)))


def limits() -> httpx.Limits:
    return httpx.Limits(max_connections=200, max_keepalive_connections=200)


def polling(found: Any) -> Outcome:
    """20 clients poll a running batch at 10 Hz: how long that takes, and what it costs the batch."""
    total = 2_000 if found.quick else 50_000
    window_s = 4.0 if found.quick else 20.0

    async def measure(url: str) -> tuple[list[dict[str, Any]], list[float]]:
        pairs, taken = [], []
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits()) as client:
            batch = await make(client, lines(total, "row"))

            async def done() -> int:
                return int((await client.get(f"/v1/batches/{batch}")).json()["request_counts"]["completed"])

            while await done() < 50:
                await asyncio.sleep(0.1)
            for number in range(2 if found.quick else 5):
                rates = {}
                for polled in (False, True) if number % 2 else (True, False):
                    stop = asyncio.Event()
                    pollers = [
                        asyncio.create_task(asked_every(client, f"/v1/batches/{batch}", 0.1, taken, stop))
                        for _ in range(20 if polled else 0)
                    ]
                    first, began = await done(), time.perf_counter()
                    await asyncio.sleep(window_s / 2)
                    rates[polled] = (await done() - first) / (time.perf_counter() - began)
                    stop.set()
                    await asyncio.gather(*pollers)
                pairs.append(
                    {"alone": rates[False], "polled": rates[True], "loss": 1 - rates[True] / rates[False]}
                )
            await client.post(f"/v1/batches/{batch}/cancel")
            await over(client, batch)
        return pairs, taken

    with server(0.05, slots=8) as (url, _):
        pairs, taken = asyncio.run(measure(url))
    loss = harness.median([pair["loss"] for pair in pairs])
    goals = [
        Goal("99th percentile of retrieve, 20 clients at 10 Hz", 1000 * p99(taken), 100.0, " ms"),
        Goal("throughput lost to it (median of pairs)", 100 * loss, 5.0, " %"),
    ]
    rows = [[f"{total:,} lines", len(taken), 1000 * p99(taken), 1000 * max(taken), 100 * loss]]
    columns = ["batch", "polls", "p99 ms", "max ms", "throughput lost, %"]
    notes = ["lines of 50 ms on an engine of 8 slots; with and without pollers in turns, in one run"]
    return Outcome("server_polling", harness.command_line(), columns, rows, goals, pairs, notes, found.quick)


def storm(found: Any) -> Outcome:
    """50 clients make 200 batches while 20 cancels a second come."""
    clients, batches, seconds = (10, 40, 15.0) if found.quick else (50, 200, 120.0)
    statuses: Counter[int] = Counter()

    async def hook(reply: httpx.Response) -> None:
        statuses[reply.status_code] += 1

    async def measure(url: str) -> Counter[str]:
        options: Any = {"timeout": 60, "limits": limits(), "event_hooks": {"response": [hook]}}
        async with httpx.AsyncClient(base_url=url, **options) as client:
            made: list[str] = []
            queue = iter(range(batches))

            async def one() -> None:
                for n in queue:
                    made.append(await make(client, lines(40, f"b{n}")))
                    await asyncio.sleep(random.random() * seconds * clients / batches)

            async def cancels() -> None:
                until = time.monotonic() + seconds
                while time.monotonic() < until:
                    if made:
                        await client.post(f"/v1/batches/{random.choice(made)}/cancel")
                    await asyncio.sleep(0.05)

            await asyncio.gather(cancels(), *(one() for _ in range(clients)))
            ended = [await over(client, batch, 300) for batch in made]
            for told in ended:
                counts = told["request_counts"]
                found_lines = 0
                for kind in ("output", "error"):
                    if told[f"{kind}_file_id"]:
                        reply = await client.get(f"/v1/files/{told[f'{kind}_file_id']}/content")
                        found_lines += len(reply.content.splitlines())
                assert found_lines == counts["total"], told
            return Counter(told["status"] for told in ended)

    with server(0.01) as (url, _):
        ended = asyncio.run(measure(url))
    bad = sum(n for status, n in statuses.items() if status >= 500)
    goals = [
        Goal("answers of 5xx", float(bad), 0),
        Goal("batches that did not end", float(batches - sum(ended.values())), 0),
    ]
    rows = [[clients, batches, sum(statuses.values()), bad, ended["completed"], ended["cancelled"]]]
    columns = ["clients", "batches", "answers", "5xx", "completed", "cancelled"]
    return Outcome(
        "server_storm", harness.command_line(), columns, rows, goals, [dict(statuses)], [], found.quick
    )


def uploads(found: Any) -> Outcome:
    """A 200 MB upload that is right, and an endless one that is not: memory, and what others notice."""
    right, endless = (20, 400) if found.quick else (200, 5 * 1024)

    def form(mib: int, sent: list[int]) -> Any:
        async def pieces() -> AsyncIterator[bytes]:
            yield f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'.encode()
            head = f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\n'
            yield head.encode()
            piece = (b"x" * 1023 + b"\n") * 1024
            for _ in range(mib):
                sent[0] += len(piece)
                yield piece
            yield f"\r\n--{BOUNDARY}--\r\n".encode()

        return pieces()

    async def measure(url: str, process: psutil.Process) -> dict[str, Any]:
        kind = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
        taken: list[float] = []
        stop, peak = asyncio.Event(), 0

        async def watch() -> None:
            nonlocal peak
            while not stop.is_set():
                peak = max(peak, process.memory_info().rss)
                await asyncio.sleep(0.01)

        async with (
            httpx.AsyncClient(base_url=url, timeout=600, limits=limits()) as client,
            httpx.AsyncClient(base_url=url, timeout=600) as uploading,
        ):
            await make(client, lines(10, "warm"))
            before = process.memory_info().rss
            others = [
                asyncio.create_task(asked_every(client, "/v1/files?limit=5", 0.05, taken, stop))
                for _ in range(4)
            ]
            watching = asyncio.create_task(watch())
            sent = [0]
            good = await uploading.post("/v1/files", content=form(right, sent), headers=kind)
            assert good.status_code == 200, good.text
            grown_right, peak = peak - before, 0
            sent, status = [0], 413
            with contextlib.suppress(httpx.TransportError):
                status = (
                    await uploading.post("/v1/files", content=form(endless, sent), headers=kind)
                ).status_code
            stop.set()
            await asyncio.gather(watching, *others)
            return {
                "right_mib": grown_right / MIB,
                "endless_mib": (peak - before) / MIB,
                "sent_mib": sent[0] / MIB,
                "status": status,
                "p99_ms": 1000 * p99(taken),
            }

    with server(0.0) as (url, process):
        told = asyncio.run(measure(url, process))
    goals = [
        Goal(f"memory grown by an upload of {right} MiB", told["right_mib"], 64.0, " MiB"),
        Goal("memory grown by an endless one", told["endless_mib"], 64.0, " MiB"),
        Goal("what is taken of an endless one", told["sent_mib"], 300.0, " MiB"),
        Goal("99th percentile of other requests meanwhile", told["p99_ms"], 150.0, " ms"),
    ]
    rows = [[right, told["right_mib"], told["endless_mib"], told["sent_mib"], told["status"], told["p99_ms"]]]
    columns = [
        "MiB uploaded",
        "grown, MiB",
        "grown by endless, MiB",
        "taken of it, MiB",
        "status",
        "p99 of others, ms",
    ]
    return Outcome("server_uploads", harness.command_line(), columns, rows, goals, [told], [], found.quick)


def sharing(found: Any) -> Outcome:
    """10 lines of one key beside 50,000 of another, against the same 10 alone."""
    total = 2_000 if found.quick else 50_000
    keys = ("sk-benchmark-first-key", "sk-benchmark-second-key")

    async def timed(client: httpx.AsyncClient, name: str) -> float:
        began = time.perf_counter()
        await over(client, await make(client, lines(10, name)))
        return time.perf_counter() - began

    async def measure(url: str) -> tuple[list[float], list[float]]:
        first, second = (
            httpx.AsyncClient(base_url=url, timeout=60, headers={"authorization": f"Bearer {key}"})
            for key in keys
        )
        async with first, second:
            alone = [await timed(second, f"alone{n}") for n in range(5)]
            many = await make(first, lines(total, "many"))
            while (await first.get(f"/v1/batches/{many}")).json()["request_counts"]["completed"] < 20:
                await asyncio.sleep(0.05)
            beside = [await timed(second, f"beside{n}") for n in range(5)]
            await first.post(f"/v1/batches/{many}/cancel")
            await over(first, many)
        return alone, beside

    with server(0.2, keys=keys) as (url, _):
        alone, beside = asyncio.run(measure(url))
    ratio = harness.median(beside) / harness.median(alone)
    goals = [Goal("10 lines beside many of another key, against alone (median)", ratio, 2.0, "x")]
    rows = [[f"{total:,}", harness.median(alone), harness.median(beside), ratio]]
    pairs = [{"alone_s": a, "beside_s": b} for a, b in zip(alone, beside, strict=True)]
    columns = ["lines of the other", "alone, s", "beside, s", "ratio"]
    return Outcome("server_sharing", harness.command_line(), columns, rows, goals, pairs, [], found.quick)


def throughput(found: Any) -> Outcome:
    """The same lines through the library and through the server, in turns."""
    total, repeats = (300, 2) if found.quick else (2_000, 5)

    def library(engine_url: str, data: bytes) -> float:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "in.jsonl")
            path.write_bytes(data)
            began = time.perf_counter()
            engine = OllamaEngine(engine_url)
            options: Any = {"guards": (), "state_dir": None, "concurrency": 4, "progress": "none"}
            BatchRunner(model="toy:1b", engine=engine, **options).run(path, output=Path(folder, "out.jsonl"))
            return time.perf_counter() - began

    async def served(url: str, data: bytes) -> float:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            began = time.perf_counter()
            told = await over(client, await make(client, data))
            await client.get(f"/v1/files/{told['output_file_id']}/content")
            return time.perf_counter() - began

    pairs = []
    with FakeOllama.spawn(speed=CostModel(latency_s=0.02)) as fake, server(0.02) as (url, _):
        for number in range(repeats):
            data = lines(total, f"t{number}")
            taken = {}
            for name in ("library", "server") if number % 2 else ("server", "library"):
                taken[name] = library(fake.url, data) if name == "library" else asyncio.run(served(url, data))
            pairs.append({**taken, "share": taken["library"] / taken["server"]})
    share = harness.median([pair["share"] for pair in pairs])
    goals = [
        Goal(
            "throughput through the server, of the library's own (median of pairs)",
            100 * share,
            90.0,
            " %",
            True,
        )
    ]
    rows = [
        [
            f"{total:,}",
            *(harness.median([pair[name] for pair in pairs]) for name in ("library", "server")),
            100 * share,
        ]
    ]
    columns = ["lines", "library, s", "server, s", "share, %"]
    notes = ["lines of 20 ms, 4 at a time; the server's time has upload, polling and download in it"]
    return Outcome("server_cost", harness.command_line(), columns, rows, goals, pairs, notes, found.quick)


if __name__ == "__main__":
    parts = {
        "polling": polling,
        "storm": storm,
        "uploads": uploads,
        "sharing": sharing,
        "throughput": throughput,
    }
    sys.exit(harness.run_parts(harness.parser(__doc__), parts))
