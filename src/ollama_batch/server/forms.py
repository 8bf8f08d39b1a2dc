"""Multipart forms: the file goes to disk as it comes, in whatever order the fields stand."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from ollama_batch.server.faults import ApiFault
from ollama_batch.server.reading import FORM_BYTES, Body
from ollama_batch.server.settings import ServerSettings
from ollama_batch.server.vault import Draft

MOST_PARTS = 32
MOST_NAME_CHARS = 1024
_WRITE_BYTES = 1 << 20

# Its warnings quote what a client sent.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)


@dataclass(slots=True)
class Form:
    """What a form held: fields by their names, and one file."""

    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None
    draft: Draft | None = None


@dataclass(slots=True)
class _Part:
    """The part that is being read."""

    headers: dict[str, str] = field(default_factory=dict)
    header_name: bytes = b""
    header_value: bytes = b""
    name: str | None = None
    is_file: bool = False


class FormReader:
    """Reads one form whose file stands in the field `file_field`.

    Use `read`; whatever it raises, no file is left. Memory is bounded: about 2 MB.
    """

    def __init__(self, file_field: str, *, most_bytes: int, open_draft: Callable[[], Draft]) -> None:
        self._file_field = file_field
        self._most = most_bytes
        self._open = open_draft
        self._form = Form()
        self._part = _Part()
        self._parts = 0
        self._small = 0
        self._size = 0
        self._pending = bytearray()
        self._values: dict[str, bytearray] = {}
        self._ended = False
        self._fault: ApiFault | None = None

    async def read(self, request: Request, settings: ServerSettings) -> Form:
        """The form in the body of `request`, its file written but not finished. Raises ApiFault, OSError."""
        kind, options = parse_options_header(request.headers.get("content-type", ""))
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data":
            raise ApiFault(415, "The body must be a form (Content-Type: multipart/form-data).")
        if not 0 < len(boundary) <= 200:
            raise ApiFault(400, "The Content-Type names no usable boundary.")
        body = Body(request, settings, most=self._most + FORM_BYTES)
        parser = MultipartParser(boundary, self._callbacks(), max_header_count=16)  # type: ignore[arg-type]  # a TypedDict of callables
        try:
            async for piece in body.pieces():
                try:
                    parser.write(piece)
                except FormParserError:
                    raise ApiFault(
                        400, "The form cannot be read: it is not what its boundary says."
                    ) from None
                if self._fault is not None:
                    raise self._fault
                if len(self._pending) >= _WRITE_BYTES:
                    await self._flush()
            if not self._ended:
                raise ApiFault(400, "The form is incomplete: its last boundary is missing.")
            await self._flush()
        except BaseException:
            if self._form.draft is not None:
                self._form.draft.discard()
            raise
        for name, value in self._values.items():
            self._form.fields[name] = value.decode("utf-8", "replace")
        return self._form

    async def _flush(self) -> None:
        data, self._pending = self._pending, bytearray()
        if data and self._form.draft is not None:
            await asyncio.to_thread(self._form.draft.write, bytes(data))

    def _callbacks(self) -> Mapping[str, Callable[..., None]]:
        return {
            "on_part_begin": self._part_begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._part_data,
            "on_end": self._end,
        }

    def _refuse(self, fault: ApiFault) -> None:
        self._fault = self._fault or fault

    def _part_begin(self) -> None:
        self._part = _Part()
        self._parts += 1
        if self._parts > MOST_PARTS:
            self._refuse(ApiFault(400, f"The form has more than {MOST_PARTS} parts."))

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._part.header_name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._part.header_value += data[start:end]

    def _header_end(self) -> None:
        part = self._part
        part.headers[part.header_name.decode("latin-1").lower()] = part.header_value.decode("latin-1")
        part.header_name = part.header_value = b""

    def _headers_finished(self) -> None:
        part = self._part
        kind, options = parse_options_header(part.headers.get("content-disposition", ""))
        if kind != b"form-data" or b"name" not in options:
            self._refuse(ApiFault(400, "A part of the form has no name."))
            return
        part.name = options[b"name"].decode("utf-8", "replace")
        part.is_file = part.name == self._file_field
        if part.name in self._values or (part.is_file and self._form.filename is not None):
            name = part.name[:64]
            self._refuse(ApiFault(400, f"The form has {name!r} more than once.", param=name))
        elif part.is_file:
            self._begin_file(options.get(b"filename", b""))
        else:
            self._values[part.name] = bytearray()

    def _begin_file(self, given: bytes) -> None:
        name = given.decode("utf-8", "replace")[:MOST_NAME_CHARS]
        self._form.filename = "".join(char if char.isprintable() else "\ufffd" for char in name) or "upload"
        if self._fault is None:
            self._form.draft = self._open()

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        part = self._part
        if self._fault is not None:
            return
        if part.is_file:
            self._size += end - start
            self._pending += memoryview(data)[start:end]
            if self._size > self._most:
                message = f"The file is larger than the {self._most:,} bytes that are allowed here."
                self._refuse(ApiFault(413, message, code="file_too_large", param=self._file_field))
        elif part.name is not None:
            self._small += end - start
            self._values[part.name] += data[start:end]
            if self._small > FORM_BYTES:
                self._refuse(ApiFault(400, "The fields of the form are too long."))

    def _end(self) -> None:
        self._ended = True
