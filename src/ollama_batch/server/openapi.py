"""The description of the API, in OpenAPI's form: `/openapi.json`."""

from __future__ import annotations

from typing import Any, Final

from ollama_batch import __version__
from ollama_batch.server.objects import STAMPS

_TEXT: Final = {"type": "string"}
_INT: Final = {"type": "integer"}


def _maybe(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    """An object with exactly these keys."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _list_of(name: str) -> dict[str, Any]:
    return _object(
        {
            "object": {"const": "list"},
            "data": {"type": "array", "items": {"$ref": f"#/components/schemas/{name}"}},
            "first_id": _maybe(_TEXT),
            "last_id": _maybe(_TEXT),
            "has_more": {"type": "boolean"},
        }
    )


_EXPIRY: Final = {
    "type": "object",
    "properties": {
        "anchor": {"const": "created_at"},
        "seconds": {"type": "integer", "minimum": 3600, "maximum": 2_592_000},
    },
    "required": ["anchor", "seconds"],
}
_SCHEMAS: Final[dict[str, Any]] = {
    "File": _object(
        {
            "id": _TEXT,
            "object": {"const": "file"},
            "bytes": _INT,
            "created_at": _INT,
            "expires_at": _maybe(_INT),
            "filename": _TEXT,
            "purpose": _TEXT,
            "status": {"const": "processed"},
            "status_details": _maybe(_TEXT),
        }
    ),
    "Batch": _object(
        {
            "id": _TEXT,
            "object": {"const": "batch"},
            "endpoint": _TEXT,
            "errors": _maybe({"type": "object"}),
            "input_file_id": _TEXT,
            "completion_window": _TEXT,
            "status": _TEXT,
            "output_file_id": _maybe(_TEXT),
            "error_file_id": _maybe(_TEXT),
            "created_at": _INT,
            "expires_at": _INT,
            **{name: _maybe(_INT) for name in STAMPS},
            "request_counts": _object({"total": _INT, "completed": _INT, "failed": _INT}),
            "metadata": _maybe({"type": "object", "additionalProperties": _TEXT}),
            "model": _maybe(_TEXT),
            "usage": _maybe({"type": "object"}),
        }
    ),
    "Upload": _object(
        {
            "id": _TEXT,
            "object": {"const": "upload"},
            "bytes": _INT,
            "created_at": _INT,
            "expires_at": _INT,
            "filename": _TEXT,
            "purpose": _TEXT,
            "status": {"enum": ["pending", "completed", "cancelled", "expired"]},
            "file": _maybe({"$ref": "#/components/schemas/File"}),
        }
    ),
    "Part": _object(
        {"id": _TEXT, "object": {"const": "upload.part"}, "created_at": _INT, "upload_id": _TEXT}
    ),
    "Deleted": _object({"id": _TEXT, "object": {"const": "file"}, "deleted": {"const": True}}),
    "Files": _list_of("File"),
    "Batches": _list_of("Batch"),
    "Model": _object({"id": _TEXT, "object": {"const": "model"}, "created": _INT, "owned_by": _TEXT}),
    "Models": _object(
        {
            "object": {"const": "list"},
            "data": {"type": "array", "items": {"$ref": "#/components/schemas/Model"}},
        }
    ),
    "Any": {"type": "object"},
    "Error": _object(
        {"error": _object({"message": _TEXT, "type": _TEXT, "param": _maybe(_TEXT), "code": _maybe(_TEXT)})}
    ),
}
_CREATE_BATCH: Final = {
    "type": "object",
    "properties": {
        "input_file_id": _TEXT,
        "endpoint": {"enum": ["/v1/chat/completions"]},
        "completion_window": {"enum": ["24h"]},
        "metadata": _maybe(
            {
                "type": "object",
                "maxProperties": 16,
                "propertyNames": {"maxLength": 64},
                "additionalProperties": {"type": "string", "maxLength": 512},
            }
        ),
        "output_expires_after": _maybe(_EXPIRY),
    },
    "required": ["input_file_id", "endpoint", "completion_window"],
    "additionalProperties": False,
}
_PURPOSE: Final = {"enum": ["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]}
_CREATE_UPLOAD: Final = {
    "type": "object",
    "properties": {
        "bytes": {"type": "integer", "minimum": 1},
        "filename": _TEXT,
        "mime_type": _TEXT,
        "purpose": _PURPOSE,
        "expires_after": _maybe(_EXPIRY),
    },
    "required": ["bytes", "filename", "mime_type", "purpose"],
    "additionalProperties": False,
}
_COMPLETE: Final = {
    "type": "object",
    "properties": {"part_ids": {"type": "array", "items": _TEXT}, "md5": _maybe(_TEXT)},
    "required": ["part_ids"],
    "additionalProperties": False,
}
_MESSAGE: Final = {"type": "object", "properties": {"role": _TEXT}, "required": ["role"]}
_CHAT: Final = {
    "type": "object",
    "properties": {
        "model": _TEXT,
        "messages": {"type": "array", "minItems": 1, "items": _MESSAGE},
        "max_tokens": {"type": "integer", "minimum": 1},
        "temperature": {"type": "number"},
    },
    "required": ["model", "messages"],
}


def _binary_form(field: str, **more: Any) -> dict[str, Any]:
    properties = {field: {"type": "string", "format": "binary"}, **more}
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _query(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema}


_ID: Final = {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
_AFTER: Final = _query("after", _TEXT)


def _does(
    summary: str, answer: str, *, body: dict[str, Any] | None = None, parameters: tuple[Any, ...] = ()
) -> dict[str, Any]:
    """An operation; every error has the same form."""
    good = {"application/json": {"schema": {"$ref": f"#/components/schemas/{answer}"}}}
    if answer == "Bytes":
        good = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    bad = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {
        "summary": summary,
        "parameters": list(parameters),
        "responses": {
            "200": {"description": "done", "content": good},
            "4XX": {"description": "refused", "content": bad},
            "5XX": {"description": "not now", "content": bad},
        },
        **({} if body is None else {"requestBody": body}),
    }


def _limit(most: int) -> dict[str, Any]:
    return _query("limit", {"type": "integer", "minimum": 1, "maximum": most})


def description(*, keys: bool, default_model: bool = False) -> dict[str, Any]:
    """The whole of it, for a server that has keys or not, and a model for requests without one or not."""
    files = (_AFTER, _limit(10_000), _query("order", {"enum": ["asc", "desc"]}), _query("purpose", _TEXT))
    upload = _binary_form("file", purpose=_PURPOSE)
    chat = {**_CHAT, "required": ["messages"]} if default_model else _CHAT
    paths = {
        "/v1/files": {
            "post": _does("Upload a file", "File", body=upload),
            "get": _does("List files", "Files", parameters=files),
        },
        "/v1/files/{id}": {
            "get": _does("A file", "File", parameters=(_ID,)),
            "delete": _does("Delete a file", "Deleted", parameters=(_ID,)),
        },
        "/v1/files/{id}/content": {"get": _does("Its content", "Bytes", parameters=(_ID,))},
        "/v1/batches": {
            "post": _does("Make a batch", "Batch", body=_json(_CREATE_BATCH)),
            "get": _does("List batches", "Batches", parameters=(_AFTER, _limit(100))),
        },
        "/v1/batches/{id}": {"get": _does("A batch", "Batch", parameters=(_ID,))},
        "/v1/batches/{id}/cancel": {"post": _does("Cancel it", "Batch", parameters=(_ID,))},
        "/v1/uploads": {"post": _does("Begin a file in parts", "Upload", body=_json(_CREATE_UPLOAD))},
        "/v1/uploads/{id}/parts": {
            "post": _does("Add a part", "Part", body=_binary_form("data"), parameters=(_ID,))
        },
        "/v1/uploads/{id}/complete": {
            "post": _does("Make it a file", "Upload", body=_json(_COMPLETE), parameters=(_ID,))
        },
        "/v1/uploads/{id}/cancel": {"post": _does("Give it up", "Upload", parameters=(_ID,))},
        "/v1/chat/completions": {"post": _does("Ask the engine", "Any", body=_json(chat))},
        "/v1/models": {"get": _does("The models there are", "Models")},
        "/v1/models/{id}": {"get": _does("A model", "Model", parameters=(_ID,))},
        "/health": {"get": {**_does("How the server is", "Any"), "security": []}},
    }
    whole: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "ollama_batch", "version": __version__},
        "paths": paths,
        "components": {"schemas": _SCHEMAS},
    }
    if keys:
        whole["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        whole["security"] = [{"key": []}]
    return whole
