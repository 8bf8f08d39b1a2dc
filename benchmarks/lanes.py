"""What several conversations side by side gain over one.

Parts, one file of figures each (`--part` runs some of them):

- fake: four lanes against one on a fake Ollama with four slots, whose answers take their time.
- engine: the same on real llama.cpp, beside a bare loader that holds as many conversations and no more.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp
import harness
import toy_engine
from harness import Goal, Outcome

from ollama_batch import BatchRequest, BatchRunner
from ollama_batch.conversation import ConversationPolicy
from ollama_batch.events import Event, RowFinished, RowSent
from ollama_batch.testing import CostModel, FakeModel, FakeOllama
from ollama_batch.testing.toy import toy_gguf


class Clock:
    """A hook that keeps when rows were sent, and how long each lane had one with the engine."""

    def __init__(self) -> None:
        self._sent: dict[int, float] = {}
        self.busy: dict[int, list[tuple[float, float]]] = defaultdict(list)

    def on_event(self, event: Event) -> None:
        if isinstance(event, RowSent):
            self._sent[event.index] = time.monotonic()
        elif isinstance(event, RowFinished):
            result = event.result
            assert result.lane is not None
            assert result.latency_s is not None
            sent = self._sent[result.index]
            self.busy[result.lane].append((sent, sent + result.latency_s))

    def share(self) -> float:
        """The share of the lanes' time spent with the engine, until the first of them has no rows left."""
        begin = min(sent for spans in self.busy.values() for sent, _ in spans)
        dry = min(max(end for _, end in spans) for spans in self.busy.values())
        inside = sum(max(0.0, min(end, dry) - sent) for spans in self.busy.values() for sent, end in spans)
        return inside / (len(self.busy) * (dry - begin))


def part_fake(found: Any) -> Outcome:
    count, pairs = (24, 1) if found.quick else (found.rows, found.pairs)
    speed = CostModel(prefill_tps=2000.0, decode_tps=120.0)
    rows = toy_engine.make_rows(count, head=300, own=60)
    taken = []
    with FakeOllama.spawn(models=(FakeModel(harness.MODEL),), slots=4, speed=speed) as fake:
        for pair, name in harness.alternate(["1", "4"], pairs):
            lanes = int(name)
            clock = Clock()
            runner = BatchRunner(
                model=harness.MODEL,
                base_url=fake.url,
                mode="conversation",
                conversation=ConversationPolicy(lanes=lanes),
                num_ctx=32_768,
                max_tokens=256,
                on_length="keep",
                state_dir=None,
                progress="none",
                hooks=[clock],
            )
            _, wall_s = toy_engine.run_all(runner, rows)
            figures = {"wall_s": wall_s, "rows_per_s": count / wall_s, "busy": clock.share()}
            taken.append({"lanes": lanes, "pair": pair, **figures})
            print(f"pair {pair + 1}/{pairs}, {lanes} lanes: {taken[-1]}", flush=True)
    gains = gains_of(taken, "rows_per_s")
    busy = [one["busy"] * 100 for one in taken if one["lanes"] == 4]
    goals = [
        Goal("throughput of 4 lanes against 1 (median of pairs)", harness.median(gains), 3.5, "x", True),
        Goal("lanes busy until the first has no rows left, worst run", min(busy), 95.0, " %", True),
    ]
    table = []
    for lanes in (1, 4):
        mine = [one for one in taken if one["lanes"] == lanes]
        rate, share = (harness.median([one[key] for one in mine]) for key in ("rows_per_s", "busy"))
        table.append([lanes, pairs, rate, share * 100])
    columns = ["lanes", "runs", "rows/s", "lanes busy %"]
    notes = [
        f"{count} rows; a second for {speed.prefill_tps:g} new prompt or {speed.decode_tps:g} answer tokens",
        "busy: from a request's sending to its complete answer",
    ]
    return Outcome("lanes_fake", harness.command_line(), columns, table, goals, taken, notes, found.quick)


def gains_of(taken: Sequence[dict[str, Any]], key: str, **only: Any) -> list[float]:
    """4 lanes over 1 in each pair of the measurements that have what `only` says."""
    chosen = [one for one in taken if all(one[name] == value for name, value in only.items())]
    by = {(one["lanes"], one["pair"]): one[key] for one in chosen}
    return [by[4, pair] / by[1, pair] for lanes, pair in sorted(by) if lanes == 4]


