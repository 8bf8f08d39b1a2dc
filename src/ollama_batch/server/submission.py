"""A file sent to a batch server, and its results fetched: in one call, and again after any kill."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx

from ollama_batch._new_file import new_file
from ollama_batch._points import reached
from ollama_batch.errors import (
    ConfigError,
    EngineAuthError,
    EngineServerError,
    EngineUnreachableError,
    InputError,
    OutputError,
    RequestRejectedError,
)
from ollama_batch.journal.verify import verify
from ollama_batch.sources import FileSource
from ollama_batch.types import CHAT_URL

OK, SOME_FAILED, REFUSED, NOT_OVER = 0, 1, 2, 3

AWAY_S: Final = 900.0
"""A server that does not answer is waited for so long."""

_OVER: Final = ("completed", "failed", "expired", "cancelled")
_HAS: Final = {"failed": "failed", "expired": "expired", "cancelled": "was cancelled"}


class Submission:
    """One input on its way through a server; `OUTPUT.batch.json` beside the output says which batch it is.

    A file that is there and is not known to be of that batch is never overwritten.

    Talks to any server with OpenAI's files and batches. `say` is given lines for people. Raises ConfigError,
    InputError, OutputError, and EngineErrors: what the server refuses, or that it is away.
    """

    def __init__(
        self,
        source: Path,
        output: Path,
        errors: Path,
        *,
        server: str,
        key: str | None,
        say: Callable[[str], None],
    ) -> None:
        address = server.strip().rstrip("/").removesuffix("/v1")
        if not address.startswith(("http://", "https://")):
            raise ConfigError(f"--server {server}: must be a URL, as in http://127.0.0.1:8080/v1")
        self._address = address
        self._source, self._output, self._errors = source, output, errors
        self._memory = output.with_name(f"{output.name}.batch.json")
        self._say = say
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self._http = httpx.Client(
            base_url=f"{address}/v1", headers=headers, timeout=httpx.Timeout(60.0, write=600.0)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def go(self, *, batch_id: str | None, wait: bool, poll_s: float, anew: bool = False) -> int:
        """Submit or take up; with `wait`, to the end. Returns the exit code of `ollama-batch submit`.

        `anew`: submit once more where the batch of this output failed, expired or was cancelled.
        """
        try:
            return self._go(batch_id, wait=wait, poll_s=poll_s, anew=anew)
        except OSError as error:
            place = error.filename2 or error.filename or self._output
            raise OutputError(f"{place} cannot be written: {error.strerror}") from error

    def _go(self, batch_id: str | None, *, wait: bool, poll_s: float, anew: bool) -> int:
        folder = self._output.parent
        if not folder.is_dir():
            raise OutputError(f"the folder {folder} does not exist: make it, or give another output")
        known = self._recall()
        if batch_id is not None:
            self._take_up(known, batch_id)
        elif known.get("batch") is not None:
            known = self._usable(known, anew=anew)
            batch_id = known.get("batch")
        batch = self._make(known) if batch_id is None else self._look_at(batch_id)
        said = ""
        while True:
            line = _line_of(batch)
            if line != said:
                self._say(line)
            said = line
            if batch["status"] in _OVER:
                return self._fetch(batch)
            if not wait:
                return OK if batch_id is None else NOT_OVER
            time.sleep(poll_s)
            batch = self._get(f"/batches/{batch['id']}")

    def _take_up(self, known: Mapping[str, Any], batch_id: str) -> None:
        """Note that the output is of a batch that was made otherwise."""
        if known.get("batch") == batch_id:
            return
        if known.get("batch") is not None:
            raise ConfigError(
                f"{self._memory} says that {self._output} is of {known['batch']}: give another output"
            )
        self._look_at(batch_id)
        self._check_free()
        self._remember({**self._mine(), "batch": batch_id})

    def _usable(self, known: dict[str, Any], *, anew: bool) -> dict[str, Any]:
        """What is known of the batch of this output, or the beginnings of a new one where that one is no use.

        Raises ConfigError where it is of another input and may still be of use, or must not be made anew.
        """
        mine = self._mine()
        changed = known.get("input_sha256") != mine["input_sha256"]
        if not changed and not anew:
            return known
        try:
            batch = self._look_at(known["batch"])
        except RequestRejectedError as error:
            if not anew or error.status != 404:
                raise
            self._say(f"the server does not know {known['batch']} any more; {self._source} is submitted anew")
            return mine
        status = batch["status"]
        if status == "failed" and changed:
            self._say(f"{batch['id']} failed; {self._source} has changed since, so it is submitted anew")
            return mine
        if anew and status in ("failed", "expired", "cancelled"):
            self._say(f"{batch['id']} {_HAS[status]}; {self._source} is submitted anew")
            return mine
        if not changed:
            raise ConfigError(
                f"--anew: {batch['id']} is {status}, not failed, expired or cancelled: leave --anew out, or "
                "give another output"
            )
        if status not in _OVER:
            then = f"give another output, or cancel it and remove {self._memory}"
        elif status == "completed":
            then = "give another output for the new input"
        else:
            then = "give another output for the new input, or add --anew"
        raise ConfigError(
            f"{self._output} is of {batch['id']}, which is {status} and was made of another input: "
            f"{self._source} has changed since, or was another file; {then}"
        )

    def _look_at(self, batch_id: str) -> dict[str, Any]:
        try:
            return self._get(f"/batches/{batch_id}")
        except RequestRejectedError as error:
            if error.status != 404 or not self._memory.exists():
                raise
            raise RequestRejectedError(
                f"{error.message}; {self._memory} names it: add --anew to submit {self._source} once more",
                status=404,
            ) from error

    def _check_free(self) -> None:
        """Raise OutputError if a file is in the way. An empty one is not."""
        for place in (self._output, self._errors):
            try:
                taken = place.lstat().st_size > 0
            except FileNotFoundError:
                continue
            if taken or not place.is_file() or place.is_symlink():
                raise OutputError(f"{place} exists: give another name, or move it away")

    def _make(self, known: dict[str, Any]) -> dict[str, Any]:
        """Upload and create; a kill between two steps makes nothing twice."""
        self._check_free()
        if "file" not in known:
            try:
                with self._source.open("rb") as file:
                    form = {"file": (self._source.name, file, "application/jsonl")}
                    made = self._ask("POST", "/files", data={"purpose": "batch"}, files=form)
            except OSError as error:
                raise InputError(f"{self._source} cannot be read: {error.strerror}") from error
            known = {**known, "file": made["id"], "key": secrets.token_hex(16)}
            self._remember(known)
        body = {"input_file_id": known["file"], "endpoint": CHAT_URL, "completion_window": "24h"}
        batch = self._ask("POST", "/batches", json=body, headers={"idempotency-key": known["key"]})
        self._remember({**known, "batch": batch["id"]})
        return batch

    def _fetch(self, batch: Mapping[str, Any]) -> int:
        """The results of a batch that is over, in place, and checked against the input."""
        if batch["status"] == "failed":
            for error in (batch.get("errors") or {}).get("data", []):
                where = "" if error.get("line") is None else f"line {error['line']}: "
                self._say(f"  {where}{error.get('message')} ({error.get('code')})")
            self._say(
                f"nothing was run: mend {self._source} and give the same line again; if it was not the input "
                "that had to be mended, add --anew"
            )
            return REFUSED
        # Some servers give "" for a file that is not there.
        if batch.get("error_file_id"):
            self._download(batch["error_file_id"], self._errors)
        self._download(batch.get("output_file_id") or None, self._output)
        if batch["status"] != "completed":
            self._say(
                f"the batch {_HAS[batch['status']]}: what was done is in {self._output}. To run all lines, "
                "move the results away and add --anew"
            )
        if batch["request_counts"]["total"] == 0:
            return SOME_FAILED
        ids = (row.custom_id for row in FileSource(self._source).scan())
        found = verify(ids, self._output, self._errors if batch.get("error_file_id") else None)
        self._say(f"{self._output}: {found}")
        return OK if found.ok and not found.failed else SOME_FAILED

    def _download(self, file_id: str | None, place: Path) -> None:
        reached("submission.before_download")
        with new_file(place, overwrite=True) as file:
            if file_id is not None:
                for piece in self._pieces(f"/files/{file_id}/content"):
                    file.write(piece)

    def _pieces(self, path: str) -> Iterator[bytes]:
        try:
            with self._http.stream("GET", path) as reply:
                if reply.status_code != 200:
                    reply.read()
                    raise _refusal(reply)
                yield from reply.iter_bytes()
        except httpx.TransportError as error:
            raise self._away(error) from error

    def _get(self, path: str) -> dict[str, Any]:
        """Ask, for as long as a server may be away."""
        until, wait_s = time.monotonic() + AWAY_S, 0.5
        while True:
            try:
                return self._ask("GET", path)
            except (EngineUnreachableError, EngineServerError) as error:
                if time.monotonic() > until:
                    raise
                self._say(f"{error}; asked again in {wait_s:g} s")
            time.sleep(wait_s)
            wait_s = min(30.0, 2 * wait_s)

    def _ask(self, method: str, path: str, **content: Any) -> dict[str, Any]:
        try:
            reply = self._http.request(method, path, **content)
        except httpx.TransportError as error:
            raise self._away(error) from error
        if reply.status_code != 200:
            raise _refusal(reply)
        try:
            told = reply.json()
        except ValueError:
            told = None
        if not isinstance(told, dict) or not isinstance(told.get("id"), str):
            raise RequestRejectedError(f"{self._address} is no batch server: its answer is none of one")
        return told

    def _away(self, error: httpx.TransportError) -> EngineUnreachableError:
        return EngineUnreachableError(f"{self._address} does not answer ({type(error).__name__})")

    def _mine(self) -> dict[str, Any]:
        """What is noted of a batch that is to be made."""
        return {"server": self._address, "input_sha256": self._digest()}

    def _recall(self) -> dict[str, Any]:
        """What an earlier call has noted for this output. Raises ConfigError if it is of another server."""
        mine = self._mine()
        try:
            known = json.loads(self._memory.read_text(encoding="utf-8"))
            server, batch = known.get("server"), known.get("batch")
        except FileNotFoundError:
            return mine
        except (OSError, ValueError, AttributeError) as error:
            raise OutputError(f"{self._memory} cannot be read: remove it, or give another output") from error
        if server != self._address:
            raise ConfigError(
                f"{self._memory} says that {self._output} is of a batch at {server}: name that --server, or "
                "give another output"
            )
        # An upload of which no batch was made is of use for the same input only.
        return mine if batch is None and known.get("input_sha256") != mine["input_sha256"] else dict(known)

    def _digest(self) -> str:
        try:
            with self._source.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise InputError(f"{self._source} cannot be read: {error.strerror}") from error

    def _remember(self, known: Mapping[str, Any]) -> None:
        reached("submission.before_note")
        with new_file(self._memory, overwrite=True) as file:
            file.write(json.dumps(known).encode())


def _refusal(reply: httpx.Response) -> Exception:
    try:
        told = reply.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        told = reply.reason_phrase
    message = f"the server says: {told} ({reply.status_code})"
    if reply.status_code in (401, 403):
        return EngineAuthError(message, status=reply.status_code)
    if reply.status_code >= 500:
        return EngineServerError(message, status=reply.status_code)
    return RequestRejectedError(message, status=reply.status_code)


def _line_of(batch: Mapping[str, Any]) -> str:
    counts = batch.get("request_counts") or {}
    done, failed, total = (counts.get(name) or 0 for name in ("completed", "failed", "total"))
    return f"{batch['id']} {batch['status']}: {done:,} of {total:,} done, {failed:,} failed"
