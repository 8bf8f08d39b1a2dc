"""`/v1/uploads`: a file that comes in parts."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ollama_batch.server.asked import (
    BATCH_INPUT_S,
    check_room,
    expiry_in,
    only_known,
    owner_of,
    purpose_of,
    service_of,
    stored,
    text_of,
)
from ollama_batch.server.faults import ApiFault, invalid_value, missing_parameter, no_upload, wrong_type
from ollama_batch.server.forms import MOST_NAME_CHARS, FormReader
from ollama_batch.server.objects import StoredFile, StoredPart, StoredUpload, new_id
from ollama_batch.server.reading import json_object, no_body

LIFE_S = 3600
PART_BYTES = 64 * 2**20
MOST_PARTS = 10_000


async def create(request: Request) -> Response:
    """POST /v1/uploads."""
    service, owner = service_of(request), owner_of(request)
    body = await json_object(request, service.settings)
    only_known(body, ("bytes", "filename", "mime_type", "purpose", "expires_after"))
    size = body.get("bytes")
    if size is None:
        raise missing_parameter("bytes")
    if type(size) is not int:
        raise wrong_type("bytes", "an integer", size)
    if size < 1:
        raise invalid_value("bytes", "Invalid 'bytes': expected a value of at least 1.")
    text_of(body, "mime_type")
    if size > service.settings.max_file_bytes:
        raise ApiFault(
            413,
            f"The file is larger than the {service.settings.max_file_bytes:,} bytes that are allowed here.",
            code="file_too_large",
            param="bytes",
        )
    await check_room(service, owner, more_bytes=size)
    now = int(service.clock())
    name = "".join(char if char.isprintable() else "\ufffd" for char in text_of(body, "filename"))
    upload = StoredUpload(
        id=new_id("upload_"),
        owner=owner,
        purpose=purpose_of(body.get("purpose")),
        filename=name[:MOST_NAME_CHARS] or "upload",
        bytes=size,
        created_at=now,
        expires_at=now + LIFE_S,
        file_expires_s=expiry_in(body, "expires_after"),
    )
    await stored(service.store.add_upload, upload)
    return JSONResponse(upload.to_openai(now))


async def add_part(request: Request) -> Response:
    """POST /v1/uploads/{id}/parts."""
    service, upload = service_of(request), _upload_at(request)
    _pending(request, upload)
    parts = await stored(service.store.parts, upload.id)
    left = upload.bytes - sum(part.bytes for part in parts.values())
    if len(parts) >= MOST_PARTS:
        raise ApiFault(400, f"An upload has {MOST_PARTS:,} parts at most.")
    reader = FormReader("data", most_bytes=PART_BYTES, open_draft=service.vault.draft)
    form = await reader.read(request, service.settings)
    try:
        if form.draft is None:
            raise missing_parameter("data")
        # Parts may be sent once more by mistake; beyond twice the file it is none.
        if form.draft.size > left + upload.bytes:
            raise ApiFault(400, "The parts have more bytes than the upload was said to have.", param="data")
        part = StoredPart(
            id=new_id("part_"),
            upload_id=upload.id,
            bytes=form.draft.size,
            created_at=int(service.clock()),
        )
        await stored(form.draft.finish)
        await stored(service.vault.publish_part, form.draft, part.id)
        if not await stored(service.store.add_part, part):
            service.vault.remove_part(part.id)
            _pending(request, _upload_at(request))
    finally:
        if form.draft is not None:
            form.draft.discard()
    return JSONResponse(part.to_openai())


async def complete(request: Request) -> Response:
    """POST /v1/uploads/{id}/complete."""
    service, upload = service_of(request), _upload_at(request)
    body = await json_object(request, service.settings)
    only_known(body, ("part_ids", "md5"))
    _pending(request, upload)
    parts = await stored(service.store.parts, upload.id)
    part_ids = _part_ids(body, parts)
    md5 = body.get("md5")
    if md5 is not None and (not isinstance(md5, str) or re.fullmatch("[0-9a-fA-F]{32}", md5) is None):
        raise invalid_value("md5", "Invalid 'md5': expected 32 hexadecimal digits.")
    size = sum(parts[part_id].bytes for part_id in part_ids)
    if size != upload.bytes:
        raise invalid_value(
            "part_ids",
            f"The parts have {size:,} bytes together, the upload was to have {upload.bytes:,}.",
        )
    digest = hashlib.md5(usedforsecurity=False)
    draft = await stored(service.vault.join, part_ids, seen=digest.update)
    try:
        if md5 is not None and digest.hexdigest() != md5.lower():
            raise invalid_value("md5", "The MD5 of the parts together is another one.")
        file = _file_of(upload, int(service.clock()))
        await stored(service.vault.publish, draft, file.id)
        if not await stored(service.store.end_upload, upload.id, "completed", file):
            service.vault.remove(file.id)
            _pending(request, _upload_at(request))
    finally:
        draft.discard()
    await stored(_remove_parts, service.vault, list(parts))
    done = _upload_at(request)
    return JSONResponse(done.to_openai(service.clock(), file))


async def cancel(request: Request) -> Response:
    """POST /v1/uploads/{id}/cancel."""
    service, upload = service_of(request), _upload_at(request)
    await no_body(request, service.settings)
    parts = await stored(service.store.parts, upload.id)
    if not await stored(service.store.end_upload, upload.id, "cancelled"):
        _pending(request, _upload_at(request))
    await stored(_remove_parts, service.vault, list(parts))
    return JSONResponse(_upload_at(request).to_openai(service.clock()))


def _upload_at(request: Request) -> StoredUpload:
    upload_id: str = request.path_params["id"]
    upload = service_of(request).store.upload(upload_id, owner_of(request))
    if upload is None:
        raise no_upload(upload_id)
    return upload


def _pending(request: Request, upload: StoredUpload) -> None:
    """Refuse work on an upload that is over."""
    status = upload.to_openai(service_of(request).clock())["status"]
    if status != "pending":
        raise ApiFault(400, f"The upload has the status '{status}': nothing more can be done with it.")


def _part_ids(body: dict[str, Any], parts: dict[str, StoredPart]) -> list[str]:
    given = body.get("part_ids")
    if given is None:
        raise missing_parameter("part_ids")
    if not isinstance(given, list) or not all(isinstance(each, str) for each in given):
        raise wrong_type("part_ids", "an array of strings", given)
    if len(set(given)) != len(given):
        raise invalid_value("part_ids", "Invalid 'part_ids': a part stands there more than once.")
    for number, part_id in enumerate(given):
        if part_id not in parts:
            raise invalid_value(f"part_ids[{number}]", f"Invalid 'part_ids[{number}]': no such part.")
    return given


def _file_of(upload: StoredUpload, now: int) -> StoredFile:
    after = upload.file_expires_s
    if after is None and upload.purpose == "batch":
        after = BATCH_INPUT_S
    return StoredFile(
        id=new_id("file-"),
        owner=upload.owner,
        purpose=upload.purpose,
        filename=upload.filename,
        bytes=upload.bytes,
        created_at=now,
        expires_at=None if after is None else now + after,
    )


def _remove_parts(vault: Any, part_ids: list[str]) -> None:
    for part_id in part_ids:
        vault.remove_part(part_id)
