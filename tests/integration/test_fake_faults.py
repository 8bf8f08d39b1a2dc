"""Each fault seen from a plain socket: nothing between the test and the bytes."""

from __future__ import annotations

import gc
import json
import socket
import threading
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from typing import Any

import pytest

from ollama_batch.testing import FAULT_KINDS, FakeModel, FakeOllama, Fault

USER = [{"role": "user", "content": "row-1\nhello"}]


class Reply:
    """A raw HTTP reply: what came before the connection ended or the reply was complete."""

    def __init__(self, raw: bytes, ending: str) -> None:
        head, self.complete_head, self.body = raw.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        self.raw = raw
        self.ending = ending  # "complete", "closed", "reset" or "open"
        self.status = int(lines[0].split()[1]) if raw else None
        self.headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])
        }

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def missing(self) -> int:
        return int(self.headers["content-length"]) - len(self.body)


def ask(
    fake: FakeOllama,
    path: str = "/api/chat",
    *,
    stream: bool = False,
    patience: float = 5.0,
    messages: list[dict[str, Any]] = USER,
    method: str = "POST",
    **more: Any,
) -> Reply:
    body = json.dumps({"model": "toy:1b", "messages": messages, "stream": stream, **more}).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: {fake.url[7:]}\r\nContent-Length: {len(body)}\r\n\r\n"
    raw = b""
    with closing(socket.create_connection(("127.0.0.1", fake.port), timeout=patience)) as connection:
        connection.sendall(head.encode() + body)
        try:
            while True:
                more_bytes = connection.recv(65536)
                if not more_bytes:
                    return Reply(raw, "closed")
                raw += more_bytes
                if _is_complete(raw):
                    return Reply(_dechunked(raw), "complete")
        except ConnectionResetError:
            return Reply(raw, "reset")
        except TimeoutError:
            return Reply(raw, "open")


def _is_complete(raw: bytes) -> bool:
    reply = Reply(raw, "")
    if not reply.complete_head:
        return False
    if reply.headers.get("transfer-encoding") == "chunked":
        return raw.endswith(b"0\r\n\r\n")
    return reply.missing <= 0


def _dechunked(raw: bytes) -> bytes:
    head, _, body = raw.partition(b"\r\n\r\n")
    if b"chunked" not in head:
        return raw
    parts = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        parts, body = parts + body[: int(size, 16)], body[int(size, 16) + 2 :]
    return head + b"\r\n\r\n" + parts


REPLIES = [kind for kind, row in FAULT_KINDS.items() if row.action == "reply"]


