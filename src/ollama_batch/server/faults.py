"""Refusals of the API: an HTTP status with an error object as OpenAI's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse


class ApiFault(Exception):
    """Raised to answer a request with an error; `headers` go with it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, code)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        return error_body(self.status, self.message, code=self.code, param=self.param)

    def response(self) -> JSONResponse:
        """The answer itself."""
        return JSONResponse(self.body(), status_code=self.status, headers=self.headers)


def error_body(
    status: int, message: str, *, code: str | None = None, param: str | None = None
) -> dict[str, Any]:
    """An error object with all four of its keys."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    if code == "insufficient_quota":
        kind = "insufficient_quota"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def missing_parameter(name: str) -> ApiFault:
    """A required field is absent."""
    return ApiFault(
        400, f"Missing required parameter: '{name}'.", code="missing_required_parameter", param=name
    )


def invalid_value(name: str, message: str) -> ApiFault:
    """A field has a value that is not allowed."""
    return ApiFault(400, message, code="invalid_value", param=name)


def wrong_type(name: str, wanted: str, value: object) -> ApiFault:
    """A field has a value of the wrong JSON type."""
    return ApiFault(
        400,
        f"Invalid type for '{name}': expected {wanted}, but got {_called(value)} instead.",
        code="invalid_type",
        param=name,
    )


def no_file(file_id: str) -> ApiFault:
    """A file is unknown, or somebody else's."""
    return ApiFault(404, f"No such File object: {_short(file_id)}", param="id")


def no_batch(batch_id: str) -> ApiFault:
    """A batch is unknown, or somebody else's."""
    return ApiFault(404, f"No batch found with id '{_short(batch_id)}'.")


def no_upload(upload_id: str) -> ApiFault:
    """An upload is unknown, or somebody else's."""
    return ApiFault(404, f"No such Upload object: {_short(upload_id)}", param="upload_id")


def conflict(message: str, code: str | None = None) -> ApiFault:
    """What would be answered the same way again: SDKs are told not to repeat it."""
    return ApiFault(409, message, code=code, headers={"x-should-retry": "false"})


def over_quota(message: str) -> ApiFault:
    """A key has used up what it may."""
    return ApiFault(429, message, code="insufficient_quota", headers={"x-should-retry": "false"})


def disk_full() -> ApiFault:
    """There is no room."""
    return ApiFault(
        507,
        "The server's disk is full; nothing was kept of this request. Free some room and send it again.",
        code="disk_full",
        headers={"x-should-retry": "false"},
    )


def _short(name: str) -> str:
    text = name if len(name) <= 80 else name[:80] + "..."
    return text.encode("utf-8", "backslashreplace").decode()


def _called(value: object) -> str:
    names: dict[type, str] = {
        dict: "an object",
        list: "an array",
        str: "a string",
        bool: "a boolean",
        int: "an integer",
        float: "a decimal number",
        type(None): "null",
    }
    return names.get(type(value), "something else")
