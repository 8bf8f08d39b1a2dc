"""Client CPU and memory per request: ollama_batch beside what one would use instead.

Every client runs in fresh processes over 1,000 and over 5,000 rows of 4.5 KB at concurrency 8, against a
server in a process of its own that answers at once. The difference of the two, divided by the difference
in rows, is the marginal cost: start-up and imports cancel. CPU is user plus system time of the whole
client process, all threads. Peers that need an environment of their own are given by its interpreter:

    python benchmarks/client_cpu.py --curator-python PATH --litellm-python PATH --inspect-python PATH
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import clients
import harness
from harness import MIB, Goal, Outcome

HOME = ("sockets", "aiohttp", "httpx", "openai", "ollama_batch")


def main() -> None:
    args = harness.parser(__doc__)
    args.add_argument("--pairs", type=int, default=7)
    args.add_argument("--peer-pairs", type=int, default=3, help="pairs for curator, litellm and inspect_ai")
    args.add_argument("--rows", type=int, nargs=2, default=(1000, 5000), metavar=("FEW", "MANY"))
    args.add_argument("--concurrency", type=int, default=8)
    args.add_argument("--clients", nargs="+", choices=HOME, default=list(HOME))
    args.add_argument("--curator-python")
    args.add_argument("--litellm-python")
    args.add_argument("--inspect-python")
    found = args.parse_args()
    few, many = (100, 500) if found.quick else found.rows
    pairs = 1 if found.quick else found.pairs
    peers = {
        name: str(Path(python).absolute())
        for name, python in (
            ("curator", found.curator_python),
            ("litellm", found.litellm_python),
            ("inspect_ai", found.inspect_python),
        )
        if python
    }
    taken: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, harness.fast_server() as url:
        folder = Path(name)
        inputs = {count: folder / f"in-{count}.jsonl" for count in (few, many)}
        for count, path in inputs.items():
            harness.write_rows(path, count)

        def once(client: str, pair: int) -> dict[str, Any]:
            cost = {}
            for count in (few, many) if pair % 2 == 0 else (many, few):
                with tempfile.TemporaryDirectory(dir=folder) as out:
                    line = clients.command(
                        client,
                        input=inputs[count],
                        output=Path(out) / "out.jsonl",
                        url=url,
                        concurrency=found.concurrency,
                        python=peers.get(client),
                    )
                    cost[count] = harness.measure(line)
                    if cost[count].stdout.get("rows") != count:
                        raise RuntimeError(f"{client} answered {cost[count].stdout} for {count} rows")
            more = many - few
            return {
                "client": client,
                "pair": pair,
                "cpu_ms_per_request": (cost[many].cpu_s - cost[few].cpu_s) / more * 1000,
                "wall_ms_per_request": (cost[many].wall_s - cost[few].wall_s) / more * 1000,
                "rss_mib_per_1000": (cost[many].peak_rss_bytes - cost[few].peak_rss_bytes)
                / MIB
                / more
                * 1000,
                "peak_rss_mib": cost[many].peak_rss_bytes / MIB,
                "start_s": cost[few].wall_s - (cost[few].work_s or 0),
            }

        for pair, client in harness.alternate(found.clients, pairs):
            taken.append(once(client, pair))
            print(f"pair {pair + 1}/{pairs} {client}: {taken[-1]['cpu_ms_per_request']:.3f} ms", flush=True)
        for pair, client in harness.alternate(list(peers), 1 if found.quick else found.peer_pairs):
            taken.append(once(client, pair))
            print(f"peer pair {pair + 1} {client}: {taken[-1]['cpu_ms_per_request']:.3f} ms", flush=True)

    names = [*found.clients, *peers]
    figures = ("cpu_ms_per_request", "wall_ms_per_request", "rss_mib_per_1000", "peak_rss_mib", "start_s")
    found_medians = {
        client: {key: harness.median([t[key] for t in taken if t["client"] == client]) for key in figures}
        for client in names
    }

    def ratio(other: str) -> float | None:
        """Median over the pairs of ours against `other` in the same pair."""
        by = {(t["client"], t["pair"]): t["cpu_ms_per_request"] for t in taken}
        values = [
            by["ollama_batch", p] / by[other, p]
            for p in range(pairs)
            if ("ollama_batch", p) in by and (other, p) in by
        ]
        return harness.median(values) if values else None

    columns = [
        "client",
        "CPU ms/request",
        "wall ms/request",
        "MiB per 1,000 rows",
        f"peak MiB at {many:,}",
        "start s",
    ]
    rows: list[list[Any]] = [[client, *(found_medians[client][key] for key in figures)] for client in names]
    goals = [
        Goal("CPU per request against a bare aiohttp loop", ratio("aiohttp"), 4.0, "x"),
        Goal("CPU per request against an openai SDK loop", ratio("openai"), 0.45, "x"),
    ]
    peer_pairs = 1 if found.quick else found.peer_pairs
    notes = [
        f"medians of {pairs} alternating pairs ({peer_pairs} for peers in environments of their own)",
        f"{few:,} against {many:,} rows of 4.5 KB, concurrency {found.concurrency}",
        "start s: interpreter start and imports, before the first row is read",
    ]
    Outcome("client_cpu", harness.command_line(), columns, rows, goals, taken, notes, found.quick).publish()


if __name__ == "__main__":
    main()
