"""What comes to the server and means no good: keys, names, forms, sizes, broken HTTP."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import openai
import pytest

from ollama_batch.errors import ConfigError
from ollama_batch.server import app, create_app, keys, protocol
from ollama_batch.server.serving import check_host
from ollama_batch.testing import FakeOllama
from server_support import (
    CHAT,
    KEYS,
    MemoryGrowth,
    Serving,
    create,
    ended,
    errors_of,
    ids,
    jsonl,
    line,
    results,
    rows,
    run,
    serving,
    until,
    upload,
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with (
        FakeOllama() as fake,
        serving(tmp_path_factory.mktemp("server") / "data", fake, max_file_bytes=2**20) as served,
    ):
        yield served


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with (
        FakeOllama() as fake,
        serving(tmp_path_factory.mktemp("server") / "data", fake, keys=KEYS) as served,
    ):
        yield served


def drafts(server: Serving) -> list[Path]:
    return list((server.service.folder / "tmp").iterdir())


# Keys


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ({}, ""),
        ({"authorization": "Bearer wrong-key-0123456789"}, ""),
        ({"authorization": f"Basic {KEYS[0]}"}, ""),
        ({"authorization": "Bearer"}, ""),
        ({"authorization": KEYS[0]}, ""),
        ({"authorization": f"Bearer {KEYS[0]}x"}, ""),
        ({"authorization": "Bearer " + "k" * 2**20}, ""),
        ({"authorization": "Bearer \xff\xfe"}, ""),
        ({}, f"?api_key={KEYS[0]}"),
    ],
    ids=["none", "wrong", "basic", "empty", "bare", "longer", "1 MB", "bytes", "query"],
)
def test_without_a_right_key_there_is_only_401(locked: Serving, headers: dict[str, str], query: str) -> None:
    encoded = {name: value.encode("latin-1") for name, value in headers.items()}
    with locked.http() as http:
        for path in ("/v1/files", "/v1/batches", "/v1/models", "/metrics", "/v1/nothing"):
            reply = http.get(f"{path}{query}", headers=encoded)  # type: ignore[arg-type]  # httpx takes bytes
            assert reply.status_code == 401
            assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
        assert http.get("/health").status_code == 200


def test_every_key_is_compared_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []

    def compare(a: str, b: str) -> bool:
        compared.append(len(a))
        return a == b

    monkeypatch.setattr(keys.hmac, "compare_digest", compare)
    known = keys.Keys(KEYS, b"salt")
    first, second = (known.owner(f"Bearer {key}") for key in KEYS)
    assert first is not None
    assert first != second
    assert known.owner("Bearer x") is None
    assert compared == [64] * 6, "as many comparisons of as many characters for any key"


def test_keys_are_on_the_disk_as_salted_digests_only(locked: Serving) -> None:
    create(locked.sdk(KEYS[0]), rows(1, "kept"))
    for file in locked.service.folder.rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            assert not any(key.encode() in data for key in KEYS), file


@pytest.mark.parametrize("weak", [["short"], "sk-0123456789abcdef", ["sk-0123456789\nabcdef"]])
def test_weak_keys_are_refused_and_not_repeated(tmp_path: Path, weak: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        create_app(tmp_path, keys=weak)
    assert not any(str(key) in str(caught.value) for key in weak if len(key) > 1)


@pytest.mark.parametrize(
    ("host", "has_keys", "fine"),
    [
        ("127.0.0.1", False, True),
        ("::1", False, True),
        ("localhost", False, True),
        ("0.0.0.0", False, False),
        ("example.org", False, False),
        ("0.0.0.0", True, True),
    ],
)
def test_others_reach_only_a_server_with_keys(host: str, has_keys: bool, fine: bool) -> None:
    if fine:
        check_host(host, has_keys=has_keys)
    else:
        with pytest.raises(ConfigError, match="--api-key-env"):
            check_host(host, has_keys=has_keys)


def test_a_server_without_keys_answers_no_web_page_and_no_other_name(shared: Serving) -> None:
    with shared.http() as http:
        assert http.get("/v1/files", headers={"host": "evil.example"}).status_code == 403
        assert http.get("/v1/files", headers={"origin": "http://evil.example"}).status_code == 403
        own = http.get("/v1/files", headers={"origin": shared.url})
        assert own.status_code == 200


def test_what_another_key_made_is_unknown_on_every_route(locked: Serving) -> None:
    first, second = locked.sdk(KEYS[0]), locked.sdk(KEYS[1])
    file = upload(first, rows(2, "mine"))
    batch = ended(first, create(first, file.id).id)
    upload_ = first.uploads.create(bytes=4, filename="x", mime_type="x/y", purpose="batch")
    part = first.uploads.parts.create(upload_.id, data=b"abcd")
    own_upload = second.uploads.create(bytes=4, filename="x", mime_type="x/y", purpose="batch")
    objects = [file.id, batch.id, upload_.id, part.id, batch.output_file_id]
    unknown = {"file-": "file-" + "0" * 32, "batch_": "batch_" + "0" * 32, "upload_": "upload_" + "0" * 32}
    unknown["part_"] = "part_" + "0" * 32
    routes = [
        ("GET", "/v1/files/{}", None),
        ("GET", "/v1/files/{}/content", None),
        ("DELETE", "/v1/files/{}", None),
        ("GET", "/v1/files?after={}", None),
        ("GET", "/v1/batches/{}", None),
        ("POST", "/v1/batches/{}/cancel", None),
        ("GET", "/v1/batches?after={}", None),
        ("POST", "/v1/uploads/{}/complete", {"part_ids": []}),
        ("POST", "/v1/uploads/{}/cancel", None),
        ("POST", f"/v1/uploads/{own_upload.id}/complete", {"part_ids": ["{}"]}),
    ]
    with locked.http(KEYS[1]) as http:

        def told(method: str, path: str, body: Any, name: str) -> tuple[int, str]:
            asked = None if body is None else json.loads(json.dumps(body).replace("{}", name))
            reply = http.request(method, path.format(name), json=asked)
            return reply.status_code, reply.text.replace(name, "ID")

        for method, path, body in routes:
            for name in objects:
                nobody = unknown[_prefix(name)]
                assert told(method, path, body, name) == told(method, path, body, nobody), (method, path)
        for name in objects:
            form = {"data": ("x", b"x")}
            assert http.post(f"/v1/uploads/{name}/parts", files=form).status_code == 404
        assert http.get("/v1/files").json()["data"] == http.get("/v1/batches").json()["data"] == []
    tried = ended(second, create(second, file.id).id)
    assert errors_of(tried) == [("invalid_request", None, "file_id")]
    assert first.files.retrieve(file.id).id == file.id, "and nothing was deleted"


def _prefix(name: str) -> str:
    return name[: name.index("-" if "-" in name else "_") + 1]


# Names and ids


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "C:\\x",
        "a\x00b",
        "x" * 10_000,
        ".",
        "..",
        "a\r\nset-cookie: x",
        'a"\r\nset-cookie: x\r\nx: "',
        "",
        "\u202e.jsonl",
    ],
)
def test_a_file_name_is_never_a_path_and_never_a_header(shared: Serving, name: str) -> None:
    escaped = name.replace("\r", "%0D").replace("\n", "%0A")
    for sent in (name, escaped):
        raw = (
            b"--b0undary\r\ncontent-disposition: form-data; name=purpose\r\n\r\nbatch\r\n"
            b'--b0undary\r\ncontent-disposition: form-data; name="file"; filename="'
            + sent.encode()
            + b'"\r\n\r\ndata\r\n--b0undary--\r\n'
        )
        with shared.http() as http:
            kind = {"content-type": "multipart/form-data; boundary=b0undary"}
            reply = http.post("/v1/files", content=raw, headers=kind)
            assert reply.status_code in (200, 400), reply.text
            assert "set-cookie" not in reply.headers
            if reply.status_code == 200:
                file = reply.json()
                assert file["filename"].isprintable()
                assert 1 <= len(file["filename"]) <= 1024
                content = http.get(f"/v1/files/{file['id']}/content")
                assert content.content == b"data"
                assert "set-cookie" not in content.headers
                assert name not in (path.name for path in shared.service.folder.rglob("*"))
                assert http.delete(f"/v1/files/{file['id']}").status_code == 200
    assert drafts(shared) == []


@pytest.mark.parametrize(
    "name", ["..%2F..%2Fetc", "%2e%2e", "a/b", "x" * 10_000, "file-\u0430", "%00", "file-*", "server.db"]
)
def test_an_id_that_is_none_is_unknown(shared: Serving, name: str) -> None:
    quoted = name.encode() if name.isascii() else quote(name).encode()
    for path in (b"/v1/files/%s", b"/v1/files/%s/content", b"/v1/batches/%s"):  # as it is: clients tidy it up
        answer = shared.raw(b"GET " + path % quoted + b" HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 404"), path
        assert b'{"error":{"message":"' in answer


# Forms and bodies

PART = b"--b\r\ncontent-disposition: form-data; name="
FORM = {"content-type": "multipart/form-data; boundary=b"}


def form(*parts: tuple[str, bytes], end: bytes = b"--b--\r\n") -> bytes:
    return b"".join(PART + name.encode() + b"\r\n\r\n" + value + b"\r\n" for name, value in parts) + end


PURPOSE, FILE = ("purpose", b"batch"), ('file; filename="x"', b"data")


@pytest.mark.parametrize(
    ("path", "headers", "content"),
    [
        ("/v1/files", {"content-type": "application/json"}, b"{}"),
        ("/v1/files", {"content-type": "multipart/form-data"}, form(PURPOSE, FILE)),
        ("/v1/files", {"content-type": "multipart/form-data; boundary=other"}, form(PURPOSE, FILE)),
        ("/v1/files", {"content-type": "multipart/form-data; boundary=" + "b" * 5000}, form(PURPOSE, FILE)),
        ("/v1/files", FORM, form(PURPOSE, FILE, FILE)),
        ("/v1/files", FORM, form(PURPOSE)),
        ("/v1/files", FORM, form(FILE)),
        ("/v1/files", FORM, form(PURPOSE, PURPOSE, FILE)),
        ("/v1/files", FORM, form(PURPOSE, FILE, end=b"")),
        ("/v1/files", FORM, form(("purpose", b"party"), FILE)),
        ("/v1/files", FORM, form(PURPOSE, ("other", b"x"), FILE)),
        ("/v1/files", FORM, b"--b\r\nno header\r\n\r\nx\r\n--b--\r\n"),
        ("/v1/files", FORM, b""),
        ("/v1/files", FORM, form(*((f"a{n}", b"") for n in range(10_000)))),
        ("/v1/files", FORM, form(("purpose", b"x" * 100_000), FILE)),
        ("/v1/files", {**FORM, "content-encoding": "gzip"}, form(PURPOSE, FILE)),
        ("/v1/batches", FORM, form(PURPOSE, FILE)),
        ("/v1/batches", {"content-type": "application/json", "content-encoding": "gzip"}, b"{}"),
        ("/v1/batches", {"content-type": "application/json"}, b"{"),
        ("/v1/batches", {"content-type": "application/json"}, b"[]"),
        ("/v1/batches", {"content-type": "application/json"}, b"\xff\xfe"),
        ("/v1/batches", {"content-type": "application/json"}, b"[" * 100_000),
        ("/v1/batches", {"content-type": "application/json"}, b" " * 2_000_000),
        (CHAT, {"content-type": "application/json"}, b'{"model": 3, "messages": []}'),
        ("/v1/uploads", {"content-type": "application/json"}, b'{"bytes": "many"}'),
    ],
)
def test_a_body_that_is_wrong_is_a_4xx_in_json(
    shared: Serving, path: str, headers: dict[str, str], content: bytes
) -> None:
    worked = time.process_time()
    with shared.http() as http:
        reply = http.post(path, content=content, headers=headers)
    assert time.process_time() - worked < 1
    assert 400 <= reply.status_code < 500, reply.text
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
    assert drafts(shared) == []


def test_the_purpose_may_come_after_the_file(shared: Serving) -> None:
    with shared.http() as http:
        reply = http.post("/v1/files", content=form(FILE, PURPOSE), headers=FORM)
    assert (reply.status_code, reply.json()["bytes"]) == (200, 4)


def test_ten_thousand_headers_are_refused_soon(shared: Serving) -> None:
    worked = time.process_time()
    many = b"".join(b"x-%d: y\r\n" % n for n in range(10_000))
    answer = shared.raw(b"GET /v1/files HTTP/1.1\r\nhost: localhost\r\n" + many + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 400")
    assert b'"error"' in answer
    assert time.process_time() - worked < 1


@pytest.mark.parametrize(
    "head",
    [
        b"content-length: -5",
        b"content-length: 5\r\ncontent-length: 6",
        b"content-length: x",
        b"content-length: 3\r\ntransfer-encoding: chunked",
        b"transfer-encoding: gzip",
        b"bad header",
    ],
)
def test_a_head_that_contradicts_itself_is_refused_in_json(shared: Serving, head: bytes) -> None:
    answer = shared.raw(
        b"POST /v1/batches HTTP/1.1\r\nhost: localhost\r\n" + head + b"\r\n\r\nabcde", timeout=5
    )
    assert answer[9:12] in (b"400", b"501"), answer
    assert b'{"error":{' in answer


def test_a_body_longer_than_it_says_is_cut_there(shared: Serving) -> None:
    whole = form(PURPOSE, FILE)
    head = b"POST /v1/files HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary=b\r\n"
    answer = shared.raw(head + b"content-length: %d\r\n\r\n" % (len(whole) - 20) + whole)
    assert answer.startswith(b"HTTP/1.1 400"), answer
    assert drafts(shared) == []


def test_bytes_that_drip_hold_nothing_up_for_long(
    tmp_path: Path, fake_ollama_factory: Callable[..., FakeOllama], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEAD_S", 0.4)
    start = b"POST /v1/files HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary=b\r\n"
    body = start + b"content-length: 5000\r\n\r\n" + form(PURPOSE, FILE, end=b"")
    with serving(tmp_path / "data", fake_ollama_factory(), upload_s=0.4) as server:
        for begun, ends in ((b"GET /v1/files HTTP/1.1\r\nx: ", b""), (body, b"HTTP/1.1 408")):
            with socket.create_connection(("127.0.0.1", server.port), timeout=0.05) as sock:
                sock.sendall(begun)
                answer, until_ = None, time.monotonic() + 10
                while answer is None and time.monotonic() < until_:  # a byte now and then, each in time
                    try:
                        answer = sock.recv(12)
                    except TimeoutError:
                        sock.sendall(b"x")
                assert answer == ends
        assert drafts(server) == []
        assert server.http().get("/v1/files").json()["data"] == []


def test_a_body_that_stops_coming_ends_and_leaves_nothing(
    tmp_path: Path, fake_ollama_factory: Callable[..., FakeOllama]
) -> None:
    start = b"POST /v1/files HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary=b\r\n"
    half = start + b"content-length: 5000\r\n\r\n" + form(PURPOSE, FILE, end=b"")
    with serving(tmp_path / "data", fake_ollama_factory(), idle_s=0.3) as server:
        assert server.raw(half, timeout=8).startswith(b"HTTP/1.1 408")
        assert drafts(server) == []
    with serving(tmp_path / "other", fake_ollama_factory()) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as sock:  # and one who leaves half-way
            sock.sendall(half)
            until(lambda: drafts(server))
        until(lambda: not drafts(server))
        assert server.http().get("/v1/files?limit=1").status_code == 200


def test_a_file_one_byte_too_large_is_answered_not_reset(locked: Serving) -> None:
    client, size = locked.sdk(KEYS[0]), 200 * 2**20
    with pytest.raises(openai.APIStatusError) as caught:
        upload(client, bytes(size + 1))
    assert (caught.value.status_code, caught.value.code) == (413, "file_too_large")
    assert drafts(locked) == []
    file = upload(client, bytes(size))
    assert file.bytes == size
    client.files.delete(file.id)


def test_an_endless_upload_is_cut_soon_after_the_limit(shared: Serving) -> None:
    sent = 0
    size = 64 * 2**20

    def pieces() -> Iterator[bytes]:
        nonlocal sent
        yield form(PURPOSE, end=b"") + PART + b'file; filename="x"\r\n\r\n'
        piece = b"x" * 2**20
        while sent < 40 * size:
            sent += len(piece)
            yield piece

    with shared.http() as http, MemoryGrowth() as growth:
        try:
            status = http.post("/v1/files", content=pieces(), headers=FORM).status_code
        except httpx.TransportError:
            status = 413  # it was closed while we were sending
    assert status == 413
    assert sent <= 3 * size, "what comes after the answer is dropped for a while, then no more"
    assert growth.most < size
    assert drafts(shared) == []


# Paths and methods


def test_what_is_nowhere_is_404_and_what_is_not_allowed_405(shared: Serving) -> None:
    with shared.http() as http:
        for method, path, status in (
            ("GET", "/v1/nothing", 404),
            ("GET", "/v1", 404),
            ("PUT", "/v1/files", 405),
            ("PATCH", "/v1/batches/x", 405),
            ("OPTIONS", "/v1/batches", 405),
            ("GET", "/v1/batches/x/cancel", 405),
        ):
            reply = http.request(method, path)
            assert reply.status_code == status, path
            assert reply.json()["error"]["message"]
            assert ("allow" in reply.headers) == (status == 405)
        for path in ("/v1/files", "/v1/batches", "/health"):
            reply = http.head(path)
            assert (reply.status_code, reply.content) == (200, b"")
            assert reply.headers["x-request-id"]
        assert http.get("/v1/batches/").json() == http.get("/v1/batches").json()
        slash = http.post(
            "/v1/batches/", json={"input_file_id": "f", "endpoint": CHAT, "completion_window": "24h"}
        )
        assert slash.status_code == 200


def test_every_route_is_described(shared: Serving) -> None:
    with shared.http() as http:
        paths = http.get("/openapi.json").json()["paths"]
    told = {(path, method) for path, does in paths.items() for method in does if path.startswith("/v1")}
    real = {
        (route.path_format, method.lower())
        for route in app.ROUTES
        for method in route.methods or ()
        if route.path.startswith("/v1") and method != "HEAD"
    }
    assert told == real


def test_a_key_is_described_as_needed_where_it_is(shared: Serving, locked: Serving) -> None:
    with shared.http() as http:
        assert "security" not in http.get("/openapi.json").json()
    with locked.http(KEYS[0]) as http:
        told = http.get("/openapi.json").json()
        assert told["security"] == [{"key": []}]
        assert told["paths"]["/health"]["get"]["security"] == []
    with locked.http() as http:
        open_to_all = {path for path in ("/health", "/v1/models") if http.get(path).status_code == 200}
    assert open_to_all == {"/health"}


def test_the_page_runs_what_it_brings_along_and_nothing_else(locked: Serving) -> None:
    with locked.http() as http:
        page = http.get("/")
        policy = page.headers["content-security-policy"]
        assert page.status_code == 200
        assert http.get("/status").status_code == 401
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    nonce = re.search("script-src 'nonce-([^']+)'", policy)
    assert nonce is not None
    assert page.text.count(f'nonce="{nonce[1]}"') == 2, "one script, one style"
    assert not re.search(r"https?://|\bsrc=|@import|innerHTML", page.text), "nothing from elsewhere"
    with locked.http(KEYS[0]) as http:
        assert http.get("/").text != page.text, "a nonce is used once"
        assert http.get("/status").json() == {"engine": "up", "disk": "ok", "trouble": False, "loaded": []}


# Memory and logs


def test_a_very_long_line_is_refused_with_little_memory(
    tmp_path: Path, fake_ollama_factory: Callable[..., FakeOllama]
) -> None:
    with serving(tmp_path / "data", fake_ollama_factory()) as server:
        client = server.sdk()
        path = tmp_path / "long.jsonl"
        with path.open("wb") as file:
            file.write(line("good").encode() + b"\n")
            for _ in range(150):
                file.write(b"x" * 2**20)
        with MemoryGrowth() as growth, path.open("rb") as handle:
            file_id = client.files.create(file=handle, purpose="batch").id
            batch = ended(client, create(client, file_id).id)
        assert errors_of(batch) == [("line_too_long", 2, None)]
        assert growth.most < 64 * 2**20


def test_no_prompt_no_answer_and_no_key_is_in_a_log(
    tmp_path: Path, fake_ollama_factory: Callable[..., FakeOllama], caplog: pytest.LogCaptureFixture
) -> None:
    from ollama_batch.testing import FakeReply

    canary = "canary-of-a-prompt"
    fake = fake_ollama_factory(reply=lambda asked: FakeReply(text="canary-of-an-answer"))
    caplog.set_level(logging.DEBUG, logger="ollama_batch")
    caplog.set_level(logging.DEBUG, logger="uvicorn")
    with serving(tmp_path / "data", fake, keys=KEYS) as server:
        client = server.sdk(KEYS[0])
        good, wrong = line("a", text=canary), line("b", text=canary, n=2)
        batch = run(client, jsonl(good, wrong))
        assert ids(*results(client, batch)) == ["a", "b"]
        run(client, jsonl(good, "{" + canary))
        run(client, jsonl(good.replace(CHAT, canary)))
        with server.http(KEYS[0]) as http:
            http.get(f"/v1/files?after={canary}&api_key={KEYS[1]}")
            http.post("/v1/batches", content=canary.encode())
            http.post("/v1/files", content=form((canary, b"x")), headers=FORM)
            http.get("/v1/files", headers={"authorization": f"Bearer {canary}"})
            body = {"model": "toy:1b", "messages": [{"role": "user", "content": canary}]}
            assert http.post(CHAT, json=body).status_code == 200
            fake.stop()
            assert http.post(CHAT, json=body).status_code == 503
        server.raw(b"GET /" + canary.encode() + b" HTTP/9\r\n\r\n")
    said = caplog.text
    assert "ollama_batch.server" in said
    for secret in (canary, "canary-of-an-answer", *KEYS):
        assert secret not in said


def test_files_of_the_server_are_its_owners_alone(shared: Serving) -> None:
    create(shared.sdk(), rows(1, "private"))
    for path in (shared.service.folder, *shared.service.folder.rglob("*")):
        try:
            mode = path.stat().st_mode & 0o777
        except FileNotFoundError:
            continue  # a run has ended meanwhile
        assert mode in (0o700, 0o600), path
    assert os.access(shared.service.folder, os.R_OK)
