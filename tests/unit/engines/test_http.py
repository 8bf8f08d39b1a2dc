import asyncio
from collections.abc import Iterator
from typing import Any

import aiohttp
import httpx
import pytest

from engines_support import OLLAMA_ANSWER, Canned, request, soon
from ollama_batch.engines._address import parse_base_url
from ollama_batch.engines._http import HTTPX_ERRORS, HttpClient, dump_json, translate
from ollama_batch.engines.ollama import OllamaEngine
from ollama_batch.errors import (
    ConfigError,
    EngineConnectionError,
    EngineError,
    EngineStoppedError,
    EngineTimeoutError,
    EngineUnreachableError,
    InvalidReplyError,
    RequestRejectedError,
)


def descendants(kind: type[BaseException]) -> Iterator[type[BaseException]]:
    for child in kind.__subclasses__():
        yield child
        yield from descendants(child)


EXPECTED: dict[type[Exception], type[EngineError]] = {
    httpx.ConnectTimeout: EngineUnreachableError,
    httpx.ReadTimeout: EngineTimeoutError,
    httpx.WriteTimeout: EngineTimeoutError,
    httpx.PoolTimeout: EngineUnreachableError,
    httpx.ConnectError: EngineUnreachableError,
    httpx.ReadError: EngineConnectionError,
    httpx.WriteError: EngineConnectionError,
    httpx.CloseError: EngineConnectionError,
    httpx.ProxyError: EngineUnreachableError,
    httpx.UnsupportedProtocol: EngineUnreachableError,
    httpx.LocalProtocolError: EngineConnectionError,
    httpx.RemoteProtocolError: EngineConnectionError,
    httpx.DecodingError: InvalidReplyError,
}


@pytest.mark.parametrize("kind", EXPECTED)
async def test_each_exception_of_a_transport_has_its_error(kind: type[httpx.RequestError]) -> None:
    engine = OllamaEngine("host", transport=Canned(kind("boom")))
    with pytest.raises(EngineError) as caught:
        await engine.complete(request(), deadline=soon())
    assert type(caught.value) is EXPECTED[kind]
    assert isinstance(caught.value.__cause__, kind)


def test_no_exception_of_httpx_transports_is_forgotten() -> None:
    leaves = {kind for kind in descendants(httpx.TransportError) if not kind.__subclasses__()}
    own = {kind for kind in leaves if kind.__module__.startswith("httpx")}
    assert own <= set(EXPECTED)


def test_every_request_error_of_httpx_is_translated() -> None:
    for kind in descendants(httpx.RequestError):
        assert translate(kind("boom"), "http://h") is not None, kind  # type: ignore[arg-type] # all take a text


def test_every_entry_of_the_table_can_be_reached() -> None:
    for position, (kind, _) in enumerate(HTTPX_ERRORS):
        assert not any(issubclass(kind, earlier) for earlier, _ in HTTPX_ERRORS[:position])


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        # httpx-aiohttp raises httpx.ConnectTimeout for all of these.
        (aiohttp.ServerDisconnectedError(), EngineConnectionError),
        (aiohttp.ClientOSError(104, "reset"), EngineConnectionError),
        (aiohttp.ClientConnectionResetError("closing"), EngineConnectionError),
        (aiohttp.ConnectionTimeoutError("slow"), EngineUnreachableError),
        (aiohttp.SocketTimeoutError("slow"), EngineTimeoutError),
    ],
)
def test_what_aiohttp_said_decides(cause: Exception, expected: type[EngineError]) -> None:
    outer = httpx.ConnectTimeout("x")
    outer.__cause__ = cause
    assert type(translate(outer, "http://h")) is expected


def test_exceptions_of_our_own_making_are_not_hidden() -> None:
    assert translate(KeyError("x"), "http://h") is None


async def test_a_transport_of_the_user_is_used_and_not_closed() -> None:
    transport = Canned(OLLAMA_ANSWER)
    engine = OllamaEngine("host", transport=transport)
    await engine.complete(request(), deadline=soon())
    await engine.aclose()
    await engine.aclose()
    assert len(transport.requests) == 1
    assert not transport.closed


async def test_a_closed_engine_says_so() -> None:
    engine = OllamaEngine("host", transport=Canned(OLLAMA_ANSWER))
    await engine.aclose()
    with pytest.raises(EngineStoppedError, match="closed"):
        await engine.complete(request(), deadline=soon())


async def test_a_passed_deadline_sends_nothing() -> None:
    transport = Canned(OLLAMA_ANSWER)
    with pytest.raises(EngineTimeoutError):
        await OllamaEngine("host", transport=transport).complete(request(), deadline=soon(-1))
    assert transport.requests == []


async def test_cancelling_is_not_turned_into_a_timeout() -> None:
    class Silent(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            started.set()
            await asyncio.Event().wait()
            raise AssertionError

    started = asyncio.Event()
    engine = OllamaEngine("host", transport=Silent())
    task = asyncio.create_task(engine.complete(request(), deadline=soon()))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    ("options", "name", "value"),
    [
        ({"api_key": "k"}, "authorization", "Bearer k"),
        ({"headers": {"X-Team": "blue"}}, "x-team", "blue"),
        ({"api_key": "k", "headers": {"Authorization": "Other"}}, "authorization", "Other"),
        ({}, "content-type", "application/json"),
    ],
)
async def test_requests_carry_key_and_headers(options: dict[str, Any], name: str, value: str) -> None:
    transport = Canned(OLLAMA_ANSWER)
    await OllamaEngine("host", transport=transport, **options).complete(request(), deadline=soon())
    assert transport.requests[0].headers.get_list(name) == [value]


async def test_credentials_of_the_url_are_sent() -> None:
    transport = Canned(OLLAMA_ANSWER)
    await OllamaEngine("http://me:pw@host", transport=transport).complete(request(), deadline=soon())
    assert transport.requests[0].headers["authorization"].startswith("Basic ")
    assert str(transport.requests[0].url) == "http://host/api/chat"


@pytest.mark.parametrize(
    "options", [{"headers": {"x": "a\nb"}}, {"headers": {"x": 3}}, {"connect_timeout": 0}]
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        HttpClient(parse_base_url("http://h"), **options)


def test_an_engine_can_be_made_without_a_loop() -> None:
    assert OllamaEngine("host").address == "http://host:11434"


class Frozen(dict[str, Any]):
    pass


def test_mappings_and_sequences_of_any_kind_become_json() -> None:
    from types import MappingProxyType

    assert (
        dump_json({"a": MappingProxyType({"b": (1, 2)}), "c": Frozen(d=1)})
        == b'{"a":{"b":[1,2]},"c":{"d":1}}'
    )


@pytest.mark.parametrize("value", [{1, 2}, b"x", object(), 2**70, "\ud800"])
def test_what_is_no_json_is_the_rows_fault(value: Any) -> None:
    with pytest.raises(RequestRejectedError):
        dump_json({"a": value})
