"""FakeOllama: an Ollama without a model, for tests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from ollama_batch.testing._replies import Replies
from ollama_batch.testing.base import FakeServer
from ollama_batch.testing.config import VERSION, CostModel, FakeConfig, FakeModel, Reply
from ollama_batch.testing.faults import Fault
from ollama_batch.testing.ledger import FileLedger, Ledger
from ollama_batch.testing.memory import MemoryModel

if TYPE_CHECKING:
    from ollama_batch.testing._listener import Listener
    from ollama_batch.testing.spawned import SpawnedFakeOllama

T = TypeVar("T")

PATIENCE_S = 10.0


class FakeOllama(FakeServer):
    """An HTTP server on 127.0.0.1 that answers as Ollama does, on a thread of this process.

    Answers are words without meaning, the same for the same seed, model, messages and sampling
    options; a request for JSON gets JSON that fits its schema. Everything asked is in `ledger`: in
    memory, or in a JSONL file if `ledger` is a path. The settings are those of `FakeConfig`. A `reply`
    function that raises answers with status 500, and the test is told at the end (see `check`).
    """

    def __init__(
        self,
        *,
        models: Sequence[FakeModel] = (FakeModel("toy:1b"),),
        slots: int = 4,
        seed: int = 0,
        speed: CostModel | None = None,
        memory: MemoryModel | None = None,
        faults: Sequence[Fault] = (),
        ledger: str | PathLike[str] | None = None,
        reply: Reply | None = None,
        num_ctx: int = 4096,
        max_queue: int = 512,
        reports_cached: bool = False,
        tokenizer: Literal["chars", "words"] = "chars",
        version: str = VERSION,
        api_key: str | None = None,
        start_s: float = 0.0,
        port: int = 0,
    ) -> None:
        self.config = FakeConfig(
            models=tuple(models),
            slots=slots,
            seed=seed,
            speed=speed,
            memory=memory,
            faults=tuple(faults),
            reply=reply,
            num_ctx=num_ctx,
            max_queue=max_queue,
            reports_cached=reports_cached,
            tokenizer=tokenizer,
            version=version,
            api_key=api_key,
            start_s=start_s,
        )
        self.ledger: Ledger = Ledger() if ledger is None else FileLedger(ledger)
        self._replies = Replies(reply)
        self._wanted_port = port
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._listener: Listener | None = None

    @classmethod
    def from_config(
        cls, config: FakeConfig, *, ledger: str | PathLike[str] | None = None, port: int = 0
    ) -> FakeOllama:
        """A server with these settings, not started yet."""
        values = {name: getattr(config, name) for name in FakeConfig.__slots__}
        return cls(**values, ledger=ledger, port=port)

    @staticmethod
    def spawn(
        *, ledger: str | PathLike[str] | None = None, port: int = 0, **settings: Any
    ) -> SpawnedFakeOllama:
        """Start a fake server in a process of its own, which ends with this process.

        `settings` are those of FakeOllama; a `reply` function must be importable there. The ledger is
        always a file, read from here, so that it outlives the server and needs no memory.
        """
        from ollama_batch.testing.spawned import SpawnedFakeOllama

        for name in ("models", "faults"):
            if name in settings:
                settings[name] = tuple(settings[name])
        return SpawnedFakeOllama(FakeConfig(**settings), ledger=ledger, port=port).start()

    def start(self) -> Self:
        """Start to listen, if that has not happened yet. Raises OSError if the port is taken.

        With `start_s` it returns at once, and connections are refused until then.
        """
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(
                target=self._serve, args=(self._loop,), name="FakeOllama", daemon=True
            )
            self._thread.start()
            try:
                self._run(self._open())
            except BaseException:
                self._end()
                raise
        return self

    def inject(self, fault: Fault) -> None:
        """Let `fault` happen from now on; its n-th request is counted from now."""
        self._run(self._call(self._parts().plan.add, fault))

    def clear_faults(self) -> None:
        """Let nothing go wrong any more."""
        self._run(self._call(self._parts().plan.clear))

    def stop(self) -> None:
        """Close the listener, reset every connection and lose all loaded models; the ledger stays."""
        self._run(self._parts().shut())

    def restart(self) -> None:
        """Stop if need be, and listen again on the same port."""
        self.stop()
        self._run(self._parts().open())

    def hold(self) -> None:
        """Let completions arrive, but answer none until `release`."""
        self._run(self._call(self._parts().ollama.gate.clear))

    def release(self) -> None:
        """Answer the completions that were held."""
        self._run(self._call(self._parts().ollama.gate.set))

    def memory_used_bytes(self) -> int:
        """What loaded models and their work take on the card now, in bytes."""
        return self._run(self._call(self._parts().ollama.memory_used_bytes))

    def _take_error(self) -> BaseException | None:
        return self._replies.take_error()

    def _end(self) -> None:
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        if self._listener is not None:
            self._run(self._listener.shut())
        self._run(_end_tasks())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE_S)
        loop.close()
        self._loop = self._thread = self._listener = None
        self.ledger.close()

    async def _open(self) -> None:
        from ollama_batch.testing._listener import Listener  # imports aiohttp

        listener = Listener(self.config, self.ledger, self._replies)
        await listener.open(self._wanted_port)
        self._listener, self._port = listener, listener.port

    @staticmethod
    async def _call(function: Callable[..., T], *args: Any) -> T:
        return function(*args)

    @staticmethod
    def _serve(loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        loop.run_forever()

    def _parts(self) -> Listener:
        if self._listener is None:
            raise RuntimeError("the fake server is not running: use it in a `with` block")
        return self._listener

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop is None:
            work.close()
            raise RuntimeError("the fake server is not running: use it in a `with` block")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)


async def _end_tasks() -> None:
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
