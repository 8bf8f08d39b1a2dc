"""The server's files: uploaded by every way of the SDK, listed, served byte for byte, deleted."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest

from ollama_batch.testing import FakeOllama
from server_support import (
    FILE_KEYS,
    Clock,
    MemoryGrowth,
    Serving,
    check_keys,
    create,
    ended,
    read,
    rows,
    serving,
    upload,
)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server(tmp_path: Path, fake_ollama_factory: Callable[..., FakeOllama], clock: Clock) -> Iterator[Serving]:
    with serving(tmp_path / "data", fake_ollama_factory(), clock=clock) as served:
        yield served


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """One server for many tests that look at nothing but their own files."""
    with FakeOllama() as fake, serving(tmp_path_factory.mktemp("server") / "data", fake) as served:
        yield served


def test_the_sdk_uploads_by_path_handle_bytes_and_tuple(shared: Serving, tmp_path: Path) -> None:
    client, data = shared.sdk(), rows(3)
    path = tmp_path / "in.jsonl"
    path.write_bytes(data)
    with path.open("rb") as handle:
        for given in (path, handle, data, io.BytesIO(data), ("in.jsonl", data)):
            file = client.files.create(file=given, purpose="batch")
            assert (file.bytes, file.purpose, file.status) == (len(data), "batch", "processed")
            assert client.files.content(file.id).content == data
    # Nobody can wait for so long: it does not wait at all.
    assert client.files.wait_for_processing(file.id, poll_interval=float("inf")).id == file.id


def test_every_reply_has_every_key_with_its_type(server: Serving) -> None:
    with server.http() as http:
        made = http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("a.jsonl", rows(1))}).json()
        told = [made, http.get(f"/v1/files/{made['id']}").json(), *http.get("/v1/files").json()["data"]]
        assert len(told) == 3
        for each in told:
            check_keys(each, FILE_KEYS)
        page = http.get("/v1/files").json()
        assert set(page) == {"object", "data", "first_id", "last_id", "has_more"}


BINARY = b"\x00\xff\r\n--"


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbf" + rows(2),
        rows(2).replace(b"\n", b"\r\n"),
        rows(2).rstrip(b"\n"),
        b"",
        BINARY,
    ],
    ids=["bom", "crlf", "no end", "empty", "binary"],
)
def test_content_comes_back_byte_for_byte(shared: Serving, data: bytes) -> None:
    client = shared.sdk()
    file = client.files.create(file=("in.jsonl", data), purpose="batch")
    content = client.files.content(file.id)
    assert content.content == data
    if data != BINARY:
        assert content.text == data.decode()
    assert content.response.headers["content-length"] == str(len(data)) == str(file.bytes)
    with client.files.with_streaming_response.content(file.id) as stream:
        pieces = hashlib.sha256()
        for piece in stream.iter_bytes(7):
            pieces.update(piece)
    assert pieces.digest() == hashlib.sha256(data).digest()


def test_pages_have_no_gap_and_no_repeat_while_files_are_made_and_deleted(server: Serving) -> None:
    client = server.sdk()
    first = upload(client, b"{}\n")
    stored = server.service.store.file(first.id, "", first.created_at)
    assert stored is not None
    made = [first.id, *(f"file-{n}" for n in range(249))]
    for name in made[1:]:  # by the way of every file, without waiting for as many requests
        server.service.store.add_file(replace(stored, id=name))
    seen = []
    for number, file in enumerate(client.files.list(limit=7)):
        seen.append(file.id)
        if number % 50 == 0:
            upload(client, b"{}\n")
        if number % 13 == 0:
            client.files.delete(file.id)  # the place that the next page begins at may be gone
    assert seen == made[::-1]


def test_order_and_purpose_are_kept_where_times_are_equal(server: Serving) -> None:
    client = server.sdk()
    made = [
        client.files.create(file=(f"{n}", b"x"), purpose=p).id for n in range(4) for p in ("batch", "evals")
    ]
    assert [file.id for file in client.files.list(order="asc")] == made
    assert [file.id for file in client.files.list(order="desc", limit=3)] == made[::-1]
    assert [file.id for file in client.files.list(purpose="evals", order="asc")] == made[1::2]


def test_a_listing_names_the_parameter_that_is_wrong(shared: Serving) -> None:
    wrong = [("limit", value) for value in ("0", "-1", "10001", "abc", "9" * 22)]
    with shared.http() as http:
        for param, value in (*wrong, ("after", "file-none"), ("order", "up")):
            reply = http.get(f"/v1/files?{param}={value}")
            assert reply.status_code == 400, (param, value)
            assert reply.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("seconds", "right"), [(3600, True), (2_592_000, True), (3599, False), (2_592_001, False)]
)
def test_files_expire_when_they_were_to(server: Serving, clock: Clock, seconds: int, right: bool) -> None:
    client = server.sdk()
    expiry: Any = {"anchor": "created_at", "seconds": seconds}
    if not right:
        with pytest.raises(openai.BadRequestError) as caught:
            upload(client, rows(1), expires_after=expiry)
        assert caught.value.param == "expires_after.seconds"
        return
    file = upload(client, rows(1), expires_after=expiry)
    assert file.expires_at == file.created_at + seconds
    clock.now += seconds - 1
    assert client.files.retrieve(file.id).id == file.id
    clock.now += 1
    with pytest.raises(openai.NotFoundError):
        client.files.content(file.id)
    server.service.scheduler._steps.sweep(clock.now)
    assert not server.service.vault.path(file.id).exists()


def test_what_is_deleted_is_gone(shared: Serving) -> None:
    client = shared.sdk()
    file = upload(client, rows(1))
    path = shared.service.vault.path(file.id)
    assert path.stat().st_mode & 0o777 == 0o600
    assert client.files.delete(file.id).deleted
    assert not path.exists()
    for ask in (client.files.delete, client.files.retrieve, client.files.content):
        with pytest.raises(openai.NotFoundError):
            ask(file.id)


def test_a_reply_has_an_id_of_its_own(shared: Serving) -> None:
    client = shared.sdk()
    replies = [client.files.with_raw_response.list() for _ in range(3)]
    named = {reply.headers["x-request-id"] for reply in replies}
    assert len(named) == 3
    with pytest.raises(openai.NotFoundError) as caught:
        client.files.retrieve("file-none")
    assert caught.value.request_id is not None
    assert caught.value.request_id.startswith("req_")


# Files in parts


def test_a_file_comes_in_parts_and_is_used_as_any_other(shared: Serving, tmp_path: Path) -> None:
    client, data = shared.sdk(), rows(500)
    path = tmp_path / "big.jsonl"
    path.write_bytes(data)
    upload_ = client.uploads.upload_file_chunked(
        file=path,
        mime_type="application/jsonl",
        purpose="batch",
        part_size=len(data) // 3 + 1,
        md5=hashlib.md5(data).hexdigest(),
    )
    assert upload_.status == "completed"
    assert upload_.file is not None
    assert client.files.content(upload_.file.id).content == data
    batch = ended(client, create(client, upload_.file.id).id)
    assert len(read(client, batch.output_file_id)) == 500
    assert list((shared.service.folder / "parts").iterdir()) == []


def test_parts_are_joined_in_the_order_that_is_asked_for(shared: Serving) -> None:
    client = shared.sdk()
    size = 64 * 2**20
    pieces = [letter * size for letter in (b"a", b"b")]
    pieces.append(b"c" * (200_000_000 - 2 * size))
    made = client.uploads.create(bytes=200_000_000, filename="x", mime_type="text/plain", purpose="batch")
    parts = [client.uploads.parts.create(made.id, data=piece).id for piece in pieces]
    with MemoryGrowth() as growth:
        done = client.uploads.complete(made.id, part_ids=parts[::-1])
    assert growth.most < 64 * 2**20
    assert done.file is not None
    digest = hashlib.sha256()
    with client.files.with_streaming_response.content(done.file.id) as stream:
        for piece in stream.iter_bytes(2**20):
            digest.update(piece)
    assert digest.digest() == hashlib.sha256(b"".join(pieces[::-1])).digest()
    client.files.delete(done.file.id)


def test_an_upload_that_does_not_add_up_is_refused(server: Serving, clock: Clock) -> None:
    client = server.sdk()
    made = client.uploads.create(bytes=5, filename="x", mime_type="text/plain", purpose="batch")
    part = client.uploads.parts.create(made.id, data=b"abcd").id
    other = client.uploads.create(bytes=4, filename="x", mime_type="text/plain", purpose="batch")
    right = client.uploads.parts.create(other.id, data=b"abcd").id
    for upload_id, asked in (
        (made.id, {"part_ids": [part]}),
        (made.id, {"part_ids": [part, "part_none"]}),
        (made.id, {"part_ids": [part, right]}),
        (made.id, {"part_ids": [part, part]}),
        (other.id, {"part_ids": [right], "md5": "0" * 32}),
        (other.id, {"part_ids": [right], "md5": "no"}),
    ):
        with pytest.raises(openai.BadRequestError):
            client.uploads.complete(upload_id, **asked)  # type: ignore[arg-type]  # tuples of different kinds
    client.uploads.complete(other.id, part_ids=[right])
    with pytest.raises(openai.BadRequestError):
        client.uploads.parts.create(other.id, data=b"late")
    assert client.uploads.cancel(made.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError):
        client.uploads.complete(made.id, part_ids=[part])
    late = client.uploads.create(bytes=1, filename="x", mime_type="text/plain", purpose="batch")
    clock.now += 3601
    with pytest.raises(openai.BadRequestError, match="expired"):
        client.uploads.parts.create(late.id, data=b"x")


def test_an_upload_larger_than_a_file_may_be_is_refused_at_once(shared: Serving) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        shared.sdk().uploads.create(bytes=201 * 2**20, filename="x", mime_type="x/y", purpose="batch")
    assert caught.value.status_code == 413


# The engine itself


def test_models_and_chat_are_passed_through(server: Serving) -> None:
    client = server.sdk()
    assert [model.id for model in client.models.list()] == ["toy:1b"]
    assert client.models.retrieve("toy:1b").id == "toy:1b"
    messages: Any = [{"role": "user", "content": "hello"}]
    answer = client.chat.completions.create(model="toy:1b", messages=messages)
    text = answer.choices[0].message.content
    assert answer.usage is not None
    assert text
    pieces = list(client.chat.completions.create(model="toy:1b", messages=messages, stream=True))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == text
    assert pieces[-1].choices[0].finish_reason == "stop"
    for ask in (
        lambda: client.chat.completions.create(model="none:1b", messages=messages),
        lambda: client.models.retrieve("hf.co/none/none:1b"),
    ):
        with pytest.raises(
            openai.NotFoundError, match=r"does not have this model\. There is: 'toy:1b'\."
        ) as gone:
            ask()
        assert (gone.value.code, gone.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="toy:1b", messages=messages, n=2)
    assert caught.value.param == "n"
    server.fake.stop()
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(model="toy:1b", messages=messages)
    assert server.http().get("/v1/models").status_code == 503


def test_health_and_metrics_tell_of_engine_and_batches(server: Serving) -> None:
    client = server.sdk()
    ended(client, create(client, rows(2)).id)
    with server.http() as http:
        assert http.get("/health").json() == {"status": "ok", "engine": "up", "disk": "ok"}
        page = http.get("/metrics").text
    assert 'ollama_batch_server_batches{status="completed"} 1' in page.splitlines()
    assert "ollama_batch_server_engine_up 1" in page.splitlines()
    assert json.dumps(client.files.list().data[0].id)[1:-1] not in page
