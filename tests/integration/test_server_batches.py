"""The server's batches through the SDK: every status, every file-level error, what its files hold."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest

from ollama_batch import EmbeddedEngine, OpenAIEngine
from ollama_batch._portal import portal
from ollama_batch.errors import DiskFullError
from ollama_batch.journal import RunJournal
from ollama_batch.testing import CostModel, FakeOllama, Fault
from ollama_batch.types import ResultRecord
from server_support import (
    BATCH_KEYS,
    CHAT,
    MODEL,
    OVER,
    STAMPS,
    Clock,
    MemoryGrowth,
    Serving,
    check_keys,
    complete,
    create,
    ended,
    errors_of,
    ids,
    jsonl,
    line,
    read,
    results,
    rows,
    run,
    serving,
    until,
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
    """One server for many tests that look at nothing but their own batch."""
    with FakeOllama() as fake, serving(tmp_path_factory.mktemp("server") / "data", fake) as served:
        yield served


# The happy path


def test_a_batch_completes_with_every_line_once(shared: Serving) -> None:
    client = shared.sdk()
    seen = []
    batch = create(client, rows(40, "happy"), metadata={"kind": "test"})
    while batch.status not in OVER:
        seen.append(batch)
        batch = client.batches.retrieve(batch.id)
    output, errors = results(client, batch)
    assert batch.status == "completed"
    assert ids(output) == [f"happy-{n}" for n in range(40)]
    assert errors == []
    assert batch.error_file_id is None
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (
        40,
        40,
        0,
    )
    assert (batch.metadata, batch.model) == ({"kind": "test"}, MODEL)
    assert batch.expires_at == batch.created_at + 86_400
    set_ = {name for name in STAMPS if getattr(batch, name) is not None}
    assert set_ == {"in_progress_at", "finalizing_at", "completed_at"}
    assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
    for earlier in seen:  # no time is ever rewritten
        for name in STAMPS:
            assert getattr(earlier, name) in (None, getattr(batch, name))
        assert earlier.request_counts.completed <= 40
        assert (earlier.request_counts.total == 0) == (earlier.status == "validating")
    answered = [each["response"] for each in output]
    assert all(each["status_code"] == 200 and each["request_id"] for each in answered)
    assert all(set(each) == {"id", "custom_id", "response", "error"} for each in output)
    usages = [each["body"]["usage"] for each in answered]
    assert batch.usage.input_tokens == sum(each["prompt_tokens"] for each in usages) > 0
    assert batch.usage.output_tokens == sum(each["completion_tokens"] for each in usages) > 0
    assert batch.usage.total_tokens == sum(each["total_tokens"] for each in usages)
    cached = [(each.get("prompt_tokens_details") or {}).get("cached_tokens") or 0 for each in usages]
    assert batch.usage.input_tokens_details.cached_tokens == sum(cached)
    assert batch.usage.output_tokens_details.reasoning_tokens == 0
    assert len({each["id"] for each in output}) == 40
    assert shared.fake.ledger.counts()["happy-0"] == 1


def test_every_reply_has_every_key_with_its_type(shared: Serving) -> None:
    client = shared.sdk()
    made = create(client, rows(3, "keys"))
    with shared.http() as http:
        told = [http.get(f"/v1/batches/{made.id}").json()]
        ended(client, made.id)
        told.append(http.get(f"/v1/batches/{made.id}").json())
        told += http.get("/v1/batches?limit=2").json()["data"]
        failed = create(client, b"\n")
        ended(client, failed.id)
        told.append(http.get(f"/v1/batches/{failed.id}").json())
    for each in told:
        check_keys(each, BATCH_KEYS)
        assert set(each["request_counts"]) == {"total", "completed", "failed"}
    assert set(told[-1]["errors"]["data"][0]) == {"code", "line", "message", "param"}


def test_batches_are_listed_newest_first_without_gap_or_repeat(server: Serving) -> None:
    client = server.sdk()
    first = create(client, "file-none")
    stored = server.service.store.batch(first.id, "")
    assert stored is not None
    made = [first.id, *(f"batch_{n}" for n in range(249))]
    for name in made[1:]:  # by the way of every batch, without waiting for as many requests
        server.service.store.add_batch(replace(stored, id=name, status="failed", failed_at=stored.created_at))
    seen = []
    for number, batch in enumerate(client.batches.list(limit=7)):
        seen.append(batch.id)
        if number % 50 == 3:
            create(client, "file-none")
    assert seen == made[::-1]
    with server.http() as http:
        for query in ("limit=0", "limit=-1", "limit=101", "limit=abc", "after=batch_none"):
            assert http.get(f"/v1/batches?{query}").status_code == 400, query


@pytest.mark.parametrize(
    ("metadata", "param"),
    [
        ({f"k{n}": "v" for n in range(16)}, None),
        ({f"k{n}": "v" for n in range(17)}, "metadata"),
        ({"k" * 64: "v"}, None),
        ({"k" * 65: "v"}, "metadata." + "k" * 64),
        ({"k": "v" * 512}, None),
        ({"k": "v" * 513}, "metadata.k"),
        ({"tags": ["a"]}, "metadata.tags"),
        ({"n": 1}, "metadata.n"),
        ([], "metadata"),
        (None, None),
    ],
)
def test_metadata_is_kept_or_refused_by_name(shared: Serving, metadata: Any, param: str | None) -> None:
    client = shared.sdk()
    if param is None:
        assert create(client, "file-none", metadata=metadata).metadata == metadata
        return
    with pytest.raises(openai.BadRequestError) as caught:
        create(client, "file-none", metadata=metadata)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"input_file_id": None}, "missing_required_parameter", "input_file_id"),
        ({"endpoint": None}, "missing_required_parameter", "endpoint"),
        ({"completion_window": None}, "missing_required_parameter", "completion_window"),
        ({"input_file_id": 3}, "invalid_type", "input_file_id"),
        ({"endpoint": "/v1/embeddings"}, "invalid_value", "endpoint"),
        ({"endpoint": "http://evil/v1/chat/completions"}, "invalid_value", "endpoint"),
        ({"completion_window": ""}, "invalid_value", "completion_window"),
        ({"completion_window": "48h"}, "invalid_value", "completion_window"),
        ({"base_url": "http://evil"}, "unknown_parameter", "base_url"),
        (
            {"output_expires_after": {"anchor": "now", "seconds": 3600}},
            "invalid_value",
            "output_expires_after.anchor",
        ),
        *(
            (
                {"output_expires_after": {"anchor": "created_at", "seconds": seconds}},
                "invalid_value",
                "output_expires_after.seconds",
            )
            for seconds in (3599, 2_592_001)
        ),
    ],
)
def test_a_create_that_is_wrong_names_the_field(shared: Serving, body: Any, code: str, param: str) -> None:
    right = {"input_file_id": "file-none", "endpoint": CHAT, "completion_window": "24h"}
    asked = {name: value for name, value in {**right, **body}.items() if value is not None}
    with shared.http() as http:
        reply = http.post("/v1/batches", json=asked)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("seconds", [3600, 2_592_000])
def test_results_expire_when_they_were_to(server: Serving, clock: Clock, seconds: int) -> None:
    client = server.sdk()
    batch = run(client, rows(1), output_expires_after={"anchor": "created_at", "seconds": seconds})
    file = client.files.retrieve(batch.output_file_id)
    assert file.expires_at == file.created_at + seconds
    assert file.purpose == "batch_output"
    clock.now += seconds - 1
    assert client.files.content(file.id).content
    clock.now += 1
    with pytest.raises(openai.NotFoundError):
        client.files.content(file.id)
    assert client.batches.retrieve(batch.id).output_file_id == file.id


# Errors of single lines


def test_one_bad_line_among_many_fails_alone(shared: Serving) -> None:
    client = shared.sdk()
    lines = [line(f"bad-{n}") for n in range(1000)]
    lines[7] = line("too long", text="word " * 400_000)
    batch = run(client, jsonl(*lines))
    output, errors = results(client, batch)
    assert (batch.status, len(output), ids(errors)) == ("completed", 999, ["too long"])
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (1000, 999, 1)
    assert set(errors[0]) == {"id", "custom_id", "response", "error"}
    assert errors[0]["error"] is None
    assert errors[0]["response"]["status_code"] == 400
    fault = errors[0]["response"]["body"]["error"]
    assert set(fault) == {"message", "type", "param", "code"}
    assert (fault["type"], fault["code"]) == ("invalid_request_error", "context_length_exceeded")


def test_a_batch_of_which_every_line_fails_is_completed(shared: Serving) -> None:
    client = shared.sdk()
    batch = run(client, jsonl(*(line(f"all-{n}", n=2) for n in range(60))))
    assert (batch.status, batch.output_file_id, batch.request_counts.failed) == ("completed", None, 60)
    errors = read(client, batch.error_file_id)
    for each in errors:
        fault = each["response"]["body"]["error"]
        assert (fault["param"], fault["code"]) == ("n", "unsupported_parameter")
        assert "input.jsonl" not in json.dumps(each)
    assert shared.fake.ledger.count("all-0") == 0


def test_a_field_that_the_model_cannot_honour_is_a_400_that_names_it(shared: Serving) -> None:
    client = shared.sdk()
    data = jsonl(line("thinks", reasoning_effort="low"))
    told = [read(client, run(client, data).error_file_id)[0] for _ in range(2)]
    for each in told:
        assert each["error"] is None
        assert each["response"]["status_code"] == 400
        assert each["response"]["request_id"]
        fault = each["response"]["body"]["error"]
        assert (fault["param"], fault["code"]) == ("reasoning_effort", "unsupported_parameter")
        assert "cannot think" in fault["message"]
    assert told[0]["id"] != told[1]["id"], "lines of two batches have two ids"


def test_an_answer_that_was_cut_is_an_answer(shared: Serving) -> None:
    client = shared.sdk()
    output, _ = results(client, run(client, jsonl(line("cut", max_tokens=2))))
    assert output[0]["response"]["body"]["choices"][0]["finish_reason"] == "length"


def test_custom_ids_of_any_kind_come_back_as_they_were(shared: Serving) -> None:
    client = shared.sdk()
    names = ["a\nb\r\tc", 'say "no"', "\U0001f600", "\u202eabc\u05d0", "../../x", "x" * 512, "\u2028", "\\"]
    batch = run(client, jsonl(*(line(name, text=f"odd-{n}") for n, name in enumerate(names))))
    assert ids(*results(client, batch)) == names


# Errors of the whole file


def bad(**fields: Any) -> str:
    whole = json.loads(line("x"))
    for name, value in fields.items():
        if value is None:
            del whole[name]
        else:
            whole[name] = value
    return json.dumps(whole)


def body(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "x"}], **fields}


GOOD = line("good")
FAULTS: list[tuple[str, bytes, tuple[str, int | None, str | None]]] = [
    ("empty", b"", ("empty_file", None, None)),
    ("blank", b"\n  \n\r\n", ("empty_file", None, None)),
    ("not json", jsonl(GOOD, "not json"), ("invalid_json_line", 2, None)),
    ("blank lines count", jsonl("\ufeff" + GOOD, "", "  ", "{"), ("invalid_json_line", 4, None)),
    ("crlf", jsonl(GOOD, "{").replace(b"\n", b"\r\n"), ("invalid_json_line", 2, None)),
    *(
        (f"no {name}", jsonl(GOOD, bad(**{name: None})), ("missing_required_parameter", 2, name))
        for name in ("custom_id", "method", "url", "body")
    ),
    *(
        (f"url {url}", jsonl(GOOD, bad(custom_id="u", url=url)), ("invalid_url", 2, "url"))
        for url in ("/v1/embeddings", f"{CHAT}/", f"/{CHAT}")
    ),
    (
        "no model",
        jsonl(bad(body={"messages": [{"role": "user", "content": "x"}]})),
        ("invalid_request", 1, "body.model"),
    ),
    ("no messages", jsonl(bad(body={"model": MODEL})), ("invalid_request", 1, "body.messages")),
    (
        "stream",
        jsonl(GOOD, bad(custom_id="s", body=body(stream=True))),
        ("streaming_unsupported", 2, "body.stream"),
    ),
    ("unknown model", jsonl(bad(body=body(model="none:1b"))), ("model_not_found", 1, "body.model")),
    (
        "two models",
        jsonl(GOOD, bad(custom_id="m", body=body(model="other:1b"))),
        ("mismatched_model", 2, "body.model"),
    ),
    ("twice", jsonl(GOOD, line("b"), GOOD), ("duplicate_custom_id", 3, "custom_id")),
    *(
        (f"line {value}", jsonl(GOOD, value), ("invalid_json_line", 2, None))
        for value in ("[]", "null", '"x"', "1")
    ),
    ("body no object", jsonl(bad(body=[])), ("invalid_type", 1, "body")),
    ("id a number", jsonl(bad(custom_id=3)), ("invalid_type", 1, "custom_id")),
    ("id too long", jsonl(bad(custom_id="x" * 513)), ("invalid_value", 1, "custom_id")),
    ("get", jsonl(bad(method="GET")), ("invalid_value", 1, "method")),
    ("engine of its own", jsonl(bad(base_url="http://evil")), ("unknown_parameter", 1, "base_url")),
    ("utf-8", GOOD.encode() + b"\n\xff\xfe\n", ("invalid_json_line", 2, None)),
    ("nul", jsonl(GOOD.replace("good", "go\\u0000d")), ("invalid_json_line", 1, None)),
    ("surrogate", jsonl(GOOD.replace("good", "go\\ud800d")), ("invalid_json_line", 1, None)),
    ("raw nul", jsonl(GOOD.replace("good", "go\0d")), ("invalid_json_line", 1, None)),
    *(
        (value, jsonl(GOOD[:-2] + f', "top_p": {value}}}}}'), ("invalid_json_line", 1, None))
        for value in ("NaN", "Infinity", "-Infinity")
    ),
    ("deep objects", jsonl(GOOD, '{"a":' * 100_000 + "1" + "}" * 100_000), ("invalid_json_line", 2, None)),
    ("deep", jsonl(GOOD, "[" * 100_000 + "]" * 100_000), ("invalid_json_line", 2, None)),
    ("large integer", jsonl(GOOD[:-2] + ', "seed": ' + "9" * 10_000 + "}}"), ("invalid_json_line", 1, None)),
    ("key twice", jsonl('{"custom_id": "a", ' + GOOD[1:]), ("invalid_json_line", 1, None)),
]


SAID = {
    "empty_file": "The input file is empty. Please ensure that the batch contains at least one request.",
    "invalid_json_line": "This line is not parseable as valid JSON.",
    "missing_required_parameter": "Missing required parameter: '",
    "invalid_url": "The URL provided for this request does not match the batch endpoint.",
    "model_not_found": "The provided model 'none:1b' is not supported by the Batch API. There is: 'toy:1b'.",
    "invalid_request": "M",  # "Model parameter is required." or "Messages parameter is required."
    "streaming_unsupported": "Chat Completions: Streaming is not supported in the Batch API.",
}
"""How OpenAI's own service begins to say it."""


