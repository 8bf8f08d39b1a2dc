"""Where the files of a run are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ollama_batch._outputs import Place, Places, plan_places
from ollama_batch.errors import ConfigError


def test_without_an_output_there_is_no_file() -> None:
    places = plan_places(["<list>"])
    assert places == Places(None, (Place(),))
    assert places.files == []


def test_everything_is_beside_the_output(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    places = plan_places(["in.jsonl"], output=out)
    assert places.journal == tmp_path / "out.jsonl.run.db"
    assert places.sources == (
        Place(out, tmp_path / "out.errors.jsonl", tmp_path / "out.jsonl.partial.jsonl"),
    )
    assert plan_places(["in.jsonl"], output=out, partial=False).sources[0].partial is None


@pytest.mark.parametrize(
    ("output", "errors"),
    [
        ("a.jsonl", "a.errors.jsonl"),
        ("a", "a.errors.jsonl"),
        ("a.txt", "a.txt.errors.jsonl"),
        ("a.b.jsonl", "a.b.errors.jsonl"),
    ],
)
def test_the_error_file_is_named_after_the_output(output: str, errors: str) -> None:
    assert plan_places(["in"], output=output).sources[0].errors == Path(errors)


@pytest.mark.parametrize("slash", [True, False])
def test_a_folder_gets_a_file_for_each_source(tmp_path: Path, slash: bool) -> None:
    folder = f"{tmp_path}/new/" if slash else tmp_path
    places = plan_places(["x/a.jsonl", "y/b.txt"], output=folder)
    base = Path(folder)
    assert [place.output for place in places.sources] == [
        base / "a.results.jsonl",
        base / "b.txt.results.jsonl",
    ]
    assert places.journal == base / "batch.run.db"


def test_each_source_may_have_its_own_paths() -> None:
    places = plan_places(["a", "b"], output=["x", Path("y")], errors=["e", "f"], journal="j")
    assert [(place.output, place.errors) for place in places.sources] == [
        (Path("x"), Path("e")),
        (Path("y"), Path("f")),
    ]
    assert places.journal == Path("j")
    assert plan_places(["a", "b"], output=["x", "y"]).journal == Path("x.run.db")


def test_a_stream_in_a_folder_has_a_name_every_system_takes(tmp_path: Path) -> None:
    assert plan_places(["<stdin>"], output=tmp_path).sources[0].output == tmp_path / "stdin.results.jsonl"


def test_a_journal_can_be_had_without_output_and_output_without_journal() -> None:
    assert plan_places(["a"], journal="j").journal == Path("j")
    assert plan_places(["a"], output="o", journal=None).journal is None


@pytest.mark.parametrize(
    ("names", "options", "said"),
    [
        (["a", "b"], {"output": "one.jsonl"}, "2 inputs need a folder"),
        (["x/a", "y/a"], {"output": "out/"}, "same file name"),
        (["a", "b"], {"output": ["x", "x"]}, "same file twice: x"),
        (["a", "b"], {"output": ["x", "y"], "errors": "e"}, "errors= names 1 files for 2 inputs"),
        (["a", "b"], {"output": ["x", "x.run.db"]}, "same file twice"),
        (["a", "b"], {"output": ["x", "y"], "errors": ["e", "./e"]}, "same file twice"),
    ],
)
def test_paths_that_cannot_work_together_are_refused(
    names: list[str], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        plan_places(names, **options)
