"""Throughput where the engine is the limit: real llama.cpp, 4 slots, 64 answer tokens a row.

The model has random weights and about 100 MB; `ignore_eos` makes every answer exactly as long for every
client. Each run is long enough (60 s and more) for a pair to mean something; ollama_batch and a bare
socket loader alternate, the peers follow with fewer pairs. All clients run in processes of their own
and share the machine's cores with the engine, as they do in real life.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clients
import harness
from harness import HERE, Goal, Outcome

ANSWER_TOKENS = 64
BODY_BYTES = 1800


def serve(slots: int, size_mib: int) -> None:
    """Hold the engine until stdin closes (this script's own child: `--serve`)."""
    import asyncio

    from ollama_batch.engines import EmbeddedEngine
    from ollama_batch.testing.toy import write_toy_gguf

    async def go() -> None:
        with tempfile.TemporaryDirectory() as name:
            gguf = Path(name) / "toy.gguf"
            write_toy_gguf(gguf, size_mib=size_mib)
            # the alias is the model name that the rows carry, so that all clients send the same bytes
            engine = EmbeddedEngine(gguf=gguf, slots=slots, num_ctx=2048, alias=harness.MODEL)
            try:
                await engine.describe(harness.MODEL)
                print(json.dumps({"url": engine.url.rstrip("/").removesuffix("/v1")}), flush=True)
                await asyncio.to_thread(sys.stdin.read)
            finally:
                await engine.aclose()

    asyncio.run(go())


@contextlib.contextmanager
def engine(slots: int, size_mib: int) -> Iterator[str]:
    line = [
        sys.executable,
        str(HERE / "engine_bound.py"),
        "--serve",
        "--slots",
        str(slots),
        "--size-mib",
        str(size_mib),
    ]
    with harness.serving(line) as url:
        yield url


def main() -> None:
    args = harness.parser(__doc__)
    args.add_argument("--pairs", type=int, default=7)
    args.add_argument("--peer-pairs", type=int, default=2)
    args.add_argument("--seconds", type=float, default=65.0, help="how long a run should last at least")
    args.add_argument("--slots", type=int, default=4)
    args.add_argument("--size-mib", type=int, default=100)
    args.add_argument("--curator-python")
    args.add_argument("--serve", action="store_true", help="hold the engine (used by this script itself)")
    found = args.parse_args()
    if found.serve:
        serve(found.slots, found.size_mib)
        return
    pairs, peer_pairs = (1, 1) if found.quick else (found.pairs, found.peer_pairs)
    seconds = 6.0 if found.quick else found.seconds
    pythons = {"curator": str(Path(found.curator_python).absolute())} if found.curator_python else {}
    options: dict[str, dict[str, Any]] = {
        "ollama_batch": {
            "api": "openai",
            "extra_body": {"ignore_eos": True},
            "runner": {"on_length": "keep", "max_tokens": ANSWER_TOKENS, "num_ctx": 2048},
        }
    }
    fields = {"max_tokens": ANSWER_TOKENS}
    failed: list[str] = []
    taken: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, engine(found.slots, found.size_mib) as url:
        folder = Path(name)
        bare, ours = folder / "bare.jsonl", folder / "ours.jsonl"

        def write(count: int) -> None:
            """The same rows twice: an engine's own extension goes into the body, or into `extra_body`."""
            harness.write_rows(bare, count, body_bytes=BODY_BYTES, **fields, ignore_eos=True)
            harness.write_rows(ours, count, body_bytes=BODY_BYTES, **fields)

        def once(client: str, count: int) -> dict[str, Any]:
            with tempfile.TemporaryDirectory(dir=folder) as out:
                line = clients.command(
                    client,
                    input=ours if client == "ollama_batch" else bare,
                    output=Path(out) / "out.jsonl",
                    url=url,
                    concurrency=found.slots,
                    python=pythons.get(client),
                    options=options.get(client),
                )
                cost = harness.measure(line)
            if cost.stdout.get("rows") != count or not cost.work_s:
                raise RuntimeError(f"{client} answered {json.dumps(dict(cost.stdout))} for {count} rows")
            return {
                "client": client,
                "rows": count,
                "work_s": cost.work_s,
                "rows_per_s": count / cost.work_s,
                "tokens_per_s": count * ANSWER_TOKENS / cost.work_s,
                "cpu_ms_per_row": cost.cpu_s / count * 1000,
            }

        probe = 8 * found.slots
        write(probe)
        once("sockets", probe)  # the engine's first rows are not typical
        rate = once("sockets", probe)["rows_per_s"]
        count = max(probe, math.ceil(rate * seconds * 1.05))
        write(count)
        print(f"{rate:.2f} rows/s: {count} rows a run", flush=True)

        def run(names: list[str], repeats: int, label: str) -> None:
            for pair, client in harness.alternate(names, repeats):
                try:
                    measured = once(client, count)
                except RuntimeError as error:  # a peer that fails takes nothing from the others
                    if label == "goal":
                        raise
                    failed.append(f"{client} did not complete a run")
                    print(f"{failed[-1]}: {error}", flush=True)
                    continue
                taken.append({"group": label, "pair": pair, **measured})
                last = taken[-1]
                print(
                    f"{label} pair {pair + 1}/{repeats} {client}: {last['rows_per_s']:.3f} rows/s", flush=True
                )

        run(["sockets", "ollama_batch"], pairs, "goal")
        run(["sockets", "openai", "aiohttp", *pythons], peer_pairs, "peers")

    def ratios(client: str, label: str) -> list[float]:
        by = {(t["client"], t["pair"]): t["rows_per_s"] for t in taken if t["group"] == label}
        return [by[client, p] / by["sockets", p] for c, p in sorted(by) if c == client]

    rows: list[list[Any]] = []
    for client, label in [
        ("sockets", "goal"),
        ("ollama_batch", "goal"),
        *((c, "peers") for c in ("openai", "aiohttp", *pythons)),
    ]:
        mine = [t for t in taken if t["client"] == client and t["group"] == label]
        if not mine:
            continue
        rows.append(
            [
                client,
                len(mine),
                harness.median([t["rows_per_s"] for t in mine]),
                harness.median([t["tokens_per_s"] for t in mine]),
                harness.median(ratios(client, label)),
                " ".join(f"{value:.3f}" for value in ratios(client, label)),
            ]
        )
    shortest = min(t["work_s"] for t in taken)
    goals = [
        Goal(
            "throughput against bare sockets (median of pairs)",
            harness.median(ratios("ollama_batch", "goal")),
            0.97,
            "",
            True,
        ),
        Goal("shortest run of a pair, seconds", shortest, 6.0 if found.quick else 60.0, " s", True),
    ]
    columns = ["client", "pairs", "rows/s", "answer tokens/s", "ratio to sockets", "every pair"]
    notes = [
        f"{count} rows a run, {found.slots} slots and workers, {ANSWER_TOKENS} answer tokens each",
        f"model of {found.size_mib} MiB; time from the first row read to the last output written",
        *dict.fromkeys(failed),
    ]
    Outcome("engine_bound", harness.command_line(), columns, rows, goals, taken, notes, found.quick).publish()


if __name__ == "__main__":
    main()