@pytest.mark.parametrize(
    ("data", "told"), [fault[1:] for fault in FAULTS], ids=[fault[0] for fault in FAULTS]
)
def test_a_file_at_fault_fails_by_code_line_and_field(
    shared: Serving, data: bytes, told: tuple[str, int | None, str | None]
) -> None:
    before = shared.fake.ledger.count()
    began, worked = time.monotonic(), time.process_time()
    batch = run(shared.sdk(), data)
    assert time.process_time() - worked < 1, "and nobody else is waited for"
    assert time.monotonic() - began < 3
    assert errors_of(batch) == [told]
    assert batch.errors.data[0].message.startswith(SAID.get(told[0], "")), batch.errors.data[0].message
    assert (batch.output_file_id, batch.error_file_id, batch.in_progress_at) == (None, None, None)
    assert batch.request_counts.total == 0
    assert shared.fake.ledger.count() == before, "nothing is run"


def test_no_request_goes_to_an_address_in_a_line(shared: Serving) -> None:
    client = shared.sdk()
    with socket.create_server(("127.0.0.1", 0)) as evil:
        evil.settimeout(0)
        address = f"http://127.0.0.1:{evil.getsockname()[1]}"
        batch = run(client, jsonl(bad(url=f"{address}{CHAT}")))
        assert errors_of(batch) == [("invalid_url", 1, "url")]
        fields = (
            "base_url",
            "api_key",
            "extra_headers",
            "extra_body",
            "timeout",
            "num_ctx",
            "options",
            "nobody",
        )
        batch = run(client, jsonl(*(line(f"own-{name}", **{name: address}) for name in fields)))
        errors = read(client, batch.error_file_id)
        assert [each["response"]["body"]["error"]["param"] for each in errors] == list(fields)
        with pytest.raises(BlockingIOError):
            evil.accept()
    assert not any(shared.fake.ledger.count(f"own-{name}") for name in fields)


