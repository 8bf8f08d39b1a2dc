"""Run a fake Ollama by itself: `python -m ollama_batch.testing.fake_ollama --port 0 --model toy:1b`.

Prints its address as one line of JSON. Ends when its standard input does, or, with `--stay`, when it is
interrupted.
"""

from __future__ import annotations

import argparse
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import orjson

from ollama_batch.testing.config import CostModel, FakeConfig, FakeModel
from ollama_batch.testing.faults import Fault
from ollama_batch.testing.memory import MemoryModel
from ollama_batch.testing.server import FakeOllama


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to end; returns the exit code."""
    options = _parser().parse_args(arguments)
    if options.child:
        return _serve_parent()
    speed = CostModel(
        prefill_tps=options.prefill_tps,
        decode_tps=options.decode_tps,
        latency_s=options.latency,
        load_s=options.load,
    )
    config = FakeConfig(
        models=tuple(FakeModel(name) for name in options.model or ["toy:1b"]),
        slots=options.slots,
        seed=options.seed,
        speed=None if speed == CostModel() else speed,
        memory=None if options.memory is None else MemoryModel(**orjson.loads(options.memory)),
        start_s=options.start,
        faults=tuple(Fault.from_json(orjson.loads(text)) for text in options.fault),
        num_ctx=options.num_ctx,
    )
    with FakeOllama.from_config(config, ledger=options.ledger, port=options.port) as fake:
        _say({"url": fake.url, "port": fake.port})
        with suppress(KeyboardInterrupt):
            if options.stay:
                threading.Event().wait()
            for _ in sys.stdin:
                pass
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ollama_batch.testing.fake_ollama")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--model", action="append", help="name of a model; may be repeated (toy:1b)")
    parser.add_argument("--slots", type=int, default=4, help="answers made at once (4)")
    parser.add_argument("--seed", type=int, default=0, help="seed of answers and faults (0)")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds per completion (0)")
    parser.add_argument("--prefill-tps", type=float, help="prompt tokens per second (unlimited)")
    parser.add_argument("--decode-tps", type=float, help="answer tokens per second and slot (unlimited)")
    parser.add_argument("--start", type=float, default=0.0, help="seconds before it listens (0)")
    parser.add_argument("--load", type=float, default=0.0, help="seconds to load a model (0)")
    parser.add_argument("--memory", help='a card, as in {"max_in_flight": 3, "card_bytes": 16000000000}')
    parser.add_argument("--num-ctx", type=int, default=4096, help="default context length in tokens (4096)")
    parser.add_argument("--ledger", help="JSONL file for everything asked (in memory)")
    parser.add_argument(
        "--fault", action="append", default=[], help='a fault as JSON, as in {"kind": "busy", "share": 0.1}'
    )
    parser.add_argument("--stay", action="store_true", help="go on when standard input ends")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser


def _serve_parent() -> int:
    """Take settings and commands as lines of JSON; answer each with one."""
    first = sys.stdin.buffer.readline()
    if not first:
        return 0
    settings = orjson.loads(first)
    try:
        config = FakeConfig.from_json(settings["config"])
        fake = FakeOllama.from_config(config, ledger=settings["ledger"], port=settings["port"]).start()
    except Exception as exc:  # whatever it is, the parent is told
        _say({"error": f"{type(exc).__name__}: {exc}"})
        return 1
    with fake, suppress(KeyboardInterrupt):
        _say({"port": fake.port})
        for line in sys.stdin.buffer:
            _say(_obey(fake, orjson.loads(line)))
    return 0


def _obey(fake: FakeOllama, command: dict[str, Any]) -> dict[str, Any]:
    try:
        if command["do"] == "inject":
            fake.inject(Fault.from_json(command["fault"]))
        elif command["do"] in ("clear_faults", "stop", "restart", "hold", "release"):
            getattr(fake, command["do"])()
        elif command["do"] == "take_error":
            raised = fake._take_error()
            return {"said": None if raised is None else "".join(traceback.format_exception(raised))}
        elif command["do"] == "memory_used_bytes":
            return {"said": fake.memory_used_bytes()}
        else:
            return {"error": f"unknown command {command['do']!r}"}
    except Exception as exc:  # whatever it is, the parent is told
        return {"error": f"{type(exc).__name__}: {exc}"}
    return {"ok": True}


def _say(data: dict[str, Any]) -> None:
    sys.stdout.buffer.write(orjson.dumps(data) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main())
