"""New files are there whole or not at all, and never in the place of somebody else's unasked."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from ollama_batch import _new_file as module
from ollama_batch._new_file import Draft, new_file
from ollama_batch.errors import DiskFullError, OutputError


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "out.txt"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_has_its_name_when_it_is_whole_and_is_its_owners_alone(place: Path) -> None:
    with new_file(place, overwrite=False) as file:
        file.write(b"whole")
        assert not place.exists()
    assert place.read_bytes() == b"whole"
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert names(place.parent) == ["out.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_a_block_that_raises_leaves_what_was_there(place: Path, error: type[BaseException]) -> None:
    def write() -> None:
        with new_file(place, overwrite=True) as file:
            file.write(b"half")
            raise error("no")

    place.write_text("before")
    with pytest.raises(OutputError if error is OSError else error):
        write()
    assert place.read_text() == "before"
    assert names(place.parent) == ["out.txt"]


@pytest.mark.parametrize(("empty", "left"), [(True, b""), (False, b"before")])
def test_a_block_that_writes_nothing_makes_an_empty_file_unless_there_shall_be_none(
    place: Path, empty: bool, left: bytes
) -> None:
    place.write_bytes(b"before")
    with new_file(place, overwrite=True, empty=empty):
        pass
    assert place.read_bytes() == left
    assert names(place.parent) == ["out.txt"]


def test_what_somebody_else_has_put_there_meanwhile_stays(place: Path) -> None:
    def write() -> None:
        with new_file(place, overwrite=False) as file:
            file.write(b"mine")
            place.write_bytes(b"theirs")

    with pytest.raises(OutputError, match="exists: give another name"):
        write()
    assert place.read_bytes() == b"theirs"
    assert names(place.parent) == ["out.txt"]


def test_a_place_that_cannot_have_a_file_is_told_before_anything_is_done(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("mine")
    for path, told in (
        (tmp_path, "is a folder"),
        (tmp_path / "none" / "out", "there is no folder"),
        (tmp_path / "there", "exists"),
    ):
        with pytest.raises(OutputError, match=told), new_file(path, overwrite=False):
            pytest.fail("the block was begun")


def test_a_full_disk_is_told_as_one(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "create_private", full)
    told = r"out\.txt cannot be written: No space left .* make room"
    with pytest.raises(DiskFullError, match=told), new_file(place, overwrite=False):
        pytest.fail("the block was begun")


def test_several_are_put_in_place_when_all_are_whole(tmp_path: Path) -> None:
    drafts = [Draft(tmp_path / name) for name in ("a", "b")]
    for draft in drafts:
        with draft.filled() as file:
            file.write(draft.path.name.encode())
    assert not {"a", "b"} & set(names(tmp_path))
    drafts[0].put_in_place()
    for draft in drafts:
        draft.drop()
    assert names(tmp_path) == ["a"]