def test_stream_false_and_odd_line_ends_are_no_fault(shared: Serving) -> None:
    client = shared.sdk()
    data = b"\xef\xbb\xbf" + jsonl(line("s-1", stream=False), "", "   ", line("s-2")).replace(b"\n", b"\r\n")
    batch = run(client, data.rstrip())
    assert ids(*results(client, batch)) == ["s-1", "s-2"]


def test_an_input_that_is_not_there_fails_the_batch(shared: Serving) -> None:
    client = shared.sdk()
    batch = create(client, "file-none")
    assert batch.status == "validating"
    assert errors_of(ended(client, batch.id)) == [("invalid_request", None, "file_id")]


def test_several_faults_are_told_in_one_go_and_counted(shared: Serving) -> None:
    batch = run(shared.sdk(), jsonl(*("{" for _ in range(150))))
    told = errors_of(batch)
    assert [each[1] for each in told] == [*range(1, 101), None]
    assert "50 more lines" in batch.errors.data[-1].message


def test_a_file_of_another_purpose_is_no_input(shared: Serving) -> None:
    client = shared.sdk()
    file = client.files.create(file=("x", rows(1)), purpose="evals")
    with pytest.raises(openai.BadRequestError) as caught:
        create(client, file.id)
    assert caught.value.param == "input_file_id"


