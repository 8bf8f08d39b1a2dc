"""`/v1/files`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, BinaryIO

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from ollama_batch.server.asked import (
    BATCH_INPUT_S,
    check_room,
    expiry_of,
    number_of,
    owner_of,
    purpose_of,
    service_of,
    stored,
)
from ollama_batch.server.faults import ApiFault, invalid_value, missing_parameter, no_file
from ollama_batch.server.forms import Form, FormReader
from ollama_batch.server.objects import StoredFile, new_id
from ollama_batch.server.reading import no_body
from ollama_batch.server.service import Service

_PIECE_BYTES = 1 << 18
_FIELDS = ("purpose", "expires_after[anchor]", "expires_after[seconds]")


async def create(request: Request) -> Response:
    """POST /v1/files."""
    service, owner = service_of(request), owner_of(request)
    await check_room(service, owner)
    reader = FormReader("file", most_bytes=service.settings.max_file_bytes, open_draft=service.vault.draft)
    form = await reader.read(request, service.settings)
    try:
        file = await _keep(service, owner, form)
    finally:
        if form.draft is not None:
            form.draft.discard()  # nothing to remove where it has found its place
    return JSONResponse(file.to_openai())


async def _keep(service: Service, owner: str, form: Form) -> StoredFile:
    if form.draft is None or form.filename is None:
        raise missing_parameter("file")
    for name in form.fields:
        if name not in _FIELDS:
            raise ApiFault(
                400, f"Unknown parameter: '{name[:64]}'.", code="unknown_parameter", param=name[:64]
            )
    purpose = purpose_of(form.fields.get("purpose"))
    anchor, seconds = (form.fields.get(f"expires_after[{name}]") for name in ("anchor", "seconds"))
    after = BATCH_INPUT_S if purpose == "batch" else None
    if anchor is not None or seconds is not None:
        after = expiry_of(anchor, seconds, "expires_after")
    await check_room(service, owner, more_bytes=form.draft.size)
    now = int(service.clock())
    file = StoredFile(
        id=new_id("file-"),
        owner=owner,
        purpose=purpose,
        filename=form.filename,
        bytes=form.draft.size,
        created_at=now,
        expires_at=None if after is None else now + after,
    )
    await stored(form.draft.finish)
    await stored(service.vault.publish, form.draft, file.id)
    try:
        await stored(service.store.add_file, file)
    except BaseException:
        service.vault.remove(file.id)
        raise
    return file


async def listing(request: Request) -> Response:
    """GET /v1/files."""
    service = service_of(request)
    limit = number_of(request, "limit", default=10_000, least=1, most=10_000)
    order = request.query_params.get("order", "desc")
    if order not in ("asc", "desc"):
        raise invalid_value("order", "Invalid value for 'order': supported values are: 'asc' and 'desc'.")
    page = await stored(
        service.store.files,
        owner_of(request),
        service.clock(),
        after=request.query_params.get("after"),
        limit=limit + 1,
        order=order,
        purpose=request.query_params.get("purpose"),
    )
    return JSONResponse(page_of(None if page is None else [file.to_openai() for file in page], limit))


def page_of(objects: list[dict[str, Any]] | None, limit: int) -> dict[str, Any]:
    """A page of a list, of which one more than `limit` was looked for. Raises ApiFault for none."""
    if objects is None:
        raise invalid_value("after", "Invalid 'after': no such object.")
    shown = objects[:limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(objects) > limit,
    }


def _file_of(request: Request) -> StoredFile:
    service = service_of(request)
    file_id: str = request.path_params["id"]
    file = service.store.file(file_id, owner_of(request), service.clock())
    if file is None:
        raise no_file(file_id)
    return file


async def retrieve(request: Request) -> Response:
    """GET /v1/files/{id}."""
    return JSONResponse(_file_of(request).to_openai())


async def delete(request: Request) -> Response:
    """What is asked with DELETE. A batch with this file as its input keeps what it needs until it ends."""
    service, file = service_of(request), _file_of(request)
    await no_body(request, service.settings)
    if not await stored(service.store.delete_file, file.id, file.owner, service.clock()):
        raise no_file(file.id)
    await stored(service.vault.remove, file.id)
    return JSONResponse({"id": file.id, "object": "file", "deleted": True})


async def content(request: Request) -> Response:
    """GET /v1/files/{id}/content: byte for byte, also if the file is deleted meanwhile."""
    service, file = service_of(request), _file_of(request)
    headers = {"content-length": str(file.bytes), "content-disposition": "attachment"}
    if request.method == "HEAD":
        return Response(headers=headers, media_type="application/octet-stream")
    try:
        opened = await stored(_open, service.vault.path(file.id))
    except FileNotFoundError:
        raise no_file(file.id) from None
    return StreamingResponse(
        _pieces(opened, file.bytes), headers=headers, media_type="application/octet-stream"
    )


def _open(path: Path) -> BinaryIO:
    return path.open("rb", buffering=0)


async def _pieces(file: BinaryIO, size: int) -> AsyncIterator[bytes]:
    try:
        while size > 0:
            piece = await asyncio.to_thread(file.read, min(size, _PIECE_BYTES))
            if not piece:
                raise OSError("a file is shorter than it was")
            size -= len(piece)
            yield piece
    finally:
        file.close()
