"""`/health`, `/metrics`, and the page at `/` with what it shows."""

from __future__ import annotations

import secrets
from importlib import resources

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from ollama_batch.server.asked import service_of, stored
from ollama_batch.server.openapi import description

_STATUSES = (
    "validating",
    "in_progress",
    "finalizing",
    "cancelling",
    "completed",
    "failed",
    "expired",
    "cancelled",
)


async def health(request: Request) -> Response:
    """GET /health: whether the server works; that of the engine is told beside it."""
    service = service_of(request)
    up = await service.engine.healthy()
    low = service.vault.free_bytes() < service.settings.min_free_bytes
    return JSONResponse({"status": "ok", "engine": "up" if up else "down", "disk": "full" if low else "ok"})


async def status(request: Request) -> Response:
    """GET /status: what the page shows beside the batches."""
    service = service_of(request)
    up = await service.engine.healthy()
    low = service.vault.free_bytes() < service.settings.min_free_bytes
    loaded = await service.engine.loaded(service.scheduler.models()) if up else []
    return JSONResponse(
        {
            "engine": "up" if up else "down",
            "disk": "full" if low else "ok",
            "trouble": service.scheduler.waits(),
            "loaded": [{"model": each.model, "vram_bytes": each.vram_bytes} for each in loaded],
        }
    )


async def described(request: Request) -> Response:
    """GET /openapi.json."""
    service = service_of(request)
    default_model = service.settings.default_model is not None
    return JSONResponse(description(keys=service.has_keys, default_model=default_model))


async def page(request: Request) -> Response:
    """GET /: the page for people. It runs what it brings along and nothing else."""
    nonce = secrets.token_urlsafe(16)
    html = resources.files("ollama_batch.server").joinpath("page.html").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
        "img-src data:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    )
    headers = {
        "content-security-policy": policy,
        "referrer-policy": "no-referrer",
        "cache-control": "no-store",
    }
    keyed = "true" if service_of(request).has_keys else "false"
    return HTMLResponse(html.replace("NONCE", nonce).replace("KEYED", keyed), headers=headers)


async def metrics(request: Request) -> Response:
    """GET /metrics, in Prometheus' text form."""
    service = service_of(request)
    found = await stored(service.store.statuses)
    up = await service.engine.healthy()
    lines = [
        "# HELP ollama_batch_server_batches Batches by status.",
        "# TYPE ollama_batch_server_batches gauge",
        *(f'ollama_batch_server_batches{{status="{name}"}} {found.get(name, 0)}' for name in _STATUSES),
        "# HELP ollama_batch_server_running Batches that are being run now.",
        "# TYPE ollama_batch_server_running gauge",
        f"ollama_batch_server_running {len(service.scheduler.running())}",
        "# HELP ollama_batch_server_engine_up Whether the engine answers.",
        "# TYPE ollama_batch_server_engine_up gauge",
        f"ollama_batch_server_engine_up {int(up)}",
        "# HELP ollama_batch_server_disk_free_bytes Room in the data folder.",
        "# TYPE ollama_batch_server_disk_free_bytes gauge",
        f"ollama_batch_server_disk_free_bytes {service.vault.free_bytes()}",
        "# HELP ollama_batch_server_uptime_seconds Seconds since the server was made.",
        "# TYPE ollama_batch_server_uptime_seconds gauge",
        f"ollama_batch_server_uptime_seconds {max(0.0, service.clock() - service.began_at):.3f}",
    ]
    return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")