def test_duplicates_far_apart_and_too_many_lines_are_told(
    tmp_path: Path, fake_ollama_factory: Callable[..., FakeOllama]
) -> None:
    with serving(tmp_path / "data", fake_ollama_factory(), max_line_bytes=10_000) as server:
        client = server.sdk()
        many = jsonl(line("first"), *(line(f"l-{n}") for n in range(49_998)))
        far = upload(client, many + jsonl(line("first"))).id
        with MemoryGrowth() as growth:
            assert errors_of(run(client, far)) == [("duplicate_custom_id", 50_000, "custom_id")]
        assert growth.most < 64 * 2**20
        assert errors_of(run(client, many + rows(2))) == [("too_many_tasks", None, None)]
        long = jsonl(GOOD, line("long", text="x" * 20_000))
        assert errors_of(run(client, long)) == [("line_too_long", 2, None)]
        assert server.fake.ledger.count() == 0


def test_models_may_be_mixed_where_that_is_allowed(
    tmp_path: Path, fake_ollama_factory: Callable[..., FakeOllama]
) -> None:
    from ollama_batch.testing import FakeModel

    fake = fake_ollama_factory(models=(FakeModel("toy:1b"), FakeModel("other:1b")))
    with serving(tmp_path / "data", fake, mixed_models=True) as server:
        client = server.sdk()
        lines = [line(f"m-{n}", model=("toy:1b", "other:1b")[n % 2]) for n in range(10)]
        batch = run(client, jsonl(*lines))
        output, _ = results(client, batch)
        assert [each["response"]["body"]["model"] for each in output] == ["toy:1b", "other:1b"] * 5
        asked = fake.ledger.count()
        batch = run(client, jsonl(*lines, line("unknown", model="none:1b")))
        assert errors_of(batch) == [("model_not_found", 11, "body.model")]
        assert "There are: 'other:1b', 'toy:1b'." in batch.errors.data[0].message
        assert fake.ledger.count() == asked, "no other line is run either"


