"""A URL that is told when a run ends or stalls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from typing import Any
from urllib.parse import urlsplit

from ollama_batch.errors import ConfigError
from ollama_batch.hooks._outbox import log
from ollama_batch.hooks.notice import Notice, NoticeHook, Occasion


class WebhookHook(NoticeHook):
    """Sends a POST request to `url` at the end of a run and when it stalls, or `on` other occasions.

    Its body is the Notice as JSON, or what `body` makes of it: a service that wants `{"text": ...}` has
    `body=lambda notice: {"text": notice.message}`. It has `timeout_s` seconds in all and is not repeated;
    redirects are not followed. The run does not wait for it, and goes on whatever becomes of it; the process
    waits for it at its exit. The address is not logged beyond its host, for it may be a secret. Raises
    ConfigError for a URL that is none.
    """

    def __init__(
        self,
        url: str,
        *,
        on: Collection[Occasion] = ("finished", "stalled"),
        body: Callable[[Notice], Any] = Notice.to_dict,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 10.0,
    ) -> None:
        super().__init__(on=on, timeout_s=timeout_s)
        try:
            parts = urlsplit(url)
            host = parts.hostname
        except (ValueError, AttributeError, TypeError):
            parts, host = None, None
        if parts is None or parts.scheme not in ("http", "https") or not host:
            raise ConfigError("url: must be an address such as https://example.org/hook")
        if not callable(body):
            raise ConfigError(f"body={body!r}: must be a function of a Notice")
        self._url = url
        self._host = host
        self._body = body
        self._headers = dict(headers or {})

    def _deliver(self, notice: Notice) -> None:
        import httpx

        body = self._body(notice)
        try:
            status = asyncio.run(self._post(body))
        except (TimeoutError, httpx.TimeoutException):
            log.warning("the webhook at %s did not answer within %g s", self._host, self._timeout_s)
            return
        except httpx.HTTPError as error:
            log.warning("the webhook at %s could not be told: %s", self._host, type(error).__name__)
            return
        if not 200 <= status < 300:
            log.warning("the webhook at %s answered %d", self._host, status)

    async def _post(self, body: Any) -> int:
        import httpx

        # The outer timeout ends the whole of it: httpx's own are of single reads.
        async with (
            asyncio.timeout(self._timeout_s),
            httpx.AsyncClient(timeout=self._timeout_s) as client,
            client.stream("POST", self._url, json=body, headers=self._headers) as reply,
        ):
            return reply.status_code