@pytest.mark.parametrize("kind", [kind for kind in REPLIES if not FAULT_KINDS[kind].raw])
def test_error_faults_have_their_status_and_text_in_the_form_of_the_route(kind: str) -> None:
    row = FAULT_KINDS[kind]
    text = row.text.replace("{model}", "toy:1b")
    with FakeOllama(faults=[Fault(kind)]) as fake:
        native, gpt = ask(fake), ask(fake, "/v1/chat/completions")
        assert [record.outcome for record in fake.ledger.completions()] == [f"fault:{kind}"] * 2
    assert (native.status, native.json) == (row.status, {"error": text})
    assert gpt.status == row.status
    assert gpt.json["error"]["message"] == text
    assert set(gpt.json["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("kind", [kind for kind in REPLIES if FAULT_KINDS[kind].raw])
def test_raw_faults_send_their_bytes_as_they_are(kind: str) -> None:
    row = FAULT_KINDS[kind]
    with FakeOllama(faults=[Fault(kind)]) as fake:
        reply = ask(fake)
    assert (reply.status, reply.body, reply.ending) == (row.status, row.text.encode(), "complete")
    assert reply.headers["content-type"] == row.content_type


def test_status_text_body_and_headers_can_be_chosen() -> None:
    faults = [
        Fault("status", when=1, status=429, text="slow down", headers={"Retry-After": "7"}),
        Fault("oom", when=2, body={"error": {"message": "CUDA out of memory", "code": 500}}),
        Fault("gateway", when=3, status=504, text="<html>"),
    ]
    with FakeOllama(faults=faults) as fake:
        first, second, third = ask(fake), ask(fake), ask(fake)
    assert (first.status, first.json, first.headers["retry-after"]) == (429, {"error": "slow down"}, "7")
    assert (second.status, second.json) == (500, {"error": {"message": "CUDA out of memory", "code": 500}})
    assert (third.status, third.body) == (504, b"<html>")


METRICS = {
    "total_duration",
    "load_duration",
    "prompt_eval_count",
    "prompt_eval_duration",
    "eval_count",
    "eval_duration",
}


def _altered(kind: str, normal: Mapping[str, Any]) -> dict[str, Any]:
    """What the body of the normal answer becomes, by the summary in the table."""
    body = {name: value for name, value in normal.items() if name not in ("created_at", *METRICS)}
    message: dict[str, Any] = dict(normal["message"])
    words = message["content"]
    half = words[: len(words) // 2]
    contents: dict[str, Any] = {
        "not_done": half,
        "content_null": None,
        "content_number": 42,
        "empty": "",
        "whitespace": "\n\n \t\n",
        "thinking_only": "",
        "length": half,
        "length_empty": "",
        "refusal": "I'm sorry, but I can't help with that.",
        "content_filter": "",
        "fenced": f"```json\n{words}\n```",
        "repeat": " ".join(["again"] * 50),
    }
    body["message"] = message | {"content": contents.get(kind, words)}
    if kind == "thinking_only":
        body["message"]["thinking"] = words
    if kind == "not_done":
        body["done"] = False
        del body["done_reason"]
    elif kind == "done_missing":
        del body["done"]
    elif kind == "message_missing":
        del body["message"]
    elif kind in ("length", "length_empty", "repeat"):
        body["done_reason"] = "length"
    elif kind == "content_filter":
        body["done_reason"] = "content_filter"
    elif kind == "wrong_model":
        body["model"] = "other:1b"
    return body


ALTERED = [kind for kind, row in FAULT_KINDS.items() if row.action == "alter"]


@pytest.mark.parametrize("kind", [kind for kind in ALTERED if kind != "bad_utf8"])
def test_altered_answers_differ_as_the_table_says(kind: str) -> None:
    with FakeOllama(faults=[Fault(kind, when=2)]) as fake:
        normal, altered = ask(fake, options={"num_predict": 50}), ask(fake, options={"num_predict": 50})
    assert (altered.status, altered.ending) == (200, "complete")
    bare = {name: v for name, v in altered.json.items() if name not in ("created_at", *METRICS)}
    assert bare == _altered(kind, normal.json)
    assert normal.json["eval_count"] > 0
    assert METRICS.isdisjoint(altered.json) == (kind in ("not_done", "no_metrics"))


def test_bad_utf8_is_no_utf8() -> None:
    with FakeOllama(faults=[Fault("bad_utf8")]) as fake:
        for path in ("/api/chat", "/v1/chat/completions"):
            with pytest.raises(UnicodeDecodeError):
                ask(fake, path).body.decode()


@pytest.mark.parametrize(
    ("kind", "reason"), [("not_done", None), ("length", "length"), ("content_filter", "content_filter")]
)
def test_on_the_openai_route_the_finish_reason_tells(kind: str, reason: str | None) -> None:
    with FakeOllama(faults=[Fault(kind)]) as fake:
        reply = ask(fake, "/v1/chat/completions")
    assert reply.json["choices"][0]["finish_reason"] == reason


def test_streams_of_unfinished_answers_just_end() -> None:
    with FakeOllama(faults=[Fault("not_done")]) as fake:
        native = ask(fake, stream=True)
        gpt = ask(fake, "/v1/chat/completions", stream=True)
    assert native.ending == gpt.ending == "complete"
    assert not any(json.loads(line)["done"] for line in native.body.splitlines())
    assert b"[DONE]" not in gpt.body
    assert b'"finish_reason":"' not in gpt.body


def test_a_failing_stream_ends_with_an_error_line_natively_and_with_nothing_on_the_openai_route() -> None:
    with FakeOllama(faults=[Fault("stream_error")]) as fake:
        native = ask(fake, stream=True)
        gpt = ask(fake, "/v1/chat/completions", stream=True)
        whole = ask(fake)
    text = "an error was encountered while running the model: unexpected EOF"
    first, last = [json.loads(line) for line in native.body.splitlines()]
    assert (native.status, first["done"], last) == (200, False, {"error": text})
    events = [json.loads(line[6:]) for line in gpt.body.decode().split("\n\n") if line]
    assert events[-1]["choices"][0] == {
        "index": 0,
        "delta": {"role": "assistant", "content": ""},
        "finish_reason": None,
    }
    assert (whole.status, whole.json) == (500, {"error": text})


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("kind", "ending"), [("cut", "closed"), ("cut_open", "open"), ("reset_mid", "reset")]
)
def test_cut_answers_stop_short_of_the_announced_length(kind: str, ending: str, stream: bool) -> None:
    with FakeOllama(faults=[Fault(kind)]) as fake:
        reply = ask(fake, stream=stream, patience=0.3 if ending == "open" else 5)
        fake.wait_until(lambda ledger: ledger.completions()[0].outcome == f"fault:{kind}")
    assert reply.ending == ending
    if kind != "reset_mid":  # a reset may overtake what was sent before it
        assert reply.status == 200
        assert reply.missing > 0
        assert len(reply.body) > 0


@pytest.mark.parametrize(("kind", "ending"), [("close", "closed"), ("reset", "reset"), ("hang", "open")])
def test_dropped_requests_get_no_byte(kind: str, ending: str) -> None:
    with FakeOllama(faults=[Fault(kind, when=1)]) as fake:
        reply = ask(fake, patience=0.2 if ending == "open" else 5)
        assert (reply.ending, reply.raw) == (ending, b"")
        assert ask(fake).status == 200
        fake.wait_until(lambda ledger: ledger.answered() == 1)
        assert [record.outcome for record in fake.ledger.completions()] == [f"fault:{kind}", "answered"]


def test_slow_answers_come_byte_by_byte_and_whole() -> None:
    with FakeOllama(faults=[Fault("slow", for_s=0.0)]) as fake:
        reply = ask(fake)
        assert reply.json["done"] is True
        fake.clear_faults()
        fake.inject(Fault("slow", for_s=0.2))
        late = ask(fake, patience=0.05)
    assert (late.ending, len(late.body) <= 1) == ("open", True)


def test_a_refusing_server_takes_no_connection_and_comes_back_on_its_port() -> None:
    with FakeOllama(faults=[Fault("refuse", when=1, for_s=60.0)]) as fake:
        with closing(socket.create_connection(("127.0.0.1", fake.port), timeout=5)) as idle:
            assert ask(fake).ending == "reset"
            with pytest.raises(ConnectionResetError):
                idle.recv(1)
        with pytest.raises(ConnectionRefusedError):
            ask(fake)
        fake.restart()
        assert ask(fake).status == 200


def test_a_refusing_server_comes_back_by_itself() -> None:
    with FakeOllama(faults=[Fault("refuse", when=1, for_s=0.0)]) as fake:
        assert ask(fake).ending == "reset"
        for _ in range(1000):
            try:
                reply = ask(fake)
            except ConnectionRefusedError:
                continue
            break
        assert reply.status == 200


def test_a_swapped_model_has_another_digest_and_goes_on_answering() -> None:
    with FakeOllama(
        models=[FakeModel("toy:1b", digest="a" * 64)], faults=[Fault("model_swapped", when=2)]
    ) as fake:
        digests = []
        for _ in range(3):
            assert ask(fake).status == 200
            digests.append(ask(fake, "/api/tags", method="GET").json["models"][0]["digest"])
        assert fake.ledger.answered() == 3
    assert digests[0] == "a" * 64
    assert len(set(digests)) == 2
    assert digests[1] == digests[2]


def test_faults_hit_the_row_the_route_and_the_moment_they_name() -> None:
    faults = [
        Fault("crash", match="poison"),
        Fault("oom", num_ctx_above=4096),
        Fault("status", route="/api/ps", status=500),
        Fault("load_failed", route="preload", when=1),
    ]
    poison = [{"role": "user", "content": "poison"}]
    with FakeOllama(faults=faults) as fake:
        assert ask(fake, messages=poison).status == 500
        assert (
            ask(fake, options={"num_ctx": 8192})
            .json["error"]
            .startswith("llama-server reported out-of-memory")
        )
        assert ask(fake, options={"num_ctx": 4096}).status == 200
        assert ask(fake, "/api/ps", method="GET").status == 500
        assert [ask(fake, messages=[]).status for _ in range(2)] == [500, 200]


def test_an_unreachable_server_is_back_after_a_restart_with_its_ledger_and_without_its_models() -> None:
    with FakeOllama() as fake:
        port = fake.port
        assert ask(fake).status == 200
        fake.stop()
        fake.stop()
        with pytest.raises(ConnectionRefusedError):
            ask(fake)
        fake.restart()
        assert fake.port == port
        assert ask(fake, "/api/ps", method="GET").json == {"models": []}
        assert ask(fake).status == 200
        assert (fake.ledger.count(), fake.ledger.loads) == (2, 2)


def test_stopping_resets_the_requests_in_flight() -> None:
    with FakeOllama(faults=[Fault("hang")]) as fake:
        body = json.dumps({"model": "toy:1b", "messages": USER}).encode()
        with closing(socket.create_connection(("127.0.0.1", fake.port), timeout=5)) as connection:
            connection.sendall(
                b"POST /api/chat HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )
            fake.wait_until(lambda ledger: ledger.count() == 1)
            fake.stop()
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
        assert fake.ledger.completions()[0].outcome == "fault:hang"


def test_a_connection_that_arrives_while_the_server_closes_is_closed_too() -> None:
    def knock(port: int) -> None:
        with suppress(OSError):
            while True:
                socket.create_connection(("127.0.0.1", port), 1).close()
                knocking.set()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        for _ in range(4):
            knocking = threading.Event()
            with FakeOllama() as fake, ThreadPoolExecutor(4) as clients:
                for _ in range(4):
                    clients.submit(knock, fake.port)
                assert knocking.wait(10)
                fake.close()
        gc.collect()
    assert [str(warning.message) for warning in caught] == []


def test_the_control_routes_take_faults_and_give_counts_and_are_not_written_down() -> None:
    def control(method: str, path: str, data: Mapping[str, Any]) -> Reply:
        body = json.dumps(data).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        raw = b""
        with closing(socket.create_connection(("127.0.0.1", fake.port), timeout=5)) as connection:
            connection.sendall(head.encode() + body)
            while part := connection.recv(65536):
                raw += part
        return Reply(raw, "closed")

    with FakeOllama() as fake:
        assert control("POST", "/_fake/faults", {"kind": "busy"}).status == 200
        assert ask(fake).status == 503
        assert control("DELETE", "/_fake/faults", {}).status == 200
        assert ask(fake).status == 200
        assert control("POST", "/_fake/faults", {"kind": "nonsense"}).status == 400
        summary = control("GET", "/_fake/ledger", {}).json
        assert (summary["completions"], summary["answered"], len(summary["loads"])) == (2, 1, 1)
        assert len(list(fake.ledger.records())) == 2