def nameless(custom_id: str) -> str:
    """A line that names no model."""
    whole = json.loads(line(custom_id))
    del whole["body"]["model"]
    return json.dumps(whole)


def test_a_line_without_a_model_is_answered_by_the_servers_own_or_told_what_to_do(
    tmp_path: Path, fake_ollama_factory: Callable[..., FakeOllama], shared: Serving
) -> None:
    from ollama_batch.testing import FakeModel

    batch = run(shared.sdk(), jsonl(nameless("nobody")))
    assert errors_of(batch) == [("invalid_request", 1, "body.model")]
    assert "or have the server started with --model M" in batch.errors.data[0].message
    fake = fake_ollama_factory(models=(FakeModel("toy:1b"), FakeModel("other:1b")))
    with serving(tmp_path / "data", fake, mixed_models=True, default_model="other:1b") as server:
        client = server.sdk()
        batch = run(client, jsonl(line("d-1"), nameless("d-2"), line("d-3", model="other:1b")))
        output, _ = results(client, batch)
        models = [each["response"]["body"]["model"] for each in output]
        assert models == ["toy:1b", "other:1b", "other:1b"]
        with server.http() as http:
            body = {"messages": [{"role": "user", "content": "hello"}]}
            assert http.post(CHAT, json=body).json()["model"] == "other:1b"


# Cancel, expiry, deletion

SLOW = CostModel(latency_s=0.05)


HELD = 200
"""So many that they are not done before they are held."""


def held(server: Serving) -> Any:
    """A batch of which a few lines are done and the rest waits."""
    client = server.sdk()
    batch = create(client, rows(HELD, "held"))
    until(lambda: client.batches.retrieve(batch.id).request_counts.completed >= 5)
    server.fake.hold()
    return client.batches.retrieve(batch.id)


def test_a_cancel_half_way_keeps_what_is_done(
    tmp_path: Path, fake_ollama_factory: Callable[..., FakeOllama]
) -> None:
    with serving(tmp_path / "data", fake_ollama_factory(speed=SLOW), cancel_grace_s=0.1) as server:
        client, batch = server.sdk(), held(server)
        first = client.batches.cancel(batch.id)
        assert (first.status, first.cancelling_at is None) == ("cancelling", False)
        assert client.batches.cancel(batch.id).cancelling_at == first.cancelling_at
        batch = ended(client, batch.id)
        output, errors = results(client, batch)
        assert batch.status == "cancelled"
        assert batch.cancelled_at >= batch.cancelling_at == first.cancelling_at
        assert sorted(ids(output, errors)) == sorted(f"held-{n}" for n in range(HELD))
        assert len(output) == batch.request_counts.completed >= 5
        assert {each["error"]["code"] for each in errors} == {"batch_cancelled"}
        assert (batch.request_counts.total, batch.request_counts.failed) == (HELD, 0)
        again = client.batches.cancel(batch.id)
        assert (again.status, again.cancelled_at) == ("cancelled", batch.cancelled_at)
        assert all(n == 1 for name, n in server.fake.ledger.counts().items() if name in ids(output))


def test_an_expired_batch_keeps_what_is_done(
    tmp_path: Path, fake_ollama_factory: Callable[..., FakeOllama], clock: Clock
) -> None:
    with serving(
        tmp_path / "data", fake_ollama_factory(speed=SLOW), clock=clock, cancel_grace_s=0.1
    ) as server:
        client, batch = server.sdk(max_retries=2), held(server)
        clock.now += 86_400
        server.wake()
        batch = ended(client, batch.id)
        output, errors = results(client, batch)
        assert (batch.status, batch.expired_at) == ("expired", int(clock.now))
        assert sorted(ids(output, errors)) == sorted(f"held-{n}" for n in range(HELD))
        assert len(errors) > 5
        assert {each["error"]["code"] for each in errors} == {"batch_expired"}
        assert (batch.request_counts.completed, batch.request_counts.failed) == (len(output), 0)
        with pytest.raises(openai.ConflictError) as caught:
            client.batches.cancel(batch.id)
        assert caught.value.response.request.headers["x-stainless-retry-count"] == "0"
        assert "Cannot cancel a batch with status 'expired'." in caught.value.message


def test_a_cancel_too_late_is_a_conflict_that_is_not_repeated(shared: Serving) -> None:
    client = shared.sdk(max_retries=2)
    for data, status in ((rows(1, "late"), "completed"), (b"\n", "failed")):
        batch = run(client, data)
        with pytest.raises(openai.ConflictError) as caught:
            client.batches.cancel(batch.id)
        assert caught.value.body == {
            "message": f"Cannot cancel a batch with status '{status}'.",
            "type": "invalid_request_error",
            "param": None,
            "code": None,
        }
        assert caught.value.response.headers["x-should-retry"] == "false"
        assert caught.value.response.request.headers["x-stainless-retry-count"] == "0"


def test_a_cancel_while_validating_or_waiting_for_the_engine_ends_the_batch(server: Serving) -> None:
    client = server.sdk()
    server.fake.stop()
    batch = create(client, rows(3))
    assert client.batches.retrieve(batch.id).status == "validating", (
        "the engine is not there to say its models"
    )
    assert client.batches.cancel(batch.id).status == "cancelling"
    batch = ended(client, batch.id)
    assert (batch.status, batch.request_counts.total) == ("cancelled", 0)


