"""The app: every route, and the parts behind them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from os import PathLike

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ollama_batch.engines.base import Engine
from ollama_batch.server import batches, chat, files, monitor, uploads
from ollama_batch.server.faults import ApiFault
from ollama_batch.server.frontdoor import FrontDoor
from ollama_batch.server.service import Service
from ollama_batch.server.settings import ServerSettings

ROUTES = (
    Route("/v1/files", files.create, methods=["POST"]),
    Route("/v1/files", files.listing, methods=["GET"]),
    Route("/v1/files/{id}", files.retrieve, methods=["GET"]),
    Route("/v1/files/{id}", files.delete, methods=["DELETE"]),
    Route("/v1/files/{id}/content", files.content, methods=["GET"]),
    Route("/v1/batches", batches.create, methods=["POST"]),
    Route("/v1/batches", batches.listing, methods=["GET"]),
    Route("/v1/batches/{id}", batches.retrieve, methods=["GET"]),
    Route("/v1/batches/{id}/cancel", batches.cancel, methods=["POST"]),
    Route("/v1/uploads", uploads.create, methods=["POST"]),
    Route("/v1/uploads/{id}/parts", uploads.add_part, methods=["POST"]),
    Route("/v1/uploads/{id}/complete", uploads.complete, methods=["POST"]),
    Route("/v1/uploads/{id}/cancel", uploads.cancel, methods=["POST"]),
    Route("/v1/chat/completions", chat.complete, methods=["POST"]),
    Route("/v1/models", chat.models, methods=["GET"]),
    Route("/v1/models/{id:path}", chat.model, methods=["GET"]),
    Route("/health", monitor.health, methods=["GET"]),
    Route("/openapi.json", monitor.described, methods=["GET"]),
    Route("/status", monitor.status, methods=["GET"]),
    Route("/", monitor.page, methods=["GET"]),
    Route("/metrics", monitor.metrics, methods=["GET"]),
)


def create_app(
    data: str | PathLike[str],
    *,
    engine: Engine | None = None,
    base_url: str | None = None,
    keys: Collection[str] = (),
    settings: ServerSettings | None = None,
    clock: Callable[[], float] = time.time,
) -> Starlette:
    """An ASGI app that serves OpenAI's files and batches from the folder `data`, on one engine.

    `data` is made if it is not there; one process at a time may have it (taken when the app starts up, else
    JournalLockedError). `engine`: what answers, yours to close; by default the Ollama at `base_url`, or
    OLLAMA_HOST. `keys`: who may ask (16 characters at least); without any, only this machine may.
    `clock`: the time of day in seconds, for tests. `app.state.service` has the parts. Raises ConfigError.
    """
    service = Service(data, engine=engine, base_url=base_url, keys=keys, settings=settings, clock=clock)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.stop()

    app = Starlette(
        routes=ROUTES,
        middleware=[Middleware(FrontDoor, settings=service.settings, keys=lambda: service.keys)],
        exception_handlers={HTTPException: _no_route},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.service = service
    return app


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - it is registered for nothing else
    headers = dict(error.headers or {})
    if error.status_code == 405:
        allowed = sorted(
            {
                method
                for route in request.app.routes
                if isinstance(route, Route) and route.path_regex.match(request.scope["path"])
                for method in route.methods or ()
            }
        )
        headers["allow"] = ", ".join(allowed)
        message = f"This URL takes {headers['allow']} only."
    else:
        message = "There is nothing at this URL; GET /openapi.json tells what there is."
    return ApiFault(error.status_code, message, code="unknown_url", headers=headers).response()
