"""The fake engine: models, loads, slots, contexts and answers, without any HTTP."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from math import inf
from time import monotonic, perf_counter_ns
from typing import Any

from ollama_batch.testing import _answers
from ollama_batch.testing._answer import Answer, limit
from ollama_batch.testing._asks import LOAD_OPTIONS, Ask, Refusal, check_format, keep_alive_s
from ollama_batch.testing._prompts import fit
from ollama_batch.testing._replies import Replies
from ollama_batch.testing._runner import Card, Runner, died
from ollama_batch.testing._slots import Slot, SlotPool
from ollama_batch.testing.config import CostModel, FakeConfig, FakeModel, full_name
from ollama_batch.testing.faults import BUSY, Fault
from ollama_batch.testing.ledger import Ledger

FOREVER = timedelta(days=365 * 292)  # what a Go duration holds at most
PROMPT_NS, EVAL_NS = 1_000, 10_000  # nominal durations per token where no speed is set


@dataclass(slots=True)
class Running:
    """A completion that holds its place in a loaded model until `Ollama.end`."""

    runner: Runner
    slot: Slot | None
    answer: Answer
    started_ns: int
    keep_s: float


class Ollama:
    """What answers requests. Lives on one event loop."""

    def __init__(self, config: FakeConfig, ledger: Ledger, replies: Replies) -> None:
        self.config = config
        self.models = {model.name: model for model in config.models}
        self.digests = {model.name: model.digest for model in config.models}
        self._ledger = ledger
        self._runners: dict[str, Runner] = {}
        self._loading = asyncio.Lock()
        self._pending = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self._replies = replies
        self._rng = random.Random(config.seed)  # noqa: S311 - spreads latencies, not a secret
        self._card = Card(config.memory)
        self._deaths: dict[asyncio.Task[Any], Refusal] = {}
        self._with_slots = config.speed is not None or config.reports_cached

    def forget(self) -> None:
        """Lose all loaded models, as a server that is started again has."""
        self._runners.clear()
        self._loading = asyncio.Lock()
        self._pending = 0

    def model(self, name: str) -> FakeModel:
        """The model of that name. Raises Refusal."""
        if not name:
            raise Refusal(400, "model is required")
        found = self.models.get(name) or self.models.get(full_name(name))
        if found is None:
            raise Refusal(404, f"model '{name}' not found")
        return found

    def swap(self, name: str) -> None:
        """Give a model another digest, as `ollama pull` of a newer one does."""
        model = self.models.get(full_name(name))
        if model is not None:
            self.digests[model.name] = sha256(self.digests[model.name].encode()).hexdigest()

    def stick(self, name: str) -> None:
        """Make a loaded model one that never finishes to unload."""
        runner = self._runners.get(full_name(name))
        if runner is not None:
            runner.stuck, runner.expires = True, min(runner.expires, monotonic())

    def fail(self, runner: Runner, said: Refusal, *, dead: bool) -> Refusal:
        """Let every request that uses `runner` end with `said`, which is for the caller to raise.

        With `dead` its process is gone: the next request loads the model again.
        """
        if dead and self._runners.get(runner.model.name) is runner:
            del self._runners[runner.model.name]
        for task in runner.others():
            if task not in self._deaths:
                self._deaths[task] = said
                task.cancel()
        return said

    def death_of_this(self) -> Refusal | None:
        """Why the present task was cancelled, if a runner's death was the reason. It then goes on."""
        task = asyncio.current_task()
        said = None if task is None else self._deaths.pop(task, None)
        if said is not None and task is not None:
            task.uncancel()
        return said

    def memory_used_bytes(self) -> int:
        """What is taken on the card, in bytes."""
        self._expire()
        return self._card.used(self._runners.values())

    def num_ctx(self, ask: Ask, model: FakeModel) -> int:
        """The context length the request resolves to, in tokens."""
        wanted = ask.options.get("num_ctx") or model.num_ctx or self.config.num_ctx
        return max(min(int(wanted), model.context_length), 4)

    def check(self, ask: Ask) -> FakeModel:
        """The model asked for. Raises Refusal for what it cannot do."""
        model = self.model(ask.model)
        if ask.think and not model.thinking:
            raise Refusal(400, f'"{ask.model}" does not support thinking')
        if ask.tools and not model.tools:
            raise Refusal(400, f"{ask.model} does not support tools")
        check_format(ask.format)
        return model

    async def load(self, ask: Ask) -> Answer:
        """Load a model, or let it go with `keep_alive` 0, as a request without a prompt does."""
        started = perf_counter_ns()
        model = self.check(ask)
        keep_s = keep_alive_s(ask.keep_alive)
        if keep_s == 0:
            runner = self._runners.get(model.name)
            if runner is not None:
                runner.expires = min(runner.expires, monotonic())
                self._expire()
            return Answer(ask.model, "", done_reason="unload")
        runner = await self._runner(ask, model)
        runner.leave(keep_s)
        load_ns = perf_counter_ns() - started
        return Answer(ask.model, "", done_reason="load", load_ns=load_ns, total_ns=load_ns)

    async def begin(self, ask: Ask, digest: str, *, dies: Fault | None = None) -> Running:
        """Load, wait for a slot and evaluate the prompt; `end` must follow. Raises Refusal.

        Of `dies` the runner dies, once it has worked on the request for its `for_s` seconds.
        """
        started = perf_counter_ns()
        model = self.check(ask)
        keep_s = keep_alive_s(ask.keep_alive)
        runner = await self._runner(ask, model)
        slot: Slot | None = None
        working = False
        try:
            load_ns = perf_counter_ns() - started
            if not self.gate.is_set():
                await self.gate.wait()
            prompt, count = fit(ask, runner.num_ctx, rendered=model.rendered, unit=self.config.tokenizer)
            if runner.pool is not None:
                slot = await runner.pool.acquire(prompt)
            runner.working += 1
            working = True
            if dies is not None:
                await _sleep(dies.for_s or 0.0)
                raise self.fail(runner, died(dies), dead=True)
            answer = self._answer(ask, model, runner.num_ctx, digest, count)
            answer.load_ns = load_ns
            self._card.grow(runner, answer.prompt_tokens)
            self._check_memory(runner)
            self._time(answer, slot)
            speed = self.config.speed
            if speed is not None:
                await _sleep(speed.prefill_s(count - (answer.cached or 0)))
                if not self.config.reports_cached:
                    answer.cached = None
                self._jitter(answer, speed)
            return Running(runner, slot, answer, started, keep_s)
        except BaseException:
            runner.working -= working
            if slot is not None and runner.pool is not None:
                runner.pool.release(slot)
            runner.leave(keep_s)
            raise

    async def generate(self, running: Running) -> None:
        """Take the time that generating the answer takes. Raises Refusal if memory runs out by it."""
        await _sleep(running.answer.decode_s)
        self.generated(running)

    def generated(self, running: Running) -> None:
        """Count what was generated. Raises Refusal if memory runs out by it."""
        self._card.grow(running.runner, running.answer.eval_tokens)
        self._check_memory(running.runner)

    def finish(self, running: Running) -> None:
        """Fill in the total time, once everything is generated."""
        answer = running.answer
        parts = answer.load_ns + answer.prompt_ns + answer.eval_ns
        answer.total_ns = max(perf_counter_ns() - running.started_ns, parts)

    def end(self, running: Running) -> None:
        """Give the slot and the model back."""
        running.runner.working -= 1
        if running.slot is not None and running.runner.pool is not None:
            running.runner.pool.release(running.slot)
        running.runner.leave(running.keep_s)
        if running.keep_s == 0:
            self._expire()

    def loaded(self) -> list[dict[str, Any]]:
        """The entries of `/api/ps`."""
        self._expire()
        now, wall = monotonic(), datetime.now(UTC)
        entries = []
        for runner in self._runners.values():
            model = runner.model
            if runner.stuck:  # a time that is past: `ollama ps` shows it as "Stopping..."
                left = timedelta(seconds=runner.expires - now)
            elif runner.keep_s == inf:
                left = FOREVER
            else:
                left = timedelta(seconds=runner.keep_s if runner.active else runner.expires - now)
            entries.append(
                {
                    "name": model.name,
                    "model": model.name,
                    "size": runner.size,
                    "digest": runner.settings[0],
                    "details": details(model),
                    "expires_at": _rfc3339(wall + left),
                    "size_vram": runner.vram,
                    "context_length": runner.num_ctx,
                }
            )
        return entries

    def _check_memory(self, runner: Runner) -> None:
        lack = self._card.lack(runner, self._runners.values())
        if lack is not None:
            raise self.fail(runner, lack, dead=self._card.lack_kills)

    def _expire(self) -> None:
        now = monotonic()
        for name, runner in list(self._runners.items()):
            if not runner.stuck and runner.active == 0 and runner.expires <= now:
                del self._runners[name]

    async def _runner(self, ask: Ask, model: FakeModel) -> Runner:
        num_ctx = self.num_ctx(ask, model)
        gpu = ask.options.get("num_gpu")
        given = {name: ask.options[name] for name in LOAD_OPTIONS if ask.options.get(name) is not None}
        if gpu == -1:
            del given["num_gpu"]
        given["num_ctx"], given["shift"] = num_ctx, ask.shift
        settings = (self.digests[model.name], *sorted(given.items()))
        self._expire()
        runner = self._runners.get(model.name)
        if runner is not None and runner.stuck:
            await asyncio.Event().wait()
        if runner is None or runner.settings != settings:
            runner = await self._load(model, settings, given)
        runner.enter()
        return runner

    async def _load(self, model: FakeModel, settings: tuple[Any, ...], given: Mapping[str, Any]) -> Runner:
        if self._pending >= self.config.max_queue:
            raise Refusal(503, BUSY)
        self._pending += 1
        try:
            async with self._loading:  # one load at a time
                runner = self._runners.get(model.name)
                if runner is not None and runner.settings == settings:
                    return runner
                while runner is not None and runner.active:
                    runner.drained = asyncio.Event()
                    await runner.drained.wait()
                speed = self.config.speed
                if speed is not None:
                    try:
                        await _sleep(speed.load_s * speed.time_scale)
                    except asyncio.CancelledError:  # a load belongs to the request that began it
                        self._ledger.load_aborted({"model": model.name, **given})
                        raise
                pool = None
                if self._with_slots:
                    pool = SlotPool(self.config.slots, prefix_cache=speed is None or speed.prefix_cache)
                num_ctx = int(given["num_ctx"])
                size = self._card.loaded_bytes(model, num_ctx, self.config.slots, given.get("num_batch"))
                runner = Runner(model, settings, num_ctx, pool, size)
                self._make_room(runner)
                self._runners[model.name] = runner
                self._ledger.loaded({"model": model.name, **given})
                return runner
        finally:
            self._pending -= 1

    def _make_room(self, new: Runner) -> None:
        """Send idle models away until `new` fits, and place it. Raises Refusal."""
        self._runners.pop(new.model.name, None)
        for name, runner in list(self._runners.items()):
            if not self._card.fits(new.size, self._runners.values()) and not (runner.active or runner.stuck):
                del self._runners[name]
        self._card.place(new, self._runners.values())

    def _answer(self, ask: Ask, model: FakeModel, num_ctx: int, digest: str, prompt_tokens: int) -> Answer:
        given = self._replies.to(ask.body)
        source = b""
        text, thinking = given.text, given.thinking
        thinks = model.thinking and ask.think is not False
        if text is None or (thinking is None and thinks):
            source = _answers.answer_bytes(self.config.seed, model.name, digest, ask.sampling)
        if text is None:
            if given.tool_calls:
                text = ""
            elif ask.format:
                text = _answers.json_text(ask.format, source)
            else:
                text = _answers.words(source)
        if thinking is None:
            thinking = _answers.thoughts(source) if thinks else ""
        for stop in ask.options.get("stop") or ():
            text = text.partition(stop)[0]
        answer = Answer(ask.model, text, thinking, given.tool_calls, prompt_tokens=prompt_tokens)
        if given.done_reason is None:
            limit(answer, int(ask.options.get("num_predict") or -1), num_ctx, ask.shift)
        else:
            answer.done_reason = given.done_reason
            answer.eval_tokens = len(text.split()) + len(thinking.split())
        answer.done, answer.body, answer.status = given.done, given.body, given.status
        if given.prompt_tokens is not None:
            answer.prompt_tokens = given.prompt_tokens
        if given.completion_tokens is not None:
            answer.eval_tokens = given.completion_tokens
        answer.cached = given.cached_tokens
        answer.decode_s = given.delay_s
        return answer

    def _jitter(self, answer: Answer, speed: CostModel) -> None:
        """Let generating it take a while longer."""
        longer_s = speed.jitter_s * speed.time_scale * self._rng.random()
        answer.decode_s += longer_s
        answer.eval_ns += int(longer_s * 1e9)

    def _time(self, answer: Answer, slot: Slot | None) -> None:
        if slot is not None and answer.cached is None:
            shared = slot.shared if self.config.tokenizer == "words" else slot.shared // 4
            answer.cached = max(
                min(shared, answer.prompt_tokens - 1), 0
            )  # the last token is always evaluated
        new = answer.prompt_tokens - (answer.cached or 0)
        speed = self.config.speed
        prefill_s, decode_s = (
            (0.0, 0.0) if speed is None else (speed.prefill_s(new), speed.decode_s(answer.eval_tokens))
        )
        if speed is not None:
            # Spent in the slot: a real server would not report it as a wait for one.
            decode_s += speed.latency_s * speed.time_scale
        answer.decode_s += decode_s
        answer.prompt_ns = int(prefill_s * 1e9) or new * PROMPT_NS
        answer.eval_ns = int(decode_s * 1e9) or answer.eval_tokens * EVAL_NS


def details(model: FakeModel) -> dict[str, Any]:
    """The `details` object that several routes give of a model."""
    return {
        "parent_model": "",
        "format": "gguf",
        "family": model.family,
        "families": [model.family],
        "parameter_size": "1B",
        "quantization_level": "Q4_0",
    }


def now() -> str:
    """The present time as Ollama writes it."""
    return _rfc3339(datetime.now(UTC))


def _rfc3339(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


async def _sleep(seconds: float) -> None:
    if seconds > 0:
        await asyncio.sleep(seconds)
