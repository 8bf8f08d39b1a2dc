"""What every request passes first: its name, its headers, its key; and what becomes of errors."""

from __future__ import annotations

import ipaddress
import logging
import sqlite3
import time
import traceback
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ollama_batch.errors import DiskFullError, JournalError
from ollama_batch.journal.faults import is_disk_full
from ollama_batch.server.faults import ApiFault, disk_full
from ollama_batch.server.keys import MOST_CHARS, Keys
from ollama_batch.server.objects import new_id
from ollama_batch.server.settings import ServerSettings

MOST_HEADERS = 100
MOST_HEADER_BYTES = 64 * 2**10
OPEN_PATHS = ("/", "/health")
"""Answered without a key: they tell nothing of anybody."""

log = logging.getLogger("ollama_batch.server")


class FrontDoor:
    """The outermost layer of the app, around every route.

    Gives each request an id (`x-request-id`), takes a slash off the end of its path, refuses headers that are
    too many or contradict each other, finds the owner of its key, and turns whatever is raised inside into an
    error object. What is logged of a request is its method, route, status and time: never a body, a key or a
    query.
    """

    def __init__(self, app: ASGIApp, *, settings: ServerSettings, keys: Callable[[], Keys]) -> None:
        self._app = app
        self._settings = settings
        self._keys = keys
        self._busy = 0
        self.answered: Counter[int] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id, began = new_id("req_"), time.monotonic()
        status = 0

        async def tell(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = [(b"x-request-id", request_id.encode()), (b"x-content-type-options", b"nosniff")]
                message["headers"] = [*message.get("headers", []), *extra]
            await send(message)

        if scope["path"] != "/":
            scope["path"] = scope["path"].rstrip("/") or "/"
        self._busy += 1
        try:
            try:
                self._check(scope)
                await self._app(scope, receive, tell)
            except Exception as error:
                if status:
                    raise
                await self._fault(error, request_id).response()(scope, receive, tell)
        finally:
            self._busy -= 1
            self.answered[status] += 1
            took_ms = 1000 * (time.monotonic() - began)
            log.debug("%s %s %s %d in %.0f ms", request_id, scope["method"], _route(scope), status, took_ms)

    def _check(self, scope: Scope) -> None:
        if self._busy > self._settings.max_requests:
            raise ApiFault(
                503, "The server has too many requests at the moment.", headers={"retry-after": "1"}
            )
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        keys = self._keys()
        scope.setdefault("state", {})["owner"] = self._owner(scope["path"], headers, keys)
        size = sum(len(name) + len(value) for name, value in headers)
        if len(headers) > MOST_HEADERS or size > MOST_HEADER_BYTES:
            raise ApiFault(400, "The request has too many headers, or too long ones.")
        names = [name for name, _ in headers]
        if b"transfer-encoding" in names and b"content-length" in names:
            raise ApiFault(
                400,
                "The request has both Content-Length and Transfer-Encoding.",
                headers={"connection": "close"},
            )
        if not keys:
            self._same_machine(dict(headers))

    @staticmethod
    def _owner(path: str, headers: list[tuple[bytes, bytes]], keys: Keys) -> str:
        if not keys or path in OPEN_PATHS:
            return keys.owner(None) or ""
        given = [value for name, value in headers if name == b"authorization"]
        if len(given) == 1 and len(given[0]) <= MOST_CHARS + 16:
            owner = keys.owner(given[0].decode("latin-1"))
            if owner is not None:
                return owner
        code = "invalid_api_key" if given else None
        said = "Incorrect API key provided." if given else "You did not provide an API key."
        raise ApiFault(
            401,
            f"{said} Send it in the header: Authorization: Bearer KEY.",
            code=code,
            headers={"www-authenticate": "Bearer"},
        )

    @staticmethod
    def _same_machine(headers: dict[bytes, bytes]) -> None:
        """Without keys, refuse what a web page in somebody's browser could send here."""
        host = headers.get(b"host", b"localhost").decode("latin-1")
        if not _is_local(host):
            raise ApiFault(
                403, "Without a key this server answers only to localhost; give it one to serve others."
            )
        origin = headers.get(b"origin")
        if origin is not None and urlsplit(origin.decode("latin-1")).netloc != host:
            raise ApiFault(403, "Requests from other web pages are refused by a server without a key.")

    @staticmethod
    def _fault(error: Exception, request_id: str) -> ApiFault:
        if isinstance(error, ApiFault):
            return error
        if isinstance(error, DiskFullError) or (isinstance(error, OSError) and is_disk_full(error)):
            log.error("%s: the disk is full", request_id)
            return disk_full()
        # Neither the text of the error nor its values: they may hold what a client sent.
        place = traceback.extract_tb(error.__traceback__)[-1]
        told = f" ({error})" if isinstance(error, JournalError | sqlite3.Error) else ""
        log.error("%s: %s at %s:%s%s", request_id, type(error).__name__, place.filename, place.lineno, told)
        return ApiFault(500, "The server failed at this request; its log says where.", code="internal_error")


@lru_cache(64)
def _is_local(host: str) -> bool:
    """Whether a Host header names this machine."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _route(scope: Scope) -> str:
    route = scope.get("route")
    return getattr(route, "path", "(no route)")
