from __future__ import annotations

from pathlib import Path

import pytest

from ollama_batch.testing.ledger import FileLedger, Ledger


def fill(ledger: Ledger) -> None:
    first = ledger.arrived(
        at=1.0, route="/api/chat", kind="completion", key="a", sent={"think": False}, in_flight=1
    )
    second = ledger.arrived(at=2.0, route="/api/chat", kind="completion", key="b", in_flight=2)
    ledger.arrived(at=3.0, route="/api/chat", kind="completion", key="a", in_flight=3)
    asked = ledger.arrived(at=4.0, route="/api/ps", kind="other")
    ledger.loaded({"model": "toy:1b", "num_ctx": 4096})
    ledger.finished(second, "fault:busy", 503)
    ledger.finished(first, "answered", 200)
    ledger.finished(asked, "answered", 200)


@pytest.fixture(params=["memory", "file", "file read by another"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Ledger:
    if request.param == "memory":
        ledger = Ledger()
        fill(ledger)
        return ledger
    writer = FileLedger(tmp_path / "ledger.jsonl")
    fill(writer)
    writer.close()
    return writer if request.param == "file" else FileLedger(tmp_path / "ledger.jsonl", readonly=True)


def test_completions_are_counted_by_key_and_by_outcome(ledger: Ledger) -> None:
    assert ledger.count() == 3
    assert ledger.counts() == {"a": 2, "b": 1}
    assert (ledger.count("a"), ledger.answered("a")) == (2, 1)
    assert (ledger.count("b"), ledger.answered("b")) == (1, 0)
    assert ledger.keys() == {"a", "b"}
    assert ledger.answered() == 1
    assert ledger.max_in_flight == 3
    assert ledger.loads == 1
    assert ledger.load_settings() == [{"model": "toy:1b", "num_ctx": 4096}]


def test_every_request_is_kept_with_its_fate(ledger: Ledger) -> None:
    fates = sorted((record.seq, record.route, record.outcome, record.status) for record in ledger.records())
    assert fates == [
        (1, "/api/chat", "answered", 200),
        (2, "/api/chat", "fault:busy", 503),
        (3, "/api/chat", "open", None),
        (4, "/api/ps", "answered", 200),
    ]
    first = min(ledger.completions(), key=lambda record: record.seq)
    assert (first.at, first.sent) == (1.0, {"think": False})


def test_a_ledger_file_is_continued_and_a_torn_last_line_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with_one = FileLedger(path)
    fill(with_one)
    with_one.close()
    again = FileLedger(path)
    assert again.arrived(at=5.0, route="/api/chat", kind="completion", key="c").seq == 5
    again.close()
    with path.open("ab") as file:
        file.write(b'{"seq": 6, "at"')
    assert FileLedger(path, readonly=True).count() == 4


def test_equal_settings_are_held_once_in_memory() -> None:
    ledger = Ledger()
    for _ in range(2):
        ledger.arrived(at=0.0, route="/api/chat", kind="completion", sent={"options": {"num_ctx": 1}})
    one, two = ledger.completions()
    assert one.sent is two.sent
