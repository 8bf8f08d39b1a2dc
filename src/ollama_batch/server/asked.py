"""What routes have in common: the service, the owner, and parameters read strictly."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from starlette.requests import Request

from ollama_batch.server.faults import ApiFault, invalid_value, missing_parameter, over_quota, wrong_type
from ollama_batch.server.service import Service

T = TypeVar("T")

PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
LEAST_EXPIRY_S, MOST_EXPIRY_S = 3600, 2_592_000
BATCH_INPUT_S = 2_592_000
"""A batch input that says nothing of its expiry is kept for 30 days."""


def service_of(request: Request) -> Service:
    """The parts of the app."""
    service: Service = request.app.state.service
    return service


def owner_of(request: Request) -> str:
    """Whose key the request came with."""
    owner: str = request.state.owner
    return owner


async def stored(work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Do what the disk may take a moment for."""
    return await asyncio.to_thread(work, *args, **kwargs)


def number_of(request: Request, name: str, *, default: int, least: int, most: int) -> int:
    """A whole number in the query. Raises ApiFault."""
    text = request.query_params.get(name)
    if text is None:
        return default
    digits = text.removeprefix("-")
    if not digits.isascii() or not digits.isdecimal() or len(digits) > 18:
        raise ApiFault(
            400, f"Invalid type for '{name}': expected an integer.", code="invalid_type", param=name
        )
    value = int(text)
    if not least <= value <= most:
        raise invalid_value(name, f"Invalid '{name}': expected a value from {least:,} to {most:,}.")
    return value


def text_of(body: Mapping[str, Any], name: str) -> str:
    """A required text of a JSON body. Raises ApiFault."""
    value = body.get(name)
    if name not in body or value is None:
        raise missing_parameter(name)
    if not isinstance(value, str):
        raise wrong_type(name, "a string", value)
    return value


def only_known(body: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Refuse fields that would be dropped in silence."""
    for name in body:
        if name not in known:
            raise ApiFault(
                400, f"Unknown parameter: '{name[:64]}'.", code="unknown_parameter", param=name[:64]
            )


def purpose_of(value: object) -> str:
    """What a file is for. Raises ApiFault."""
    if value is None:
        raise missing_parameter("purpose")
    if not isinstance(value, str):
        raise wrong_type("purpose", "a string", value)
    if value not in PURPOSES:
        raise invalid_value(
            "purpose",
            f"Invalid value: '{value[:64]}'. Supported values are: {', '.join(map(repr, PURPOSES))}.",
        )
    return value


def expiry_of(anchor: object, seconds: object, name: str) -> int:
    """Seconds after creation. Raises ApiFault."""
    if anchor != "created_at":
        raise invalid_value(f"{name}.anchor", f"Invalid '{name}.anchor': the anchor must be 'created_at'.")
    if isinstance(seconds, str) and seconds.isascii() and seconds.isdecimal() and len(seconds) < 12:
        seconds = int(seconds)
    if type(seconds) is not int:
        raise wrong_type(f"{name}.seconds", "an integer", seconds)
    if not LEAST_EXPIRY_S <= seconds <= MOST_EXPIRY_S:
        raise invalid_value(
            f"{name}.seconds",
            f"Invalid '{name}.seconds': expected a value from {LEAST_EXPIRY_S} to {MOST_EXPIRY_S}.",
        )
    return seconds


def expiry_in(body: Mapping[str, Any], name: str) -> int | None:
    """The seconds of an `expires_after` object of a JSON body; None without one. Raises ApiFault."""
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, dict):
        raise wrong_type(name, "an object", value)
    if "seconds" not in value:
        raise missing_parameter(f"{name}.seconds")
    return expiry_of(value.get("anchor"), value["seconds"], name)


async def check_room(service: Service, owner: str, *, more_bytes: int = 0) -> None:
    """Refuse what is beyond the quota of a key, or of the disk. Raises ApiFault, DiskFullError."""
    settings = service.settings
    used = await stored(service.store.use, owner)
    if used.files >= settings.max_files_per_key:
        raise over_quota(f"You have {used.files:,} files, as many as are allowed: delete some first.")
    if used.bytes + more_bytes > settings.max_bytes_per_key:
        most = settings.max_bytes_per_key
        raise over_quota(f"Your files have {used.bytes:,} bytes, {most:,} are allowed: delete some first.")
    if service.vault.free_bytes() - more_bytes < settings.min_free_bytes:
        from ollama_batch.server.faults import disk_full

        raise disk_full()
