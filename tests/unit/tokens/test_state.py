"""What is learned survives the process, and a broken file hurts nobody."""

from __future__ import annotations

import json
import logging
import os
import random
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_batch.tokens import CalibratedCounter, EstimateCounter, user_state_dir
from tokens_support import WordCounter, prompt


def taught(folder: Path | None, digest: str = "sha256:aa", rows: int = 60) -> CalibratedCounter:
    counter = CalibratedCounter(WordCounter(), model_digest=digest, state_dir=folder)
    rng = random.Random(1)
    for _ in range(rows):
        words = rng.randint(50, 900)
        counter.observe(prompt(words, 2), round(1.7 * words * rng.uniform(0.99, 1.01)) + 13)
    return counter


def again(folder: Path, digest: str = "sha256:aa", **options: Any) -> CalibratedCounter:
    return CalibratedCounter(WordCounter(), model_digest=digest, state_dir=folder, **options)


def test_the_next_counter_knows_what_the_last_one_learned(tmp_path: Path) -> None:
    first = taught(tmp_path / "state")
    first.overflowed(prompt(50))
    assert first.save()
    second = again(tmp_path / "state")
    assert second.observed() == 60
    for words in (10, 400, 900):
        assert second.estimate(prompt(words, 2)) == first.estimate(prompt(words, 2))
        assert second.upper_bound(prompt(words, 2)).tokens == pytest.approx(
            first.upper_bound(prompt(words, 2)).tokens, rel=0.01
        )
    assert second.source == "calibrated"


@pytest.mark.parametrize("change", [{"digest": "sha256:bb"}, {"template": "raw"}])
def test_another_model_or_template_starts_afresh(tmp_path: Path, change: dict[str, str]) -> None:
    taught(tmp_path).save()
    assert again(tmp_path, **change).observed() == 0


def test_another_base_starts_afresh(tmp_path: Path) -> None:
    taught(tmp_path).save()
    other = CalibratedCounter(EstimateCounter(), model_digest="sha256:aa", state_dir=tmp_path)
    assert other.observed() == 0


def test_models_side_by_side_have_files_of_their_own(tmp_path: Path) -> None:
    taught(tmp_path, "sha256:aa", 40).save()
    taught(tmp_path, "sha256:bb", 50).save()
    assert [again(tmp_path, digest).observed() for digest in ("sha256:aa", "sha256:bb")] == [40, 50]


def test_no_state_dir_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    counter = taught(None)
    assert counter.save() is False
    assert counter.state_path is None
    assert list(tmp_path.iterdir()) == []


def _broken(good: dict[str, Any]) -> dict[str, bytes]:
    def with_text(**changes: Any) -> bytes:
        return json.dumps({**good, "kinds": {"text": {**good["kinds"]["text"], **changes}}}).encode()

    text = good["kinds"]["text"]
    return {
        "empty": b"",
        "cut off": json.dumps(good).encode()[:-40],
        "binary": b"\x00\xff\xfe",
        "a list": b"[]",
        "another version": json.dumps({**good, "version": 99}).encode(),
        "another key": json.dumps({**good, "key": {"model_digest": "x"}}).encode(),
        "no kinds": json.dumps({"version": 1, "key": good["key"]}).encode(),
        "kinds as a list": json.dumps({**good, "kinds": []}).encode(),
        "a kind as text": json.dumps({**good, "kinds": {"text": "abc"}}).encode(),
        "NaN": with_text(products=[float("nan")] * 16),
        "Infinity": with_text(targets=[float("inf")] * 4),
        "too few numbers": with_text(targets=[1.0]),
        "words for numbers": with_text(targets=["1", "2", "3", "4"]),
        "negative count": with_text(seen=-1),
        "window too short": with_text(window=text["window"][:5]),
        "a window of zeros": with_text(window=[[1, 1, 1, 0, 0]] * 60),
        "no system to solve": with_text(products=[-1.0, *[0.0] * 15]),
    }


@pytest.mark.parametrize("name", [*_broken({"version": 1, "key": {}, "kinds": {"text": {"window": []}}})])
def test_a_broken_file_is_ignored_with_a_warning_and_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    first = taught(tmp_path)
    first.save()
    path = first.state_path
    assert path is not None
    path.write_bytes(_broken(json.loads(path.read_bytes()))[name])
    with caplog.at_level(logging.WARNING):
        second = again(tmp_path)
    assert second.observed() == 0
    assert str(path) in caplog.text
    assert taught(tmp_path).save()
    assert again(tmp_path).observed() == 60


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_damage_to_the_file_ends_a_run(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("state")
    first = taught(folder, rows=31)
    first.save()
    path = first.state_path
    assert path is not None
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    second = again(folder)
    estimate = second.estimate(prompt(300, 2)).tokens
    assert second.lower_bound(prompt(300, 2)).tokens <= estimate <= second.upper_bound(prompt(300, 2)).tokens


def test_two_writers_leave_a_whole_file(tmp_path: Path) -> None:
    counters = [taught(tmp_path, rows=40), taught(tmp_path, rows=50)]
    threads = [threading.Thread(target=lambda c=c: [c.save() for _ in range(20)]) for c in counters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert again(tmp_path).observed() in {40, 50}
    path = counters[0].state_path
    assert path is not None
    assert [found.name for found in path.parent.iterdir()] == [path.name]  # no scratch files are left


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tmp_path.chmod(0o500)
    assert taught(tmp_path / "state").save() is False
    assert "could not keep" in caplog.text


def test_a_file_in_the_place_of_the_folder_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        assert taught(tmp_path / "state").save() is False
    assert "could not keep" in caplog.text


def test_texts_of_prompts_are_never_kept(tmp_path: Path) -> None:
    counter = CalibratedCounter(WordCounter(), model_digest="d", state_dir=tmp_path)
    counter.observe([{"role": "user", "content": "a very secret word"}], 9)
    counter.save()
    assert counter.state_path is not None
    assert "secret" not in counter.state_path.read_text()


@pytest.mark.skipif(sys.platform in {"win32", "darwin"}, reason="XDG")
def test_the_state_folder_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert user_state_dir() == tmp_path / "ollama-batch"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_state_dir() == tmp_path / ".local" / "state" / "ollama-batch"
    assert not user_state_dir().exists()
