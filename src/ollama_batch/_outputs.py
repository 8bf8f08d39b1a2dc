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

    @property
    def files(self) -> list[Path]:
        """Those of the three that there will be."""
        return [path for path in (self.output, self.errors, self.partial) if path is not None]


@dataclass(frozen=True, slots=True)
class Places:
    """The files of a run. `journal` None = in memory."""

    journal: Path | None
    sources: tuple[Place, ...]

    @property
    def files(self) -> list[Path]:
        """Every file the run may write."""
        return [
            *([] if self.journal is None else [self.journal]),
            *(path for place in self.sources for path in place.files),
        ]


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
    planned = Places(_journal(journal, outputs, folder), tuple(places))
    seen: set[str] = set()
    for path in planned.files:
        where = os.path.abspath(path)  # noqa: PTH100 - a/../b and b are one file; resolve() would touch the disk
        if where in seen:
            raise ConfigError(
                f"output=, errors= and journal= come to the same file twice: {path}; give each its own"
            )
        seen.add(where)
    return planned


def _outputs(
    names: Sequence[str], output: PathLike | Sequence[PathLike] | None
) -> tuple[list[Path | None], Path | None]:
    if isinstance(output, str | os.PathLike):
        path = _path(output, "output")
        if path.is_dir() or os.fspath(output).endswith(("/", os.sep)):
            # A stream is called <list> or <stdin>: no name for a file.
            stems = [Path(name).name.removesuffix(".jsonl").strip("<>") for name in names]
            if len(set(stems)) != len(stems):
                raise ConfigError("two inputs have the same file name: give output= one path for each")
            return [path / f"{stem}.results.jsonl" for stem in stems], path
        if len(names) > 1:
            raise ConfigError(
                f"{len(names)} inputs need a folder, or one path each, as output=, not {output}"
            )
        return [path], None
    return _spread(output, len(names), "output"), None


def _spread(paths: PathLike | Sequence[PathLike] | None, count: int, option: str) -> list[Path | None]:
    if paths is None:
        return [None] * count
    if not isinstance(paths, str | os.PathLike | list | tuple):
        raise ConfigError(f"{option}={paths!r}: must be a path, or a list with one path for each input")
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if len(given) != count:
        raise ConfigError(f"{option}= names {len(given)} files for {count} inputs")
    return [_path(path, option) for path in given]


def _path(given: object, option: str) -> Path:
    text = os.fspath(given) if isinstance(given, str | os.PathLike) else None
    if not isinstance(text, str) or not text.strip() or "\x00" in text:
        raise ConfigError(f"{option}={given!r}: must be the path of a file")
    return Path(text)


def _journal(
    journal: PathLike | Literal["auto"] | None, outputs: Sequence[Path | None], folder: Path | None
) -> Path | None:
    first = outputs[0]
    if journal is None or (journal == "auto" and first is None):
        return None
    if journal != "auto":
        return _path(journal, "journal")
    if folder is not None:
        return folder / "batch.run.db"
    assert first is not None  # noqa: S101 - said above
    return first.with_name(f"{first.name}.run.db")
