"""Where a run's files are: one output and one error file a source, one journal for all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from ollama_batch.errors import ConfigError

PathLike: TypeAlias = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Place:
    """The files of one source; all None when the run has no output."""

    output: Path | None = None
    errors: Path | None = None
    partial: Path | None = None


@dataclass(frozen=True, slots=True)
class Places:
    """The files of a run. `journal` None = in memory."""

    journal: Path | None
    sources: tuple[Place, ...]


def plan_places(
    names: Sequence[str],
    *,
    output: PathLike | Sequence[PathLike] | None = None,
    errors: PathLike | Sequence[PathLike] | None = None,
    journal: PathLike | Literal["auto"] | None = "auto",
    partial: bool = True,
) -> Places:
    """Decide every path of a run over the sources called `names`.

    One source: `output` is a file; an existing folder (or a path ending in a slash) gets
    `<name>.results.jsonl`. Several: a folder, or one path for each. Errors go beside the output as
    `<output stem>.errors.jsonl`. The journal "auto" is `<output>.run.db`,
    for a folder `<folder>/batch.run.db`.
    Raises ConfigError for paths that cannot work together.
    """
    outputs, folder = _outputs(names, output)
    error_paths = _spread(errors, len(names), "errors")
    places = []
    for out, given in zip(outputs, error_paths, strict=True):
        if out is None:
            if given is not None:
                raise ConfigError("errors= needs output=: without an output nothing is written")
            places.append(Place())
            continue
        beside = out.with_name(f"{out.name.removesuffix('.jsonl')}.errors.jsonl")
        places.append(
            Place(out, given or beside, out.with_name(f"{out.name}.partial.jsonl") if partial else None)
        )
    files = [path.absolute() for place in places for path in (place.output, place.errors) if path is not None]
    if len(set(files)) != len(files):
        raise ConfigError("output= and errors= name the same file twice")
    return Places(_journal(journal, outputs, folder), tuple(places))


def _outputs(
    names: Sequence[str], output: PathLike | Sequence[PathLike] | None
) -> tuple[list[Path | None], Path | None]:
    if output is None:
        return [None] * len(names), None
    if isinstance(output, str | os.PathLike):
        path = Path(output)
        if path.is_dir() or str(output).endswith(("/", os.sep)):
            stems = [Path(name).name.removesuffix(".jsonl") for name in names]
            if len(set(stems)) != len(stems):
                raise ConfigError("two inputs have the same file name: give output= one path for each")
            return [path / f"{stem}.results.jsonl" for stem in stems], path
        if len(names) > 1:
            raise ConfigError(
                f"{len(names)} inputs need a folder, or one path each, as output=, not {output}"
            )
        return [path], None
    paths = _spread(output, len(names), "output")
    return paths, None


def _spread(paths: PathLike | Sequence[PathLike] | None, count: int, option: str) -> list[Path | None]:
    if paths is None:
        return [None] * count
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if len(given) != count:
        raise ConfigError(f"{option}= names {len(given)} files for {count} inputs")
    return [Path(path) for path in given]


def _journal(
    journal: PathLike | Literal["auto"] | None, outputs: Sequence[Path | None], folder: Path | None
) -> Path | None:
    if journal is None or (journal == "auto" and outputs[0] is None):
        return None
    if journal != "auto":
        return Path(journal)
    if folder is not None:
        return folder / "batch.run.db"
    first = outputs[0]
    assert first is not None  # noqa: S101 - said above
    return first.with_name(f"{first.name}.run.db")
