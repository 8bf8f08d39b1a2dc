"""What every fake server can do, whether it runs on a thread or in a process of its own."""

from __future__ import annotations

import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Self

from ollama_batch.testing.faults import Fault
from ollama_batch.testing.ledger import Ledger


class FakeServer(ABC):
    """A running fake Ollama. Leaving its `with` block ends it; so does `close`.

    Both raise then what a `reply` function has raised. Where the block ends with another exception, that
    goes on, with what the function raised in its notes.
    """

    ledger: Ledger
    """What the server was asked."""

    _port: int = 0

    @property
    def port(self) -> int:
        """The port on 127.0.0.1; the same after a restart. Raises RuntimeError before the start."""
        if not self._port:
            raise RuntimeError("the fake server has not been started: use it in a `with` block")
        return self._port

    @property
    def url(self) -> str:
        """The address, as in `http://127.0.0.1:12345`, without a path."""
        return f"http://127.0.0.1:{self.port}"

    @abstractmethod
    def start(self) -> Self:
        """Start to listen, if that has not happened yet."""

    @abstractmethod
    def inject(self, fault: Fault) -> None:
        """Let `fault` happen from now on; its n-th request is counted from now."""

    @abstractmethod
    def clear_faults(self) -> None:
        """Let nothing go wrong any more."""

    @abstractmethod
    def stop(self) -> None:
        """Close the listener, reset every connection and lose all loaded models; the ledger stays."""

    @abstractmethod
    def restart(self) -> None:
        """Stop if need be, and listen again on the same port."""

    @abstractmethod
    def hold(self) -> None:
        """Let completions arrive, but answer none until `release`."""

    @abstractmethod
    def release(self) -> None:
        """Answer the completions that were held."""

    @abstractmethod
    def memory_used_bytes(self) -> int:
        """What loaded models and their work take on the card now, in bytes."""

    def check(self) -> None:
        """Raise what the `reply` function has raised since the last check, if it has: the first, as it was.

        It is raised once. Of a server in a process of its own it is a RuntimeError with the traceback.
        """
        error = self._take_error()
        if error is not None:
            raise error

    def close(self) -> None:
        """End the server; the ledger can still be read. Then `check`."""
        self._end()
        self.check()

    @abstractmethod
    def _end(self) -> None: ...

    @abstractmethod
    def _take_error(self) -> BaseException | None: ...

    def wait_until(self, condition: Callable[[Ledger], object], timeout: float = 10.0) -> None:
        """Wait until `condition` holds for the ledger. Raises TimeoutError after `timeout` seconds."""
        end = time.monotonic() + timeout
        while not condition(self.ledger):
            if time.monotonic() > end:
                raise TimeoutError(f"the fake server's ledger did not get there in {timeout:g} s")
            time.sleep(0.005)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        raised = self._take_error()
        if raised is None:
            return
        if error is None:
            raise raised
        text = "".join(traceback.format_exception(raised))
        error.add_note(f"before that the reply function of the fake server raised:\n{text}")
