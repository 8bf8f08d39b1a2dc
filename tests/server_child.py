"""A server in a process of its own, which kills itself where it is told to: see server_crash_support."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sqlite3
import sys
import threading
from pathlib import Path
from typing import Any

from ollama_batch import _points
from ollama_batch.server import ServerSettings, create_app
from ollama_batch.server.serving import make_server


class Kill:
    """Kills this process at the `after`-th point of a write path behind the moment in which the newest of
    `batches` batches has the status `state`; or at the `after`-th time that the point `state` is reached.
    """

    def __init__(self, database: Path, state: str, batches: int, after: int) -> None:
        self._database, self._state, self._batches = database, state, batches
        self._left = after
        self._begun = False
        self._lock = threading.Lock()

    def __call__(self, point: str) -> None:
        with self._lock:
            if "." in self._state:
                self._left -= point == self._state
            elif self._begun:
                self._left -= 1
            elif point == "server.after_commit" and self._is_there():
                self._begun = True
            if self._left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def _is_there(self) -> bool:
        con = sqlite3.connect(self._database)
        try:
            found = con.execute("SELECT status FROM batches ORDER BY seq").fetchall()
        finally:
            con.close()
        return len(found) == self._batches and found[-1][0] == self._state


def main(settings: dict[str, Any]) -> None:
    if settings.get("log"):
        logging.basicConfig(level=logging.INFO)
    folder = Path(settings["data"])
    runner = {"guards": (), "state_dir": None, "concurrency": 4}
    app = create_app(
        folder,
        base_url=settings["engine"],
        keys=settings.get("keys", ()),
        settings=ServerSettings(runner=runner, cancel_grace_s=0.2),
    )
    kill = settings["kill"]
    if kill is not None:
        _points.listen(Kill(folder / "server.db", **kill))
    sock = socket.create_server(("127.0.0.1", settings["port"]))
    make_server(app, port=settings["port"]).run(sockets=[sock])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
