"""Synthetic exports: the same from the same seed, every trap in the smallest, sizes as users know them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ollama_batch.aris import read_candidates
from ollama_batch.aris.synthetic import (
    TRAPS,
    synthetic_candidates,
    traps_of,
    write_export,
    write_named_set,
)
from ollama_batch.errors import ConfigError, OutputError


def test_the_same_seed_makes_the_same_bytes(tmp_path: Path) -> None:
    one = write_export(tmp_path / "one.json", 30, seed=7)
    two = write_export(tmp_path / "two.json", 30, seed=7)
    other = write_export(tmp_path / "other.json", 30, seed=8)
    assert one.read_bytes() == two.read_bytes() != other.read_bytes()


def test_the_named_set_has_the_known_sizes(tmp_path: Path) -> None:
    sizes = {path.name: path.stat().st_size for path in write_named_set(tmp_path, most=1_000)}
    known = {"aris-10.json": 91_000, "aris-100.json": 822_000, "aris-1000.json": 7_700_000}
    assert sizes.keys() == known.keys()
    for name, size in sizes.items():
        assert size == pytest.approx(known[name], rel=0.02), name


def test_every_trap_is_in_the_smallest_export_and_a_third_of_the_others_has_one() -> None:
    assert {trap for index in range(10) for trap in traps_of(index)} == set(TRAPS)
    later = [traps_of(index) for index in range(10, 1_000)]
    assert {trap for traps in later for trap in traps} == set(TRAPS)
    assert sum(map(bool, later)) == pytest.approx(330, abs=1)


def test_the_export_has_the_shape_that_aris_writes_and_its_metadata_are_true(tmp_path: Path) -> None:
    path = write_export(tmp_path / "e.json", 120, cv_share=0.25, evaluated_share=0.5)
    export = json.loads(path.read_text(encoding="utf-8"))
    assert set(export) == {"metadata", "candidates"}
    reader = read_candidates(path)
    assert len(list(reader)) == len(export["candidates"]) == export["metadata"]["batchSize"] == 120
    quality = reader.quality
    assert export["metadata"]["dataQuality"] == {
        "withGemData": quality.with_gem,
        "withSwarmData": quality.with_swarm,
        "withCvData": quality.with_cv,
        "withPraxisData": quality.with_praxis,
    }
    assert (quality.with_cv, quality.with_praxis) == (30, 60)
    assert quality.duplicate_jobs
    assert quality.unknown_dates
    assert quality.unreadable_dates


def test_without_traps_nothing_is_missing(tmp_path: Path) -> None:
    reader = read_candidates(write_export(tmp_path / "e.jsonl", 60, form="lines", traps=False))
    list(reader)
    assert reader.quality.with_gem == 60
    assert not any(reader.quality.missing.values())
    assert (
        reader.quality.unknown_dates == reader.quality.unreadable_dates == reader.quality.duplicate_jobs == 0
    )


def test_broken_ids_are_made_only_when_asked_for(tmp_path: Path) -> None:
    path = write_export(tmp_path / "e.json.gz", 40, repeated_ids=2, missing_ids=3)
    reader = read_candidates(path, on_invalid="skip")
    assert len(list(reader)) == 35
    assert [row.line for row in reader.invalid] == [36, 37, 38, 39, 40]
    assert (reader.quality.missing_ids, reader.quality.duplicate_ids) == (3, 2)


@pytest.mark.parametrize(
    "options", [{"count": 0}, {"count": 2, "cv_share": 2}, {"count": 2, "missing_ids": 2}]
)
def test_what_cannot_be_made_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        next(synthetic_candidates(**options))


def test_a_file_that_is_there_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    mine = tmp_path / "export.json"
    mine.write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        write_export(mine, 2)
    assert mine.read_text() == "mine"
    assert len(list(read_candidates(write_export(mine, 2, overwrite=True)))) == 2
