"""The routes of the fake server, and the ways in which sending an answer goes wrong."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable, Mapping
from time import monotonic
from typing import Any

import orjson
from aiohttp import web

from ollama_batch.testing import _info, _wire
from ollama_batch.testing._asks import (
    Ask,
    Refusal,
    keep_alive_s,
    read_body,
    read_chat,
    read_generate,
    read_openai,
)
from ollama_batch.testing._ollama import Ollama, Running
from ollama_batch.testing.faults import KINDS, Fault, FaultPlan, Moment
from ollama_batch.testing.ledger import Kind, Ledger, LedgerRecord

MAX_BODY = 256 * 1024 * 1024
COMPLETIONS: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], Ask]]] = {
    "/api/chat": ("chat", read_chat),
    "/api/generate": ("generate", read_generate),
    "/v1/chat/completions": ("openai", read_openai),
}
_JSON_HEADERS = {"Content-Type": _wire.JSON}


class Service:
    """Answers HTTP requests for a fake engine, and writes them down."""

    def __init__(
        self, ollama: Ollama, ledger: Ledger, plan: FaultPlan, go_down: Callable[[float], None]
    ) -> None:
        self.ollama = ollama
        self.ledger = ledger
        self.plan = plan
        self.in_flight = 0
        self.up_since = monotonic()
        self._go_down = go_down
        self._api_key = ollama.config.api_key

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        path = request.path
        if path.startswith("/_fake/"):
            return await self._control(request)
        if self._api_key is not None and request.headers.get("Authorization") != f"Bearer {self._api_key}":
            self.ledger.finished(self._arrived(path, "other"), "error", 401)
            return _json(_wire.error(_api(path), 401, "unauthorized"), 401)
        route = COMPLETIONS.get(path)
        if route is None or request.method != "POST":
            return await self._question(request)
        return await self._completion(request, *route)

    def _arrived(self, route: str, kind: Kind) -> LedgerRecord:
        return self.ledger.arrived(at=monotonic(), route=route, kind=kind)

    def _up_s(self) -> float:
        return monotonic() - self.up_since

    async def _completion(
        self, request: web.BaseRequest, api: str, read: Callable[[Mapping[str, Any]], Ask]
    ) -> web.StreamResponse:
        at = monotonic()
        try:
            ask = read(read_body(await request.read()))
            kind = _kind(ask)
        except Refusal as refusal:
            record = self.ledger.arrived(at=at, route=request.path, kind="other")
            self.ledger.finished(record, "error", refusal.status)
            return _json(_wire.error(api, refusal.status, refusal.text), refusal.status)
        completion = kind == "completion"
        text, digest = ask.last_user, ask.digest
        self.in_flight += completion
        record = self.ledger.arrived(
            at=at,
            route=request.path,
            kind=kind,
            model=ask.model,
            key=text.partition("\n")[0][:200],
            digest=digest,
            sent=ask.sent,
            in_flight=self.in_flight,
        )
        fault: Fault | None = None
        if self.plan:
            context = ask.options.get("num_ctx")
            moment = Moment(request.path, kind, text, digest, context, self.in_flight, self._up_s())
            fault = self.plan.pick(moment)
        outcome, status = "aborted", None
        try:
            response = await self._answer(request, ask, digest, kind, fault)
            harmless = fault is None or KINDS[fault.kind].action in ("swap", "stick")
            outcome = "answered" if fault is None or harmless else f"fault:{fault.kind}"
            status = response.status
            return response
        except Refusal as refusal:
            outcome, status = f"fault:{refusal.fault}" if refusal.fault else "error", refusal.status
            return _refuse(request, api, refusal)
        except ConnectionError:
            return web.Response()  # the client left while its answer was being written
        except asyncio.CancelledError:
            death = self.ollama.death_of_this()
            if death is not None:
                outcome, status = f"fault:{death.fault}", death.status
                return _refuse(request, api, death)
            outcome = "aborted" if fault is None else f"fault:{fault.kind}"
            raise
        finally:
            self.in_flight -= completion
            self.ledger.finished(record, outcome, status)

    async def _answer(
        self, request: web.BaseRequest, ask: Ask, digest: str, kind: Kind, fault: Fault | None
    ) -> web.StreamResponse:
        action = ""
        if fault is not None:
            action = KINDS[fault.kind].action
            early = await self._fail_early(request, ask, fault)
            if early is not None:
                return early
        if kind != "completion":
            return _json(_wire.whole(ask, await self.ollama.load(ask)))
        running = await self.ollama.begin(ask, digest, dies=fault if action == "die" else None)
        try:
            if fault is not None and action == "alter":
                _wire.alter(running.answer, fault.kind, int(ask.options.get("num_predict") or 0))
            if fault is not None and action == "send":
                return await self._send_badly(request, ask, running, fault)
            if ask.stream and running.answer.body is None:
                return await self._stream(request, ask, running)
            await self.ollama.generate(running)
            self.ollama.finish(running)
            return _json(_wire.whole(ask, running.answer), running.answer.status)
        finally:
            self.ollama.end(running)

    async def _stream(self, request: web.BaseRequest, ask: Ask, running: Running) -> web.StreamResponse:
        self.ollama.generated(running)
        response = web.StreamResponse(headers={"Content-Type": _stream_type(ask)})
        await response.prepare(request)
        try:
            async for piece in self._paced(ask, running):
                await response.write(piece)
        except asyncio.CancelledError:
            death = self.ollama.death_of_this()
            if death is None:
                raise
            if death.reset:
                _reset(request)
            else:
                await response.write(_wire.stream_failure(ask, death.text))
                await response.write_eof()
            told = Refusal(death.status, death.text, fault=death.fault)
            told.told = response
            raise told from None
        await response.write_eof()
        return response

    async def _paced(self, ask: Ask, running: Running) -> AsyncIterator[bytes]:
        answer = running.answer
        pause = answer.decode_s / max(answer.eval_tokens, 1)
        self.ollama.finish(running)
        answer.total_ns += int(answer.decode_s * 1e9)
        for piece in _wire.pieces(ask, answer):
            if pause:
                await asyncio.sleep(pause)
            yield piece

    async def _fail_early(
        self, request: web.BaseRequest, ask: Ask, fault: Fault
    ) -> web.StreamResponse | None:
        """What a fault that comes before the answer does; None if the answer is still to be made."""
        if fault.after_s:
            await asyncio.sleep(fault.after_s)
        match KINDS[fault.kind].action:
            case "reply":
                return _reply(ask.api, ask.model, fault)
            case "drop":
                return await _drop(request, fault.kind)
            case "down":
                self._go_down(0.5 if fault.for_s is None else fault.for_s)
                # Going down ends this too, after the listener is closed: who sees the reset finds nobody.
                await asyncio.Event().wait()
            case "swap":
                self.ollama.swap(ask.model)
            case "stick":
                self.ollama.stick(ask.model)
        if fault.kind == "stream_error" and not ask.stream:
            raise Refusal(fault.status or 500, _text(fault, ask.model) + "unexpected EOF")
        return None

    async def _send_badly(
        self, request: web.BaseRequest, ask: Ask, running: Running, fault: Fault
    ) -> web.StreamResponse:
        await self.ollama.generate(running)
        self.ollama.finish(running)
        answer = running.answer
        streamed = ask.stream and answer.body is None
        body = b"".join(_wire.pieces(ask, answer)) if streamed else _wire.whole(ask, answer)
        kind = _stream_type(ask) if streamed else _wire.JSON
        if fault.kind == "stream_error":
            first = next(_wire.pieces(ask, answer))
            failure = _wire.stream_failure(ask, _text(fault, ask.model) + "unexpected EOF")
            response = web.StreamResponse(headers={"Content-Type": kind})
            await response.prepare(request)
            await response.write(first + failure)
            await response.write_eof()
            return response
        if fault.kind == "slow":
            response = web.StreamResponse(headers={"Content-Type": kind})
            response.content_length = len(body)
            await response.prepare(request)
            for index in range(len(body)):
                await response.write(body[index : index + 1])
                await asyncio.sleep(1.0 if fault.for_s is None else fault.for_s)
            return response
        return await _stop_short(request, fault.kind, kind, body)

    async def _question(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        body = await request.read()
        record = self._arrived(path, "other")
        outcome, status = "aborted", None
        try:
            name = ""
            if path == "/api/show" and request.method == "POST":
                asked = read_body(body)
                name = str(asked.get("model") or asked.get("name") or "")
            moment = Moment(path, "other", "", "", None, self.in_flight, self._up_s())
            fault = self.plan.pick(moment) if self.plan else None
            if fault is not None:
                outcome = f"fault:{fault.kind}"
                ask = Ask("openai" if _api(path) == "openai" else "chat", {}, name, [], {}, stream=False)
                early = await self._fail_early(request, ask, fault)
                if early is not None:
                    status = early.status
                    return early
            response = _informed(self.ollama, request.method, path, name)
            outcome, status = "answered", response.status
            return response
        except Refusal as refusal:
            outcome, status = "error", refusal.status
            return _json(_wire.error(_api(path), refusal.status, refusal.text), refusal.status)
        finally:
            self.ledger.finished(record, outcome, status)

    async def _control(self, request: web.BaseRequest) -> web.Response:
        """Routes of the fake itself: faults in, counts out. They are not written down."""
        match (request.method, request.path):
            case ("POST", "/_fake/faults"):
                try:
                    fault = Fault.from_json(orjson.loads(await request.read()))
                except (TypeError, ValueError) as exc:
                    return _json(orjson.dumps({"error": str(exc)}), 400)
                self.plan.add(fault)
            case ("DELETE", "/_fake/faults"):
                self.plan.clear()
            case ("POST", "/_fake/hold"):
                self.ollama.gate.clear()
            case ("POST", "/_fake/release"):
                self.ollama.gate.set()
            case ("GET", "/_fake/ledger"):
                summary = {
                    "completions": self.ledger.count(),
                    "answered": self.ledger.answered(),
                    "max_in_flight": self.ledger.max_in_flight,
                    "loads": self.ledger.load_settings(),
                }
                return _json(orjson.dumps(summary))
            case _:
                return web.Response(text="404 page not found", status=404)
        return _json(b"{}")


def _informed(ollama: Ollama, method: str, path: str, name: str) -> web.Response:
    info = _info.inform(ollama, method, path, name)
    if info is not None:
        return web.Response(text=info) if isinstance(info, str) else _json(orjson.dumps(info))
    if path in COMPLETIONS or _info.known(path):
        return web.Response(text="405 method not allowed", status=405)
    return web.Response(text="404 page not found", status=404)


def _json(body: bytes, status: int = 200) -> web.Response:
    return web.Response(body=body, status=status, headers=_JSON_HEADERS)


def _api(path: str) -> str:
    return "openai" if path.startswith("/v1/") else "chat"


def _stream_type(ask: Ask) -> str:
    return _wire.SSE if ask.api == "openai" else _wire.NDJSON


def _kind(ask: Ask) -> Kind:
    if ask.messages:
        return "completion"
    return "unload" if keep_alive_s(ask.keep_alive) == 0 else "preload"


def _text(fault: Fault, model: str) -> str:
    text = KINDS[fault.kind].text if fault.text is None else fault.text
    return text.replace("{model}", model)


def _reply(api: str, model: str, fault: Fault) -> web.Response:
    kind = KINDS[fault.kind]
    status = kind.status if fault.status is None else fault.status
    text = _text(fault, model)
    if isinstance(fault.body, Mapping):
        body = orjson.dumps(fault.body)
    elif fault.body is not None or kind.raw:
        body = (text if fault.body is None else fault.body).encode()
    else:
        body = _wire.error(api, status, text)
    return web.Response(
        body=body, status=status, headers={"Content-Type": kind.content_type, **fault.headers}
    )


def _refuse(request: web.BaseRequest, api: str, refusal: Refusal) -> web.StreamResponse:
    if refusal.told is not None:
        sent: web.StreamResponse = refusal.told
        return sent
    if refusal.reset:
        _reset(request)
        return web.Response()
    said = refusal.text.encode() if refusal.raw else _wire.error(api, refusal.status, refusal.text)
    return _json(said, refusal.status)


def _reset(request: web.BaseRequest) -> None:
    """End the connection with RST instead of FIN."""
    transport = request.transport
    if transport is not None:
        # Lingering for 0 seconds is how a socket is told to reset.
        peer = transport.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - narrows for the type checker
        transport.abort()


async def _drop(request: web.BaseRequest, kind: str) -> web.Response:
    if kind == "hang":
        await asyncio.Event().wait()
    elif kind == "reset":
        _reset(request)
    elif request.transport is not None:
        request.transport.close()
    return web.Response()


async def _stop_short(request: web.BaseRequest, kind: str, content_type: str, body: bytes) -> web.Response:
    """Announce the whole body, send half of it, and end as `kind` says."""
    transport = request.transport
    if transport is None:
        return web.Response()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    assert isinstance(transport, asyncio.Transport)  # noqa: S101 - narrows for the type checker
    transport.write(head.encode() + body[: len(body) // 2])
    if kind == "cut_open":
        await asyncio.Event().wait()
    elif kind == "reset_mid":
        _reset(request)
    else:
        transport.close()
    return web.Response()