async def bare(url: str, rows: Sequence[BatchRequest], lanes: int, fields: Mapping[str, Any]) -> float:
    """Wall seconds of `lanes` growing conversations over these rows, with nothing beside them."""

    async def hold(mine: Sequence[BatchRequest], session: aiohttp.ClientSession) -> None:
        messages = list(mine[0].messages[:1])
        for row in mine:
            messages.append(row.messages[1])
            body = {"model": harness.MODEL, "messages": messages, **fields}
            async with session.post(f"{url}/v1/chat/completions", json=body) as reply:
                reply.raise_for_status()
                messages.append((await reply.json())["choices"][0]["message"])

    started = time.monotonic()
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        await asyncio.gather(*(hold(rows[lane::lanes], session) for lane in range(lanes)))
    return time.monotonic() - started


def part_engine(found: Any) -> Outcome:
    count, pairs = (16, 1) if found.quick else (found.engine_rows, found.pairs)
    rows = toy_engine.make_rows(count, head=200, own=60)
    answers = toy_engine.of_one_length()
    num_ctx = 256 * (1 + (200 + count * (60 + found.answer + 16)) * 5 // 4 // 256)
    taken = []
    for pair, which in harness.alternate(["bare 1", "bare 4", "ours 1", "ours 4"], pairs):
        client, _, number = which.partition(" ")
        lanes = int(number)
        options = {"slots": 4, "num_ctx": num_ctx, "extra_body": answers}
        with toy_engine.toy_engine(gguf=toy_gguf(size_mib=found.size_mib), **options) as engine:
            if client == "bare":
                url = str(engine.url).rstrip("/").removesuffix("/v1")
                wall_s = asyncio.run(bare(url, rows, lanes, {**answers, "max_tokens": found.answer}))
            else:
                runner = BatchRunner(
                    model=harness.MODEL,
                    engine=engine,
                    mode="conversation",
                    conversation=ConversationPolicy(lanes=lanes, high=1.0),
                    max_tokens=found.answer,
                    on_length="keep",
                    state_dir=None,
                    progress="none",
                )
                _, wall_s = toy_engine.run_all(runner, rows)
            grown = toy_engine.evaluated(engine)
        figures = {"wall_s": wall_s, "rows_per_s": count / wall_s, "evaluated": grown}
        taken.append({"client": client, "lanes": lanes, "pair": pair, **figures})
        print(f"pair {pair + 1}/{pairs}: {taken[-1]}", flush=True)
    gains = {client: gains_of(taken, "rows_per_s", client=client) for client in ("bare", "ours")}
    shares = [ours / theirs for ours, theirs in zip(gains["ours"], gains["bare"], strict=True)]
    text = "gain of 4 lanes over 1 against a bare loader's (median of pairs)"
    goals = [Goal(text, harness.median(shares), 0.9, "x", True)]
    table = []
    for client, lanes in itertools.product(gains, (1, 4)):
        mine = [one for one in taken if (one["client"], one["lanes"]) == (client, lanes)]
        rate, grown = (harness.median([one[key] for one in mine]) for key in ("rows_per_s", "evaluated"))
        gain = harness.median(gains[client]) if lanes == 4 else None
        table.append([client, lanes, rate, round(grown), gain])
    columns = ["client", "lanes", "rows/s", "prompt tokens evaluated", "gain"]
    notes = [
        f"{count} rows, {pairs} alternating pairs, requests of 60 and answers of {found.answer} tokens",
        f"4 slots of {num_ctx} tokens, a model of {found.size_mib} MiB; nothing is trimmed",
    ]
    return Outcome("lanes_engine", harness.command_line(), columns, table, goals, taken, notes, found.quick)


PARTS = {"fake": part_fake, "engine": part_engine}


def main() -> int:
    args = harness.parser(__doc__)
    args.add_argument("--pairs", type=int, default=3)
    args.add_argument("--rows", type=int, default=120, help="of fake")
    args.add_argument("--engine-rows", type=int, default=32, help="of engine")
    args.add_argument("--answer", type=int, default=64, help="answer tokens of engine")
    args.add_argument("--size-mib", type=int, default=100, help="the model of engine")
    return harness.run_parts(args, PARTS)


if __name__ == "__main__":
    sys.exit(main())