def test_a_cancel_while_the_files_are_written_is_answered(
    server: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ollama_batch.server import steps

    go, real = threading.Event(), steps.write_outcome

    def slow(*args: Any, **kwargs: Any) -> Any:
        assert go.wait(20)
        return real(*args, **kwargs)

    monkeypatch.setattr(steps, "write_outcome", slow)
    client = server.sdk()
    batch = create(client, rows(2))
    until(lambda: client.batches.retrieve(batch.id).status == "finalizing")
    assert client.batches.cancel(batch.id).status == "finalizing"
    go.set()
    assert ended(client, batch.id).status == "completed"


def test_fifty_cancels_at_once_are_one(
    tmp_path: Path, fake_ollama_factory: Callable[..., FakeOllama]
) -> None:
    with serving(tmp_path / "data", fake_ollama_factory(speed=SLOW), cancel_grace_s=0.1) as server:
        client, batch = server.sdk(), held(server)
        together = threading.Barrier(50)

        def cancel(_: int) -> Any:
            together.wait()
            return client.batches.cancel(batch.id)

        with ThreadPoolExecutor(50) as pool:
            told = list(pool.map(cancel, range(50)))
        batch = ended(client, batch.id)
        assert {each.cancelling_at for each in told} == {batch.cancelling_at}
        assert client.batches.cancel(batch.id).cancelled_at == batch.cancelled_at >= batch.cancelling_at
        output, errors = results(client, batch)
        assert sorted(ids(output, errors)) == sorted(f"held-{n}" for n in range(HELD))
        assert set(server.fake.ledger.counts().values()) == {1}, "no line is run twice"


@pytest.mark.parametrize("status", ["validating", "in_progress"])
def test_deleting_the_input_does_not_disturb_the_batch(server: Serving, status: str) -> None:
    client = server.sdk()
    if status == "validating":
        server.fake.stop()  # nobody says which models there are
    else:
        server.fake.hold()
    batch = create(client, rows(10))
    until(lambda: client.batches.retrieve(batch.id).status == status)
    client.files.delete(batch.input_file_id)
    if status == "validating":
        server.fake.restart()
    else:
        server.fake.release()
    batch = ended(client, batch.id)
    assert batch.request_counts.completed == 10
    until(lambda: not list((server.service.folder / "runs").iterdir()))  # and then nothing of it is left
    client.files.delete(batch.output_file_id)
    assert client.batches.retrieve(batch.id).output_file_id == batch.output_file_id
    with pytest.raises(openai.NotFoundError):
        client.files.content(batch.output_file_id)


# Trouble


def test_an_engine_that_is_gone_for_the_whole_window_fails_no_line(
    tmp_path: Path, fake_ollama_factory: Callable[..., FakeOllama], clock: Clock
) -> None:
    fake = fake_ollama_factory(speed=SLOW)
    with serving(tmp_path / "data", fake, clock=clock, cancel_grace_s=0.1) as server:
        client = server.sdk()
        batch = create(client, rows(HELD))
        until(lambda: client.batches.retrieve(batch.id).request_counts.completed >= 2)
        fake.stop()
        clock.now += 86_399
        server.wake()
        assert client.batches.retrieve(batch.id).status == "in_progress"
        clock.now += 1
        server.wake()
        batch = ended(client, batch.id)
        assert (batch.status, batch.request_counts.failed) == ("expired", 0)
        output, errors = results(client, batch)
        assert len(output) + len(errors) == HELD
        assert {each["error"]["code"] for each in errors} == {"batch_expired"}
        fake.restart()
        assert run(client, rows(3, "after")).request_counts.completed == 3


def test_an_engine_that_is_not_there_at_the_start_is_told_of(
    tmp_path: Path, fake_ollama_factory: Callable[..., FakeOllama], caplog: pytest.LogCaptureFixture
) -> None:
    fake = fake_ollama_factory()
    fake.stop()
    with serving(tmp_path / "data", fake):
        until(lambda: f"the engine at {fake.url} does not answer: batches wait for it" in caplog.text)


def test_an_engine_that_is_down_makes_the_batch_wait(server: Serving) -> None:
    client = server.sdk()
    server.fake.stop()
    batch = create(client, rows(5))
    until(lambda: server.service.scheduler.trouble is not None)
    server.fake.restart()
    batch = ended(client, batch.id)
    assert (batch.status, batch.request_counts.completed) == ("completed", 5)


def test_a_disk_that_is_full_refuses_uploads_and_makes_batches_wait(
    server: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from ollama_batch.server.vault import Draft

    client = server.sdk()
    file = upload(client, rows(5))
    real, full = Draft.write, True

    def write(self: Draft, data: bytes) -> None:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, data)

    monkeypatch.setattr(Draft, "write", write)
    with pytest.raises(openai.InternalServerError) as caught:
        upload(client, rows(1))
    assert (caught.value.status_code, caught.value.code) == (507, "disk_full")
    batch = create(client, file.id)
    until(lambda: server.service.scheduler.trouble is not None)
    assert client.batches.retrieve(batch.id).status == "finalizing"
    assert list((server.service.folder / "tmp").iterdir()) == []
    full = False
    batch = ended(client, batch.id)
    assert ids(*results(client, batch)) == [f"row-{n}" for n in range(5)]


def test_a_disk_that_is_full_while_lines_are_run_makes_the_batch_wait_and_go_on(
    tmp_path: Path,
    fake_ollama_factory: Callable[..., FakeOllama],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    room, refused, commit = threading.Event(), threading.Event(), RunJournal.commit
    left = iter(range(5))

    async def maybe(journal: RunJournal, record: ResultRecord) -> None:
        if not room.is_set() and next(left, None) is None:
            refused.set()
            raise DiskFullError("the journal cannot grow", str(journal.path))
        await commit(journal, record)

    monkeypatch.setattr(RunJournal, "commit", maybe)
    with serving(tmp_path / "data", fake_ollama_factory(speed=SLOW)) as server:
        client = server.sdk()
        batch = create(client, rows(30))
        assert refused.wait(20)
        until(server.service.scheduler.waits)
        until(lambda: client.batches.retrieve(batch.id).request_counts.completed == 5)
        waiting = client.batches.retrieve(batch.id)
        assert (waiting.status, waiting.output_file_id) == ("in_progress", None)
        room.set()
        batch = ended(client, batch.id)
        output, errors = results(client, batch)
        assert (ids(output), errors) == ([f"row-{n}" for n in range(30)], [])
    assert f"{batch.id} waits: disk" in caplog.text
    assert f"{batch.id} goes on after " in caplog.text
    assert not server.service.scheduler.waits()


def test_a_journal_that_is_gone_fails_the_batch_and_loses_nothing_in_silence(
    server: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ollama_batch.server.steps import Steps

    client, real = server.sdk(), Steps.ran

    async def ran(self: Steps, batch: Any, tally: Any) -> None:
        server.service.vault.journal(batch.id).unlink()
        await real(self, batch, tally)

    monkeypatch.setattr(Steps, "ran", ran)
    assert errors_of(run(client, rows(3))) == [("internal_error", None, None)]


def test_a_fault_of_the_loop_itself_does_not_end_it(
    server: Serving, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client, scheduler = server.sdk(), server.service.scheduler
    real, left = scheduler._start, [2]

    async def start(*args: Any) -> None:
        if left[0]:
            left[0] -= 1
            raise KeyError("what a line says")
        await real(*args)

    monkeypatch.setattr(scheduler, "_start", start)
    assert run(client, rows(2)).status == "completed"
    assert "KeyError at " in caplog.text
    assert "what a line says" not in caplog.text


def test_a_model_that_is_exchanged_under_a_batch_has_all_its_lines(
    tmp_path: Path, fake_ollama_factory: Callable[..., FakeOllama]
) -> None:
    swap = 20
    fake = fake_ollama_factory(
        speed=CostModel(load_s=0.3, latency_s=0.005), faults=[Fault("model_swapped", when=swap)]
    )
    with serving(tmp_path / "data", fake) as served:
        client = served.sdk()
        batch = ended(client, create(client, rows(60, "swap")).id)
        output, errors = results(client, batch)
    assert (batch.status, errors) == ("completed", [])
    assert ids(output) == [f"swap-{n}" for n in range(60)]
    asked = [record.key for record in fake.ledger.completions()]
    assert set(asked[swap:]) >= {f"swap-{n}" for n in range(60)}


# Engines


def test_any_openai_server_may_be_behind_it(
    tmp_path: Path, fake_ollama_factory: Callable[..., FakeOllama]
) -> None:
    fake = fake_ollama_factory()
    engine = OpenAIEngine(fake.url)
    with serving(tmp_path / "data", fake, engine=engine) as server:
        client = server.sdk()
        assert [model.id for model in client.models.list()] == [MODEL]
        batch = run(client, jsonl(line("o-1"), line("o-2", num_ctx=100), line("o-3", n=2)))
        output, errors = results(client, batch)
        assert (ids(output), ids(errors)) == (["o-1"], ["o-2", "o-3"])
        fault = errors[1]["response"]["body"]["error"]
        assert (errors[1]["response"]["status_code"], fault["param"]) == (400, "n")
        assert "gave 1 of the 2 answers" in fault["message"], "the fake ignores n, as Ollama does there"
        assert errors_of(run(client, jsonl(line("o-3", model="none:1b")))) == [
            ("model_not_found", 1, "body.model")
        ]
    portal().call(engine.aclose())


def test_an_engine_of_its_own_may_be_behind_it(
    tmp_path: Path, fake_ollama_factory: Callable[..., FakeOllama]
) -> None:
    engine = EmbeddedEngine.toy(alias="toy")
    with serving(tmp_path / "data", fake_ollama_factory(), engine=engine) as server:
        client = server.sdk()
        assert [model.id for model in client.models.list()] == ["toy"]
        batch = run(client, jsonl(*(line(f"e-{n}", model="toy", max_tokens=8) for n in range(6))))
        assert ids(*results(client, batch)) == [f"e-{n}" for n in range(6)]
        assert batch.usage.output_tokens > 0
    portal().call(engine.aclose())


# Repetitions


def test_a_create_whose_reply_was_lost_is_made_once(shared: Serving) -> None:
    client = shared.sdk()
    asked: list[bytes] = []
    file_id = upload(client, rows(1, "lost")).id
    with socket.create_server(("127.0.0.1", 0)) as between:

        def lose_the_first_reply() -> None:
            for number in range(2):
                near, _ = between.accept()
                with near:
                    request = b""
                    while not complete(request):
                        request += near.recv(65536)
                    asked.append(request)
                    reply = shared.raw(request)
                    if number:
                        near.sendall(reply)

        losing = threading.Thread(target=lose_the_first_reply)
        losing.start()
        url = f"http://127.0.0.1:{between.getsockname()[1]}/v1"
        with openai.OpenAI(base_url=url, api_key="none", max_retries=2) as through:
            made = create(through, file_id)
        losing.join()
    found = [batch.id for batch in client.batches.list() if batch.input_file_id == file_id]
    assert [b"x-stainless-retry-count: 1" in each.lower() for each in asked] == [False, True]
    assert found == [made.id]


def test_an_idempotency_key_and_a_deleted_place_are_known_for_a_day(server: Serving, clock: Clock) -> None:
    client, headers = server.sdk(), {"Idempotency-Key": "k"}
    first = create(client, "file-none", extra_headers=headers)
    file = upload(client, rows(1))
    client.files.delete(file.id)
    for passed, known in ((86_400, True), (86_402, False)):
        clock.now = first.created_at + passed
        server.service.scheduler._steps.sweep(clock.now)
        again = create(client, "file-none", extra_headers=headers)
        assert (again.id == first.id) == known
        with server.http() as http:
            assert http.get(f"/v1/files?after={file.id}").status_code == (200 if known else 400)


def test_an_idempotency_key_names_one_batch(shared: Serving) -> None:
    client = shared.sdk()
    file, other = (upload(client, rows(1, name)).id for name in ("idem", "other"))
    headers = {"Idempotency-Key": "k-1"}
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: create(client, file, extra_headers=headers).id, range(8)))
    assert len(set(made)) == 1
    with pytest.raises(openai.ConflictError):
        create(client, other, extra_headers=headers)
    assert create(client, file).id not in made


# Sharing


def test_a_few_lines_of_one_key_do_not_wait_for_many_of_another(
    tmp_path: Path, fake_ollama_factory: Callable[..., FakeOllama]
) -> None:
    from server_support import KEYS

    fake = fake_ollama_factory(speed=CostModel(latency_s=0.02))
    with serving(tmp_path / "data", fake, keys=KEYS) as server:
        first, second = (server.sdk(key) for key in KEYS)
        many = create(first, rows(1500, "many"))
        until(lambda: first.batches.retrieve(many.id).request_counts.completed > 20)
        few = run(second, rows(10, "few"))
        assert few.request_counts.completed == 10
        assert first.batches.retrieve(many.id).status == "in_progress"
        behind = create(first, rows(1, "behind"))
        assert first.batches.retrieve(behind.id).status in ("validating", "in_progress")
        assert fake.ledger.count("behind-0") == 0, "of one key the oldest comes first"
        first.batches.cancel(many.id)
        assert ended(first, behind.id).status == "completed"


def test_another_model_gets_its_turn_and_the_first_goes_on(
    tmp_path: Path, fake_ollama_factory: Callable[..., FakeOllama]
) -> None:
    from ollama_batch.testing import FakeModel
    from server_support import KEYS

    fake = fake_ollama_factory(models=(FakeModel("toy:1b"), FakeModel("other:1b")), speed=SLOW)
    with serving(tmp_path / "data", fake, keys=KEYS, turn_s=0.2) as server:
        first, second = (server.sdk(key) for key in KEYS)
        many = create(first, rows(120, "many"))
        until(lambda: first.batches.retrieve(many.id).request_counts.completed >= 3)
        few = run(second, jsonl(*(line(f"few-{n}", model="other:1b") for n in range(4))))
        assert few.request_counts.completed == 4
        assert first.batches.retrieve(many.id).status == "in_progress"
        assert ids(*results(first, ended(first, many.id))) == [f"many-{n}" for n in range(120)]
    assert all(n == 1 for n in fake.ledger.counts().values()), "a turn that ends lets requests finish"


def test_quotas_of_a_key_are_kept(tmp_path: Path, fake_ollama_factory: Callable[..., FakeOllama]) -> None:
    limits = {"max_files_per_key": 2, "max_open_batches_per_key": 1}
    with serving(tmp_path / "data", fake_ollama_factory(), **limits) as server:
        client = server.sdk(max_retries=2)
        server.fake.hold()
        file = upload(client, rows(1))
        batch = create(client, file.id)
        with pytest.raises(openai.RateLimitError) as caught:
            create(client, file.id)
        assert caught.value.code == "insufficient_quota"
        upload(client, rows(1))
        with pytest.raises(openai.RateLimitError):
            upload(client, rows(1))
        server.fake.release()
        assert ended(client, batch.id).output_file_id is not None, "results are kept all the same"
