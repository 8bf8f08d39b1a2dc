"""Engines against sockets that misbehave."""

import asyncio
import gc
import socket
import struct
import threading

import orjson
import pytest

from engines_support import OLLAMA_ANSWER, http_answer, raw_server, read_request, request, soon
from ollama_batch import errors as e
from ollama_batch.engines.ollama import OllamaEngine
from ollama_batch.engines.openai import OpenAIEngine

ANSWER = orjson.dumps(OLLAMA_ANSWER)


async def good(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        await read_request(reader)
        writer.write(http_answer(ANSWER))


async def close_unanswered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(http_answer(ANSWER)[:-20])


async def cut_chunked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"mod\r\n')


async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(b"\x00\x01 this is no HTTP\r\n\r\n")


async def not_json(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(http_answer(b"<html>"))


async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(http_answer(b"", status="307 Temporary Redirect", extra="Location: http://127.0.0.1:1/\r\n"))


async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def hang_in_the_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(http_answer(ANSWER)[:-20])
    await writer.drain()
    await reader.read()


CASES = [
    (close_unanswered, e.EngineConnectionError),
    (reset, e.EngineConnectionError),
    (cut, e.EngineConnectionError),
    (cut_chunked, e.EngineConnectionError),
    (garbage, e.InvalidReplyError),
    (not_json, e.InvalidReplyError),
    (redirect, e.InvalidReplyError),
]


@pytest.mark.parametrize("kind", [OllamaEngine, OpenAIEngine])
@pytest.mark.parametrize(("serve", "expected"), CASES)
async def test_a_broken_answer_is_a_named_error(serve, expected, kind) -> None:
    async with raw_server(serve) as url:
        engine = kind(url)
        with pytest.raises(e.EngineError) as caught:
            await engine.complete(request(), deadline=soon())
        assert type(caught.value) is expected
        await engine.aclose()


@pytest.mark.parametrize("serve", [hang, hang_in_the_body])
async def test_the_deadline_bounds_the_whole_answer(serve) -> None:
    async with raw_server(serve) as url:
        engine = OllamaEngine(url)
        with pytest.raises(e.EngineTimeoutError):
            await engine.complete(request(), deadline=soon(0.3))
        await engine.aclose()


async def test_one_byte_at_a_time_does_not_outlive_the_deadline() -> None:
    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        for byte in http_answer(ANSWER):
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.01)

    async with raw_server(trickle) as url:
        engine = OllamaEngine(url)
        with pytest.raises(e.EngineTimeoutError):
            await engine.complete(request(), deadline=soon(0.3))
        await engine.aclose()


async def test_nobody_listening_is_unreachable() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        engine = OllamaEngine(f"127.0.0.1:{held.getsockname()[1]}")
        with pytest.raises(e.EngineUnreachableError, match="is the server running"):
            await engine.complete(request(), deadline=soon())
        assert not await engine.healthy()
        await engine.aclose()


async def test_an_unknown_name_is_unreachable() -> None:
    engine = OllamaEngine("http://no-such-host.invalid:11434")
    with pytest.raises(e.EngineUnreachableError):
        await engine.complete(request(), deadline=soon())
    await engine.aclose()


async def test_an_endless_answer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ollama_batch.engines._http.MAX_REPLY_BYTES", 100_000)

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"1000\r\n" + b"x" * 4096 + b"\r\n")
            await writer.drain()

    async with raw_server(endless) as url:
        engine = OllamaEngine(url)
        with pytest.raises(e.InvalidReplyError, match="sent more than"):
            await engine.complete(request(), deadline=soon())
        await engine.aclose()


async def test_requests_beyond_any_pool_limit_are_out_at_once() -> None:
    """512 requests are answered only once all 512 have arrived."""
    arrived = 0
    everyone = asyncio.Event()

    async def wait_for_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal arrived
        await read_request(reader)
        arrived += 1
        if arrived == 512:
            everyone.set()
        await everyone.wait()
        writer.write(http_answer(ANSWER))

    async with raw_server(wait_for_all) as url:
        engine = OllamaEngine(url)
        answers = await asyncio.gather(*(engine.complete(request(), deadline=soon(60)) for _ in range(512)))
        assert {answer.output for answer in answers} == {"good day"}
        await engine.aclose()


async def test_connections_are_reused() -> None:
    connections = 0

    async def counting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await good(reader, writer)

    async with raw_server(counting) as url:
        engine = OllamaEngine(url)
        for _ in range(5):
            await engine.complete(request(), deadline=soon())
        await engine.aclose()
    assert connections == 1


async def test_no_proxy_of_the_environment_stands_before_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with raw_server(good) as url:
        engine = OllamaEngine(url)
        assert (await engine.complete(request(), deadline=soon())).output == "good day"
        await engine.aclose()


async def test_a_proxy_of_the_environment_is_used_for_other_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await read_request(reader))
        writer.write(http_answer(ANSWER))

    async with raw_server(proxy) as url:
        monkeypatch.setenv("http_proxy", url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        engine = OllamaEngine("http://gpu-box.invalid")
        assert (await engine.complete(request(), deadline=soon())).output == "good day"
        await engine.aclose()
    assert asked[0].startswith(b"POST http://gpu-box.invalid/api/chat ")


async def test_credentials_and_key_are_on_the_wire() -> None:
    asked: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await read_request(reader))
        writer.write(http_answer(ANSWER))

    async with raw_server(listen) as url:
        engine = OllamaEngine(url.replace("//", "//me:pw@"))
        await engine.complete(request(), deadline=soon())
        await engine.aclose()
        keyed = OllamaEngine(url, api_key="sesame", headers={"X-Team": "blue"})
        await keyed.complete(request(), deadline=soon())
        await keyed.aclose()
    first, second = (text.lower() for text in asked)
    assert b"authorization: basic bwu6chc=" in first
    assert b"authorization: bearer sesame" in second
    assert b"x-team: blue" in second
    assert b"user-agent: ollama-batch/" in second


class Background:
    """A good server on a thread of its own."""

    def __enter__(self) -> str:
        started = threading.Event()
        self.loop = asyncio.new_event_loop()
        self.stop = asyncio.Event()

        async def main() -> None:
            async with raw_server(good) as self.url:
                started.set()
                await self.stop.wait()

        def run() -> None:
            with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
                runner.run(main())

        self.thread = threading.Thread(target=run)
        self.thread.start()
        started.wait(10)
        return self.url

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.stop.set)
        self.thread.join(10)


def test_one_engine_serves_several_loops_and_leaves_nothing_open() -> None:
    """Each loop's connections end with the loop; open ones would fail the test as unraisable warnings."""
    with Background() as url:
        engine = OllamaEngine(url)

        async def ask() -> str | None:
            return (await engine.complete(request(), deadline=soon())).output

        assert [asyncio.run(ask()) for _ in range(3)] == ["good day"] * 3
        gc.collect()


def test_loops_side_by_side_are_closed_together() -> None:
    with Background() as url:
        engine = OllamaEngine(url)
        asked = threading.Event()
        closed = threading.Event()

        async def other() -> None:
            await engine.complete(request(), deadline=soon())
            asked.set()
            await asyncio.to_thread(closed.wait, 10)

        thread = threading.Thread(target=asyncio.run, args=(other(),))
        thread.start()
        assert asked.wait(10)

        async def here() -> None:
            await engine.complete(request(), deadline=soon())
            await engine.aclose()

        asyncio.run(here())
        closed.set()
        thread.join(10)
        assert not thread.is_alive()
        gc.collect()
