"""Serving the app with uvicorn, each wait and each head of a request bounded."""

from __future__ import annotations

import ipaddress
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette

from ollama_batch.errors import ConfigError
from ollama_batch.server.protocol import HEAD_BYTES, GuardedProtocol
from ollama_batch.server.service import Service

KEEP_S = 30
"""Idle connections are kept so long: well beyond the 5 s of SDKs, so that they close them and not we."""

DRAIN_S = 5
"""Answers under way have so long to end when the server is asked to stop."""


def check_host(host: str, *, has_keys: bool) -> None:
    """Raise ConfigError for an address that others reach, unless they need a key."""
    if has_keys or host == "localhost":
        return
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local:
        raise ConfigError(
            f"--host {host}: others can reach this address, so they must need a key: put one into an "
            "environment variable and name it with --api-key-env, or serve this machine alone (127.0.0.1)"
        )


def make_server(app: Starlette, *, host: str = "127.0.0.1", port: int = 8080) -> uvicorn.Server:
    """A uvicorn server for `app`, as `ollama-batch serve` runs it: with limits, and without an access log."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=GuardedProtocol,
        ws="none",
        h11_max_incomplete_event_size=HEAD_BYTES,
        timeout_graceful_shutdown=DRAIN_S,
        timeout_keep_alive=KEEP_S,
        access_log=False,
        log_config=None,
        server_header=False,
        lifespan="on",
    )
    return _Server(config)


class _Server(uvicorn.Server):
    """uvicorn's server; asked to stop by a signal, it stops and does not die of it afterwards."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at SIGINT and SIGTERM; a second one does not wait."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def serve(app: Starlette, *, host: str, port: int, announce: Callable[[int], None]) -> None:
    """Serve until a signal ends it; `announce` is told the port.

    Raises ConfigError, JournalError, OSError before anything is served.
    """
    service: Service = app.state.service
    check_host(host, has_keys=service.has_keys)
    with _listening(host, port) as sock:
        service.open()
        announce(sock.getsockname()[1])
        try:
            make_server(app, host=host, port=port).run(sockets=[sock])
        finally:
            service.close()


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise ConfigError(f"--host {host} --port {port}: cannot be listened on: {error.strerror}") from error
    return sock
