"""Requests as OpenAI batch files: whole, or not there at all."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

import orjson

from ollama_batch._new_file import Draft, check_apart, writing
from ollama_batch._points import reached
from ollama_batch.aris.requests import RequestStream
from ollama_batch.errors import ConfigError, OutputError
from ollama_batch.journal.place import remove_file
from ollama_batch.types import BatchRequest


def write_requests(
    requests: Iterable[BatchRequest],
    output: str | os.PathLike[str],
    *,
    split: int | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write `requests` to `output`, one OpenAI batch line each, and return the files there are.

    `split`: at most so many to a file; these are called `<stem>-0001.jsonl`, `<stem>-0002.jsonl` ... Only
    their owner can read them. They appear when all are written, so that an error on the way (a broken
    candidate, a full disk) leaves nothing, and leaves what was there. Without a request nothing is written.

    Raises OutputError if a file, or a part of an earlier split, is in the way (unless `overwrite`, which
    then removes parts that are none any more), or cannot be written; also with `overwrite` if it is the
    export, or a file of the template, that `to_requests` makes the requests of; and what `requests` raises.
    """
    if split is not None and split < 1:
        raise ConfigError(f"split={split}: must be 1 or more")
    place = Path(output)
    if place.is_dir():
        raise OutputError(f"{place} is a folder: give a file name in it")
    in_the_way = files_in_the_way(place, split)
    if isinstance(requests, RequestStream):
        for each in in_the_way:
            check_apart(each, requests.inputs)
    if in_the_way and not overwrite:
        raise OutputError(f"{in_the_way[0]} exists: give another name, or say overwrite=True")
    drafts: list[Draft] = []
    with writing(place):
        try:
            reached("requests.begin")
            for number, part in enumerate(_parts(requests, split), start=1):
                final = place if split is None else place.with_name(f"{place.stem}-{number:04}{place.suffix}")
                drafts.append(Draft(final))
                with drafts[-1].filled() as file:
                    for request in part:
                        file.write(orjson.dumps(request.to_openai()) + b"\n")
            for draft in drafts:
                draft.put_in_place()
            if drafts:
                for stale in set(in_the_way) - {draft.path for draft in drafts}:
                    remove_file(stale)
        finally:
            for draft in drafts:
                draft.drop()
    return [draft.path for draft in drafts]


def files_in_the_way(place: Path, split: int | None) -> list[Path]:
    """`place` if it is there, or the parts of an earlier split of it."""
    if split is None:
        return [place] if os.path.lexists(place) else []
    part = re.compile(re.escape(place.stem) + r"-\d{4,}" + re.escape(place.suffix))
    if not place.parent.is_dir():
        return []
    return sorted(path for path in place.parent.iterdir() if part.fullmatch(path.name))


def _parts(requests: Iterable[BatchRequest], split: int | None) -> Iterator[Iterator[BatchRequest]]:
    """`requests` in pieces of `split`, none of them empty; each must be used up before the next."""
    source = iter(requests)
    for first in source:
        yield chain([first], source if split is None else islice(source, split - 1))
