"""The fake engine: models, loads, slots, contexts and answers, without any HTTP."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from math import inf
from time import monotonic, perf_counter_ns
from typing import Any

from ollama_batch.testing import _answers
from ollama_batch.testing._asks import LOAD_OPTIONS, Ask, Refusal, check_format, keep_alive_s
from ollama_batch.testing._prompts import fit
from ollama_batch.testing._slots import Slot, SlotPool
from ollama_batch.testing.config import FakeConfig, FakeModel, FakeReply, full_name
from ollama_batch.testing.faults import BUSY
from ollama_batch.testing.ledger import Ledger

FOREVER = timedelta(days=365 * 292)  # what a Go duration holds at most
PROMPT_NS, EVAL_NS = 1_000, 10_000  # nominal durations per token where no speed is set
_WORD = re.compile(r"\s*\S+")


@dataclass(slots=True)
class Answer:
    """A completion in the making. Durations are nanoseconds; `cached` is None where it is not reported."""

    model: str
    text: str
    thinking: str = ""
    tool_calls: Sequence[Mapping[str, Any]] = ()
    done: bool = True
    done_reason: str = "stop"
    prompt_tokens: int = 0
    cached: int | None = None
    eval_tokens: int = 0
    total_ns: int = 0
    load_ns: int = 0
    prompt_ns: int = 0
    eval_ns: int = 0
    fault: str = ""
    body: str | Mapping[str, Any] | None = None
    status: int = 200
    decode_s: float = 0.0


@dataclass(slots=True)
class Running:
    """A completion that holds its place in a loaded model until `Ollama.end`."""

    runner: Runner
    slot: Slot | None
    answer: Answer
    started_ns: int
    keep_s: float


class Runner:
    """A loaded model."""

    def __init__(
        self, model: FakeModel, settings: tuple[Any, ...], num_ctx: int, pool: SlotPool | None
    ) -> None:
        self.model = model
        self.settings = settings
        self.num_ctx = num_ctx
        self.pool = pool
        self.active = 0
        self.expires = inf
        self.keep_s = 300.0
        self.drained: asyncio.Event | None = None

    def leave(self, keep_s: float) -> None:
        """One request less uses the model, which stays loaded for `keep_s` more seconds."""
        self.active -= 1
        self.keep_s = keep_s
        self.expires = monotonic() + keep_s
        if self.active == 0 and self.drained is not None:
            self.drained.set()


class Ollama:
    """What answers requests. Lives on one event loop."""

    def __init__(self, config: FakeConfig, ledger: Ledger) -> None:
        self.config = config
        self.models = {model.name: model for model in config.models}
        self.digests = {model.name: model.digest for model in config.models}
        self._ledger = ledger
        self._runners: dict[str, Runner] = {}
        self._loading = asyncio.Lock()
        self._pending = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self._reply: Callable[[Mapping[str, Any]], str | FakeReply | None] | None = None
        if callable(config.reply):
            self._reply = config.reply
        elif config.reply is not None:
            fixed = config.reply
            self._reply = lambda _: fixed
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
                runner.expires = 0.0
                self._expire()
            return Answer(ask.model, "", done_reason="unload")
        runner = await self._runner(ask, model)
        runner.leave(keep_s)
        load_ns = perf_counter_ns() - started
        return Answer(ask.model, "", done_reason="load", load_ns=load_ns, total_ns=load_ns)

    async def begin(self, ask: Ask, digest: str) -> Running:
        """Load, wait for a slot and evaluate the prompt; `end` must follow. Raises Refusal."""
        started = perf_counter_ns()
        model = self.check(ask)
        keep_s = keep_alive_s(ask.keep_alive)
        runner = await self._runner(ask, model)
        slot: Slot | None = None
        try:
            load_ns = perf_counter_ns() - started
            if not self.gate.is_set():
                await self.gate.wait()
            prompt, count = fit(ask, runner.num_ctx, rendered=model.rendered, unit=self.config.tokenizer)
            if runner.pool is not None:
                slot = await runner.pool.acquire(prompt)
            answer = self._answer(ask, model, runner.num_ctx, digest, count)
            answer.load_ns = load_ns
            self._time(answer, slot)
            speed = self.config.speed
            if speed is not None:
                await _sleep(speed.prefill_s(count - (answer.cached or 0)))
                if not self.config.reports_cached:
                    answer.cached = None
            return Running(runner, slot, answer, started, keep_s)
        except BaseException:
            if slot is not None and runner.pool is not None:
                runner.pool.release(slot)
            runner.leave(keep_s)
            raise

    async def generate(self, running: Running) -> None:
        """Take the time that generating the answer takes."""
        await _sleep(running.answer.decode_s)

    def finish(self, running: Running) -> None:
        """Fill in the total time, once everything is generated."""
        answer = running.answer
        parts = answer.load_ns + answer.prompt_ns + answer.eval_ns
        answer.total_ns = max(perf_counter_ns() - running.started_ns, parts)

    def end(self, running: Running) -> None:
        """Give the slot and the model back."""
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
            left = timedelta(seconds=runner.keep_s) if runner.active else timedelta(0)
            if runner.keep_s == inf:
                left = FOREVER
            elif not runner.active:
                left = timedelta(seconds=runner.expires - now)
            size = model.loaded_bytes(runner.num_ctx, self.config.slots)
            entries.append(
                {
                    "name": model.name,
                    "model": model.name,
                    "size": size,
                    "digest": self.digests[model.name],
                    "details": details(model),
                    "expires_at": _rfc3339(wall + left),
                    "size_vram": int(size * model.gpu_share),
                    "context_length": runner.num_ctx,
                }
            )
        return entries

    def _expire(self) -> None:
        now = monotonic()
        for name, runner in list(self._runners.items()):
            if runner.active == 0 and runner.expires <= now:
                del self._runners[name]

    async def _runner(self, ask: Ask, model: FakeModel) -> Runner:
        num_ctx = self.num_ctx(ask, model)
        gpu = ask.options.get("num_gpu")
        given = {name: ask.options[name] for name in LOAD_OPTIONS if ask.options.get(name) is not None}
        if gpu == -1:
            del given["num_gpu"]
        given["num_ctx"], given["shift"] = num_ctx, ask.shift
        settings = tuple(sorted(given.items()))
        runner = self._runners.get(model.name)
        if runner is not None and runner.active == 0 and runner.expires <= monotonic():
            del self._runners[model.name]
            runner = None
        if runner is None or runner.settings != settings:
            runner = await self._load(model, settings, given)
        runner.active += 1
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
                    await _sleep(speed.load_s * speed.time_scale)
                pool = None
                if self._with_slots:
                    pool = SlotPool(self.config.slots, prefix_cache=speed is None or speed.prefix_cache)
                runner = Runner(model, settings, int(given["num_ctx"]), pool)
                self._runners[model.name] = runner
                self._ledger.loaded({"model": model.name, **given})
                return runner
        finally:
            self._pending -= 1

    def _answer(self, ask: Ask, model: FakeModel, num_ctx: int, digest: str, prompt_tokens: int) -> Answer:
        reply = self._reply(ask.body) if self._reply is not None else None
        given = reply if isinstance(reply, FakeReply) else FakeReply(reply)
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
            _limit(answer, int(ask.options.get("num_predict") or -1), num_ctx, ask.shift)
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


def _limit(answer: Answer, num_predict: int, num_ctx: int, shift: bool) -> None:
    """Cut an answer at the token limit, where a token is a word."""
    room = num_predict if 0 < num_predict < 10 * num_ctx else 10 * num_ctx
    if not shift:
        room = min(room, max(num_ctx - answer.prompt_tokens, 0))
    thinking, text = len(answer.thinking.split()), len(answer.text.split())
    answer.eval_tokens = thinking + text
    if answer.eval_tokens > room:
        answer.done_reason = "length"
        answer.eval_tokens = room
        answer.thinking = "".join(_WORD.findall(answer.thinking)[:room])
        answer.text = "".join(_WORD.findall(answer.text)[: max(room - thinking, 0)])


async def _sleep(seconds: float) -> None:
    if seconds > 0:
        await asyncio.sleep(seconds)
