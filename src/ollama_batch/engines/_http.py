"""HTTP for the engines: one call in, one `Reply` or one of our errors out.

httpx is the interface (a user may bring any `httpx.AsyncBaseTransport`); the default transport is aiohttp's,
and requests go straight to the transport: httpx's client around it doubles the cost of a request and
adds redirects, cookies and proxies, none of which is wanted here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import httpx
import orjson

from ollama_batch.engines._address import Address
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

MAX_REPLY_BYTES: Final = 64 * 1024 * 1024

# Shorter than the 5 s after which llama.cpp's server and uvicorn close idle connections, so that no request
# goes out on a connection that is just being closed.
KEEPALIVE_S: Final = 4.0

HTTPX_ERRORS: Final[tuple[tuple[type[Exception], type[EngineError]], ...]] = (
    # The first match counts, so classes stand before their bases.
    (httpx.ConnectTimeout, EngineUnreachableError),
    (httpx.PoolTimeout, EngineUnreachableError),
    (httpx.TimeoutException, EngineTimeoutError),
    (httpx.ConnectError, EngineUnreachableError),
    (httpx.NetworkError, EngineConnectionError),
    (httpx.ProxyError, EngineUnreachableError),
    (httpx.UnsupportedProtocol, EngineUnreachableError),
    (httpx.ProtocolError, EngineConnectionError),
    (httpx.TransportError, EngineConnectionError),
    (httpx.DecodingError, InvalidReplyError),
    (httpx.RequestError, EngineConnectionError),
)
"""What each exception of an httpx transport means."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete HTTP answer of any status."""

    status: int
    headers: httpx.Headers
    content: bytes


class HttpClient:
    """Sends requests to one server, from any number of event loops.

    Connections are made on first use and belong to the loop that made them; they are closed by `aclose`,
    or by their loop when `asyncio.run` (or anything else that calls `shutdown_asyncgens`) ends it.
    A `transport` given by the user is used as it is and never closed here.
    """

    def __init__(
        self,
        address: Address,
        *,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        connect_timeout: float = 10.0,
    ) -> None:
        if not connect_timeout > 0:
            raise ConfigError(
                f"connect_timeout must be a positive number of seconds, not {connect_timeout!r}"
            )
        self._address = address
        self._own_transport = transport
        self._headers = _base_headers(address, api_key, headers or {})
        # The deadline of a call bounds everything else.
        self._extensions = {
            "timeout": {"connect": connect_timeout, "read": None, "write": None, "pool": None}
        }
        self._urls: dict[str, httpx.URL] = {}
        self._entries: WeakKeyDictionary[asyncio.AbstractEventLoop, _Entry] = WeakKeyDictionary()
        self._closed = False

    @property
    def address(self) -> Address:
        """The server this client speaks to."""
        return self._address

    async def get(self, path: str, *, deadline: float) -> Reply:
        """The answer to a GET of `path` below the server's root, before `deadline`."""
        return await self.send("GET", path, None, deadline=deadline)

    async def post(self, path: str, body: bytes, *, deadline: float) -> Reply:
        """The answer to a POST of the JSON `body`, before `deadline` (`time.monotonic()` seconds)."""
        return await self.send("POST", path, body, deadline=deadline)

    async def send(self, method: str, path: str, body: bytes | None, *, deadline: float) -> Reply:
        """The complete answer, whatever its status; redirects are answers, they are not followed.

        Raises EngineUnreachableError (nothing was sent), EngineConnectionError, EngineTimeoutError once
        `deadline` has passed, InvalidReplyError for what is no HTTP or is larger than 64 MiB, and
        EngineStoppedError after `aclose`.
        """
        if self._closed:
            raise EngineStoppedError(f"the engine at {self._address.url} was closed; make a new one")
        url = self._urls.get(path)
        if url is None:
            url = self._urls[path] = httpx.URL(self._address.url + path)
        left = deadline - time.monotonic()
        if left <= 0:
            raise EngineTimeoutError(f"{url}: the deadline had passed before the request was sent")
        request = httpx.Request(method, url, headers=self._headers, content=body, extensions=self._extensions)
        try:
            async with asyncio.timeout(left) as limit:
                transport = self._own_transport
                if transport is None:
                    transport = await self._loop_transport()
                response = await transport.handle_async_request(request)
                try:
                    content = await _read(response, url)
                finally:
                    await response.aclose()
        except TimeoutError as exc:
            if limit.expired():
                raise EngineTimeoutError(f"{url}: no complete answer within {left:.1f} s") from exc
            raise EngineTimeoutError(f"{url}: {_words(exc)}") from exc
        except EngineError:
            raise
        except Exception as exc:
            error = translate(exc, str(url))
            if error is None:
                raise
            raise error from exc
        return Reply(response.status_code, response.headers, content)

    async def aclose(self) -> None:
        """Close the connections of every loop; a second call does nothing."""
        self._closed = True
        here = asyncio.get_running_loop()
        for loop, entry in list(self._entries.items()):
            if loop is here:
                await entry.keeper.aclose()
            elif loop.is_running():
                future = asyncio.run_coroutine_threadsafe(_finish(entry.keeper), loop)
                await asyncio.wrap_future(future)
        self._entries.clear()

    async def _loop_transport(self) -> httpx.AsyncBaseTransport:
        loop = asyncio.get_running_loop()
        entry = self._entries.get(loop)
        if entry is None:
            transport = _default_transport(self._address)
            entry = self._entries[loop] = _Entry(transport, _keep(transport))
            # Started here, so that this loop knows the generator and ends it when it ends itself.
            await anext(entry.keeper)
        return entry.transport


@dataclass(frozen=True, slots=True)
class _Entry:
    transport: httpx.AsyncBaseTransport
    keeper: AsyncGenerator[None, None]


