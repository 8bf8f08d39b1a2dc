"""Kills of a server in every state, and the proof that nothing was lost; used by tests and benchmarks."""

from __future__ import annotations

import json
import signal
import socket
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from nursery import Life, Nursery
from ollama_batch.testing import CostModel, FakeOllama

CHILD = Path(__file__).with_name("server_child.py")
STATES = ("validating", "in_progress", "finalizing", "cancelling")
OVER = ("completed", "failed", "expired", "cancelled")
PATIENCE_S = 60.0


class ServerCampaign:
    """Batches on a server that is killed again and again, each time in a state of the newest of them.

    `problems` says what is wrong; `kills` counts, and `states` the statuses that the newest batch had then.
    Every life recovers from the last one.
    """

    def __init__(self, folder: Path, *, lines: int = 24) -> None:
        self.folder = folder
        self.lines = lines
        self.kills = 0
        self.problems: list[str] = []
        self.states: Counter[str] = Counter()
        self.fake = FakeOllama(speed=CostModel(latency_s=0.01))
        self._seen: dict[str, str] = {}
        self._cancelled: set[str] = set()
        self._made = 0
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self._port = sock.getsockname()[1]
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{self._port}/v1", timeout=10)

    def __enter__(self) -> Self:
        self.fake.start()
        self._errors = self.folder.with_name(f"{self.folder.name}.stderr")
        self._errors.parent.mkdir(parents=True, exist_ok=True)
        self._nursery = Nursery("server_child", self._errors)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()
        self._nursery.close()
        self.fake.close()

    def kill_in(self, state: str, after: int) -> None:
        """A life with a new batch, killed `after` points behind the moment in which it came to `state`."""
        number = self._made = self._made + 1
        name = f"{state}-{number}"
        with self._life({"state": state, "batches": number, "after": after}) as child:
            with suppress(httpx.TransportError):  # it may die before it answers
                self._submit(name)
            until = time.monotonic() + PATIENCE_S
            while child.poll() is None and time.monotonic() < until:
                with suppress(httpx.TransportError):
                    for batch in self._listed():
                        if batch["status"] == "in_progress" and state == "cancelling":
                            if batch["metadata"]["name"] == name:
                                self._cancelled.add(batch["id"])
                                self._http.post(f"/batches/{batch['id']}/cancel")
                        elif batch["metadata"]["name"] == name and batch["status"] in OVER:
                            until = 0.0  # it was over before so many points had passed
                time.sleep(0.003)  # between two looks
            self._kill(child)

    def kill_in_upload(self) -> None:
        """A life that is killed in the middle of an upload."""
        with self._life(None) as child, socket.create_connection(("127.0.0.1", self._port)) as sock:
            part = b'--b\r\ncontent-disposition: form-data; name="file"; filename="half"\r\n\r\nhalf'
            head = b"POST /v1/files HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9999\r\n"
            sock.sendall(head + b"content-type: multipart/form-data; boundary=b\r\n\r\n" + part)
            until = time.monotonic() + PATIENCE_S
            while not list((self.folder / "tmp").iterdir()) and time.monotonic() < until:
                time.sleep(0.003)  # between two looks
            self._kill(child)

    def kill_at(self, point: str, nth: int = 0) -> None:
        """A life with a new batch, killed at a named point."""
        self._made += 1
        with self._life({"state": point, "batches": 0, "after": nth}) as child:
            with suppress(httpx.TransportError):
                self._submit(f"{point}-{self._made}")
                while child.poll() is None and any(batch["status"] not in OVER for batch in self._listed()):
                    time.sleep(0.003)  # between two looks
            self._kill(child)

    def _kill(self, child: Life) -> None:
        child.send(signal.SIGKILL)
        self.kills += child.wait() == -signal.SIGKILL
        con = sqlite3.connect(f"file:{self.folder}/server.db?mode=ro", uri=True)
        try:
            found = con.execute("SELECT status FROM batches ORDER BY seq DESC LIMIT 1").fetchone()
        except sqlite3.OperationalError:
            found = None  # it was killed before it had tables
        finally:
            con.close()
        if found is not None:
            self.states[found[0]] += 1

    def finish(self) -> None:
        """A last life that is not killed; then every line of every batch is looked for."""
        with self._life(None) as child:
            until = time.monotonic() + PATIENCE_S
            while any(batch["status"] not in OVER for batch in self._listed()):
                if time.monotonic() > until:
                    self.problems.append("a batch is stuck")
                    break
                time.sleep(0.01)  # between two looks
            batches = self._listed()
            self._check(batches)
            self._check_files(batches)
            child.send(signal.SIGTERM)
            if child.wait() != 0:
                self.problems.append("the last life does not end well")
        if "hello" in self._errors.read_text():
            self.problems.append("a prompt is in the log")
        left = [path.name for folder in ("runs", "tmp", "parts") for path in (self.folder / folder).iterdir()]
        if left:
            self.problems.append(f"left behind: {left}")

    def _check(self, batches: list[dict[str, Any]]) -> None:
        known = {batch["id"] for batch in batches}
        for batch_id, name in self._seen.items():
            if batch_id not in known:
                self.problems.append(f"{batch_id} ({name}) is gone")
        for batch in batches:
            name, wanted = batch["metadata"]["name"], "completed"
            if batch["id"] in self._cancelled and batch["status"] == "cancelled":
                wanted = "cancelled"
            if batch["status"] != wanted:
                self.problems.append(f"{name} is {batch['status']}")
            lines = [line for kind in ("output", "error") for line in self._lines(batch[f"{kind}_file_id"])]
            found = sorted(line["custom_id"] for line in lines)
            if batch["request_counts"]["total"] == 0:
                if not (wanted == "cancelled" and found == []):
                    self.problems.append(f"{name} has no lines")
            elif found != sorted(f"{name}.{n}" for n in range(self.lines)):
                self.problems.append(f"{name}: {len(found)} lines, {len(set(found))} of them different")
            ok = sum(line["error"] is None for line in lines)
            if ok != batch["request_counts"]["completed"]:
                self.problems.append(f"{name}: {ok} answers, {batch['request_counts']['completed']} counted")

    def _check_files(self, batches: list[dict[str, Any]]) -> None:
        """Every file that is listed is whole, and every result belongs to a batch."""
        listed = self._http.get("/files").json()["data"]
        for file in listed:
            content = self._http.get(f"/files/{file['id']}/content").content
            if len(content) != file["bytes"]:
                self.problems.append(f"{file['filename']} has {len(content)} bytes of {file['bytes']}")
            if file["purpose"] == "batch" and content.count(b"\n") != self.lines:
                self.problems.append(f"{file['filename']} is half a file")
        results = {file["id"] for file in listed if file["purpose"] == "batch_output"}
        named = {batch[f"{kind}_file_id"] for batch in batches for kind in ("output", "error")} - {None}
        if results != named:
            self.problems.append(f"results that are listed and those of batches differ: {results ^ named}")

    def _lines(self, file_id: str | None) -> list[dict[str, Any]]:
        if file_id is None:
            return []
        content = self._http.get(f"/files/{file_id}/content").content
        return [json.loads(line) for line in content.splitlines()]

    def _listed(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while True:
            after = {} if not found else {"after": found[-1]["id"]}
            page = self._http.get("/batches", params={"limit": 100, **after}).json()
            found += page["data"]
            for batch in page["data"]:
                self._seen[batch["id"]] = batch["metadata"]["name"]
            if not page["has_more"]:
                return found

    def _submit(self, name: str) -> None:
        lines = []
        for n in range(self.lines):
            said = f"{name}.{n}\nhello"
            body = {"model": "toy:1b", "messages": [{"role": "user", "content": said}]}
            whole = {
                "custom_id": f"{name}.{n}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": body,
            }
            lines.append(json.dumps(whole) + "\n")
        form: Any = {"file": ("in.jsonl", "".join(lines).encode())}
        file = self._http.post("/files", data={"purpose": "batch"}, files=form).json()
        asked = {
            "input_file_id": file["id"],
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "metadata": {"name": name},
        }
        batch = self._http.post("/batches", json=asked).json()
        self._seen[batch["id"]] = name

    @contextmanager
    def _life(self, kill: dict[str, Any] | None) -> Iterator[Life]:
        told = {"data": str(self.folder), "port": self._port, "engine": self.fake.url}
        told |= {"kill": kill, "log": True}
        child = self._nursery.start(told)
        try:
            until = time.monotonic() + PATIENCE_S
            while time.monotonic() < until and child.poll() is None:
                with suppress(httpx.TransportError):
                    if self._http.get("/batches").status_code == 200:
                        break
                time.sleep(0.01)  # until it listens
            yield child
        finally:
            child.send(signal.SIGKILL)
            child.wait()
            errors = self._errors.read_text()
            if "Traceback" in errors:
                self.problems.append(errors[-2000:])
