"""`/v1/batches`."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ollama_batch.server.asked import (
    expiry_in,
    number_of,
    only_known,
    owner_of,
    service_of,
    stored,
    text_of,
)
from ollama_batch.server.faults import ApiFault, conflict, invalid_value, no_batch, over_quota, wrong_type
from ollama_batch.server.files import page_of
from ollama_batch.server.objects import StoredBatch, new_id
from ollama_batch.server.reading import json_object, no_body
from ollama_batch.server.service import Service
from ollama_batch.server.settings import WINDOW_S
from ollama_batch.types import CHAT_URL

log = logging.getLogger("ollama_batch.server")

_FIELDS = (
    "input_file_id",
    "endpoint",
    "completion_window",
    "metadata",
    "output_expires_after",
)
_RETRIED_S = 600
"""An SDK that repeats a create within this time means the same batch."""

_MOST_PAIRS, _MOST_KEY, _MOST_VALUE = 16, 64, 512
_MOST_IDEMPOTENCY_CHARS = 255


async def create(request: Request) -> Response:
    """POST /v1/batches."""
    service, owner = service_of(request), owner_of(request)
    body = await json_object(request, service.settings)
    batch = _batch_of(body, owner, service)
    key = request.headers.get("idempotency-key")
    if key is not None and not 0 < len(key) <= _MOST_IDEMPOTENCY_CHARS:
        raise ApiFault(400, f"An Idempotency-Key has 1 to {_MOST_IDEMPOTENCY_CHARS} characters.")
    made = await _made_before(request, service, batch, key)
    if made is None:
        made = await _make(service, batch, key)
    return _shown(service, made)


def _batch_of(body: Mapping[str, Any], owner: str, service: Service) -> StoredBatch:
    """The batch that is asked for. Raises ApiFault."""
    only_known(body, _FIELDS)
    input_file_id = text_of(body, "input_file_id")
    endpoint = text_of(body, "endpoint")
    window = text_of(body, "completion_window")
    if endpoint != CHAT_URL:
        raise invalid_value(
            "endpoint", f"Invalid value: '{endpoint[:64]}'. Supported values are: '{CHAT_URL}'."
        )
    if window != "24h":
        raise invalid_value(
            "completion_window",
            f"Invalid value: '{window[:64]}' for completion_window. Supported values are: '24h'.",
        )
    now = service.clock()
    file = service.store.file(input_file_id, owner, now)
    if file is not None and file.purpose != "batch":
        raise invalid_value(
            "input_file_id",
            f"File {file.id} has the purpose '{file.purpose}'; the input of a batch needs 'batch'.",
        )
    settled = json.dumps(body, sort_keys=True).encode()
    return StoredBatch(
        id=new_id("batch_"),
        owner=owner,
        endpoint=endpoint,
        input_file_id=input_file_id[:256],
        completion_window=window,
        status="validating",
        created_at=int(now),
        expires_at=int(now) + WINDOW_S,
        metadata=_metadata(body.get("metadata")),
        output_expires_s=expiry_in(body, "output_expires_after"),
        body_hash=hashlib.sha256(settled).hexdigest(),
    )


def _metadata(value: object) -> dict[str, str] | None:
    """Checked metadata. Raises ApiFault."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise wrong_type("metadata", "an object", value)
    if len(value) > _MOST_PAIRS:
        raise invalid_value(
            "metadata", f"Invalid 'metadata': {_MOST_PAIRS} pairs are allowed, got {len(value)}."
        )
    for key, text in value.items():
        name = f"metadata.{key[:_MOST_KEY]}"
        if len(key) > _MOST_KEY:
            raise invalid_value(name, f"Invalid '{name}...': a key has {_MOST_KEY} characters at most.")
        if not isinstance(text, str):
            raise wrong_type(name, "a string", text)
        if len(text) > _MOST_VALUE:
            raise invalid_value(name, f"Invalid '{name}': a value has {_MOST_VALUE} characters at most.")
    return value


async def _made_before(
    request: Request, service: Service, batch: StoredBatch, key: str | None
) -> StoredBatch | None:
    """The batch that this request has made already, if it is a repetition."""
    if key is not None:
        made = service.store.batch_made_with(key, batch.owner)
        return None if made is None else _same(made, batch)
    if request.headers.get("x-stainless-retry-count", "0") in ("0", ""):
        return None
    # An SDK that lost the reply asks again, and says only that it does so.
    return service.store.batch_like(batch.body_hash, batch.owner, batch.created_at - _RETRIED_S)


def _same(made: StoredBatch, batch: StoredBatch) -> StoredBatch:
    if made.body_hash != batch.body_hash:
        raise conflict(
            "This Idempotency-Key was used for another request: use a new one.", "idempotency_key_reused"
        )
    return made


async def _make(service: Service, batch: StoredBatch, key: str | None) -> StoredBatch:
    used = await stored(service.store.use, batch.owner)
    if used.open_batches >= service.settings.max_open_batches_per_key:
        raise over_quota(f"You have {used.open_batches:,} batches that are not over, as many as are allowed.")
    if service.store.file(batch.input_file_id, batch.owner, service.clock()) is not None:
        try:
            await stored(service.vault.snapshot, batch.input_file_id, batch.id)
        except FileNotFoundError:
            pass  # deleted this moment: the batch will say so
    try:
        made = await stored(service.store.add_batch, batch, key=key)
    except BaseException:
        service.vault.end_run(batch.id)
        raise
    if made is not None:  # another request with this key came first
        service.vault.end_run(batch.id)
        return _same(made, batch)
    log.info("%s was made", batch.id)
    service.scheduler.wake()
    return batch


async def listing(request: Request) -> Response:
    """GET /v1/batches."""
    service = service_of(request)
    limit = number_of(request, "limit", default=20, least=1, most=100)
    page = await stored(
        service.store.batches, owner_of(request), after=request.query_params.get("after"), limit=limit + 1
    )
    objects = None if page is None else [_object(service, batch) for batch in page]
    return JSONResponse(page_of(objects, limit))


async def retrieve(request: Request) -> Response:
    """GET /v1/batches/{id}."""
    return _shown(service_of(request), _batch_at(request))


async def cancel(request: Request) -> Response:
    """POST /v1/batches/{id}/cancel: what is done is kept. While the files are written it comes too late."""
    service, batch = service_of(request), _batch_at(request)
    await no_body(request, service.settings)
    changed = await stored(
        service.store.change,
        batch,
        when=("validating", "in_progress"),
        status="cancelling",
        cancelling_at=batch.moment(service.clock()),
    )
    if changed is not None:
        log.info("%s is cancelled", batch.id)
        service.scheduler.wake()
        return _shown(service, changed)
    batch = _batch_at(request)
    if batch.status in ("completed", "failed", "expired"):
        raise conflict(f"Cannot cancel a batch with status '{batch.status}'.")
    return _shown(service, batch)


def _batch_at(request: Request) -> StoredBatch:
    batch_id: str = request.path_params["id"]
    batch = service_of(request).store.batch(batch_id, owner_of(request))
    if batch is None:
        raise no_batch(batch_id)
    return batch


def _object(service: Service, batch: StoredBatch) -> dict[str, Any]:
    completed, failed = service.scheduler.progress(batch)
    return batch.to_openai(completed=completed, failed=failed)


def _shown(service: Service, batch: StoredBatch) -> Response:
    return JSONResponse(_object(service, batch))
