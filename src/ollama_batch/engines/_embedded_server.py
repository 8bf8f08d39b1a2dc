"""The child process of EmbeddedEngine: llama.cpp's HTTP server, from the package xllamacpp.

Run as a script, by its path, so that nothing but xllamacpp is imported. It reads its settings as one line of
JSON from stdin, writes one line with its URL to stdout once the model is loaded, and ends when stdin does.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from typing import Any

READY = "ollama-batch server: "


def main() -> None:
    """Serve until stdin ends or the parent process dies."""
    settings = json.loads(sys.stdin.readline())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; it ends us in its time
    _die_with(settings["parent_pid"])
    threading.Thread(target=_end_with_stdin, daemon=True).start()

    import xllamacpp

    server = xllamacpp.Server(_params(xllamacpp, settings))
    ready = {"url": server.listening_address, "version": xllamacpp.__version__, "pid": os.getpid()}
    # One write, on a line of its own: llama.cpp's threads write to the same pipe.
    os.write(1, f"\n{READY}{json.dumps(ready)}\n".encode())
    threading.Event().wait()


def _params(xllamacpp: Any, settings: dict[str, Any]) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path = settings["gguf"]
    params.model_alias = {settings["alias"]}
    params.hostnames = ["127.0.0.1"]
    params.port = 0  # the system chooses a free one, and no other process can take it in between
    params.reuse_port = False
    params.n_parallel = settings["slots"]
    params.n_ctx = settings["num_ctx"] * settings["slots"]
    params.kv_unified = False  # as Ollama has it: every slot has its own part of the context
    params.n_threads_http = settings["http_threads"]
    params.cpuparams.n_threads = settings["threads"]
    params.cpuparams_batch.n_threads = settings["threads"]
    params.cache_prompt = True
    params.cache_ram_mib = settings["cache_ram_mib"]
    params.endpoint_metrics = True
    params.endpoint_slots = True
    params.cors_origins = "http://127.0.0.1"  # no page of a browser has business here
    params.ui = False
    params.offline = True
    params.verbosity = 2  # warnings and errors: no line for each request
    return params


def _die_with(parent_pid: int) -> None:
    """On Linux the kernel ends this process when its parent dies, even while a model is loading."""
    if sys.platform == "linux":
        import ctypes

        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent_pid:  # it died before the call
            os._exit(0)


def _end_with_stdin() -> None:
    while os.read(0, 4096):
        pass
    os._exit(0)  # llama.cpp's server threads cannot be joined


if __name__ == "__main__":
    main()