async def _keep(transport: httpx.AsyncBaseTransport) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        await transport.aclose()


async def _finish(keeper: AsyncGenerator[None, None]) -> None:
    await keeper.aclose()


def _default_transport(address: Address) -> httpx.AsyncBaseTransport:
    import aiohttp
    from httpx_aiohttp import AiohttpTransport

    tls: Any = httpx.create_ssl_context() if address.scheme == "https" else True
    session = aiohttp.ClientSession(
        # No limit: how many requests are out is the runner's to say, and a request that waits for a
        # connection would count as slow.
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S, ssl=tls),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=not address.is_loopback,
    )
    # `verify` is not used with a session of our own; True would read all certificates once more.
    return AiohttpTransport(verify=False, client=session)


@cache
def user_agent() -> str:
    """How this package names itself to servers."""
    from importlib.metadata import version

    return f"ollama-batch/{version('ollama-batch')}"


def _base_headers(address: Address, api_key: str | None, extra: Mapping[str, Any]) -> httpx.Headers:
    headers = httpx.Headers(
        {
            "accept": "application/json",
            # Answers are short and mostly local: unpacking would cost more than it saves.
            "accept-encoding": "identity",
            "content-type": "application/json",
            "user-agent": user_agent(),
        }
    )
    if address.authorization is not None:
        headers["authorization"] = address.authorization
    if api_key is not None:
        headers["authorization"] = f"Bearer {api_key}"
    for name, value in extra.items():
        if not isinstance(value, str) or "\n" in value or "\r" in value:
            raise ConfigError(f"headers[{name!r}] must be text of one line")
        headers[name] = value
    return headers


async def _read(response: httpx.Response, url: httpx.URL) -> bytes:
    encoding = response.headers.get("content-encoding", "identity")
    stream = response.stream if encoding == "identity" else response.aiter_bytes()
    if not hasattr(stream, "__aiter__"):
        raise InvalidReplyError("the transport returned a stream that cannot be read asynchronously")
    chunks: list[bytes] = []
    size = 0
    async for chunk in stream:
        chunks.append(chunk)
        size += len(chunk)
        if size > MAX_REPLY_BYTES:
            raise InvalidReplyError(
                f"{url} sent more than {MAX_REPLY_BYTES // 2**20} MiB in one answer",
                status=response.status_code,
            )
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def translate(exc: BaseException, where: str) -> EngineError | None:
    """The error of ours that a transport's exception means, or None if it is none we expect."""
    # httpx-aiohttp reports a broken connection as a connect timeout: what aiohttp said is more exact.
    cause = exc.__cause__ if isinstance(exc, httpx.TransportError) else exc
    kind = None if cause is None else _aiohttp_kind(cause)
    if kind is None:
        kind = next((ours for theirs, ours in HTTPX_ERRORS if isinstance(exc, theirs)), None)
    if kind is None and isinstance(exc, OSError):
        kind = EngineConnectionError
    if kind is None:
        return None
    told = _words(exc)
    if kind is EngineUnreachableError:
        if isinstance(_root(exc), ConnectionRefusedError):
            return kind(f"nothing answers at {_origin(where)} (connection refused): is the server running?")
        return kind(f"{where}: no connection ({told}); is the server running at this address?")
    if kind is EngineTimeoutError:
        return kind(f"{where}: no complete answer in time ({told})")
    if kind is InvalidReplyError:
        return kind(f"{where}: the answer is no valid HTTP ({told})")
    if _unsent(exc):
        return kind(f"{where}: the connection to the engine broke while the request was being sent")
    return kind(f"{where}: the connection broke before the answer was complete ({told})")


def _unsent(exc: BaseException | None) -> bool:
    """Whether it was the request that did not get through: aiohttp says that in words which help nobody
    ("[Errno None] Can not write request body").
    """
    while exc is not None and "write request body" not in str(exc):
        exc = exc.__cause__
    return exc is not None


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _root(exc: BaseException) -> BaseException:
    """What the transport was told by the system."""
    while (cause := getattr(exc, "os_error", None) or exc.__cause__) is not None:
        exc = cause
    return exc


def _aiohttp_kind(exc: BaseException) -> type[EngineError] | None:
    if not type(exc).__module__.startswith("aiohttp"):
        return None
    import aiohttp

    table: tuple[tuple[type[BaseException], type[EngineError]], ...] = (
        (aiohttp.ConnectionTimeoutError, EngineUnreachableError),
        (aiohttp.ServerTimeoutError, EngineTimeoutError),
        (aiohttp.ServerFingerprintMismatch, EngineUnreachableError),
        (aiohttp.ClientConnectorError, EngineUnreachableError),
        (aiohttp.ClientConnectorCertificateError, EngineUnreachableError),
        (aiohttp.ClientConnectionError, EngineConnectionError),
        (aiohttp.ClientPayloadError, EngineConnectionError),
        (aiohttp.InvalidURL, EngineUnreachableError),
        (aiohttp.ClientResponseError, InvalidReplyError),
        (aiohttp.ClientError, EngineConnectionError),
    )
    return next((ours for theirs, ours in table if isinstance(exc, theirs)), None)


def _words(exc: BaseException) -> str:
    return str(exc)[:300] or type(exc).__name__


def dump_json(body: Mapping[str, Any]) -> bytes:
    """`body` as JSON. Raises RequestRejectedError if it holds what JSON has no form for."""
    try:
        return orjson.dumps(body, default=_plain)
    except TypeError as exc:
        raise RequestRejectedError(f"the request cannot be written as JSON: {exc}") from exc


def _plain(value: Any) -> Any:
    """Mappings and sequences other than dict and list, of which requests may be made."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return list(value)
    raise TypeError(f"{type(value).__name__} is not JSON")
