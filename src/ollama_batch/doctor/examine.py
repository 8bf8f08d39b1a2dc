"""The examination, from top to bottom: the server, the model, this machine, the load, the night."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Final

import httpx

from ollama_batch.doctor import load_checks, machine_checks, server_checks
from ollama_batch.doctor.finding import Diagnosis, Finding, set_together, settings_of
from ollama_batch.doctor.forecast import check_input, check_night
from ollama_batch.doctor.load_checks import Card
from ollama_batch.doctor.machine import Machine
from ollama_batch.doctor.measure import measure_parallel
from ollama_batch.doctor.night import Sample, made_up_sample, measure_pace, read_sample
from ollama_batch.doctor.place import Place
from ollama_batch.doctor.run_line import RunLine
from ollama_batch.doctor.seen import Seen
from ollama_batch.doctor.server import Running, Server
from ollama_batch.doctor.spill_check import check_spill
from ollama_batch.doctor.wish import Wish
from ollama_batch.engines._ollama_wire import full_name
from ollama_batch.engines.ollama import OllamaEngine
from ollama_batch.errors import ConfigError, EngineError, MemoryUnknownError
from ollama_batch.memory.shape import ModelShape
from ollama_batch.tokens.state import state_folder

NIGHT_H: Final = 10.0
PATIENCE_S: Final = 10.0
MEASURE_S: Final = 60.0
LOAD_S: Final = 900.0
STUCK_S: Final = 3.0
"""A model that is unloaded in this time was on its way out, not stuck."""


async def diagnose(
    model: str | None = None,
    *,
    base_url: str | None = None,
    api_key: str | None = None,
    rows: int | None = None,
    inputs: Sequence[str | PathLike[str]] = (),
    num_ctx: int | None = None,
    hours: float = NIGHT_H,
    output: str | PathLike[str] | None = None,
    load: bool = True,
    patience_s: float = PATIENCE_S,
    measure_s: float = MEASURE_S,
    state_dir: str | PathLike[str] | None = "auto",
    transport: httpx.AsyncBaseTransport | None = None,
    machine: Machine | None = None,
    place: Place | None = None,
    told: Callable[[str], None] = lambda _: None,
) -> Diagnosis:
    """What is wrong with an Ollama server, and with this machine, before hours are spent on it.

    `model`: the one that is to answer (None: the one that `inputs` name). `base_url` takes what `OLLAMA_HOST`
    takes. `rows`: will so many be done in `hours` hours; measured with some rows of the files `inputs` (then
    `rows` is by default as many as they have) or with made-up ones. `num_ctx`: the context length of the run
    (None: what it chooses for these rows, without a file the server's own default). `output`: the run's, or
    the folder it will be in. `load` False: the model is not loaded and nothing is sent. `patience_s`: how
    long an answer may take that needs no model; `measure_s`: how long each of the two measurements goes on,
    roughly. `state_dir`: where what models were seen to take is kept between runs, as for BatchRunner. `told`
    is called with what is done next.

    Loads the model if it is not loaded (for 5 minutes, as Ollama does by itself), and sends short requests.
    One that somebody has loaded already is measured with their settings. Raises ConfigError and InputError;
    whatever is wrong with the server is a finding.
    """
    for name, value in (("rows", rows), ("num_ctx", num_ctx)):
        if value is not None and (type(value) is not int or value < 1):
            raise ConfigError(f"{name}={value!r}: give a whole number above 0")
    for name, seconds in (("hours", hours), ("patience_s", patience_s), ("measure_s", measure_s)):
        if not seconds > 0:
            raise ConfigError(f"{name}={seconds!r}: give a number above 0")
    sample, rows_asked = None, rows
    if inputs:
        told("reading the input")
        sample = await asyncio.to_thread(read_sample, [Path(each) for each in inputs])
        model = model or sample.model
        rows = rows or sample.rows
    server = Server(base_url, api_key=api_key, patience_s=patience_s, transport=transport)
    own_machine = Machine() if machine is None else machine
    wish = Wish(
        model=model,
        rows=rows,
        num_ctx=num_ctx,
        hours=hours,
        output=Path("." if output is None else output),
        run=RunLine(
            [str(each) for each in inputs],
            None if output is None else str(output),
            [
                *(() if model is None else ("--model", model)),
                *(() if base_url is None else ("--base-url", server.address)),
                *(() if num_ctx is None else ("--num-ctx", str(num_ctx))),
            ],
        ),
        load=load,
        measure_s=measure_s,
        folder=state_folder(state_dir),
        told=told,
    )
    own_place = await asyncio.to_thread(Place.of, server.address) if place is None else place
    asked = {"--model": model, "--num-ctx": num_ctx, "--for": rows_asked, "-o": output}
    asked |= {} if hours == NIGHT_H else {"--hours": f"{hours:g}"}
    own_place = own_place.asking(wish.run.inputs, asked)
    try:
        examination = _Examination(server, own_machine, own_place, wish)
        findings = await examination.run(sample or made_up_sample(), patience_s)
    finally:
        await server.aclose()
        if machine is None:
            own_machine.close()
    return Diagnosis(server.address, model, set_together(findings, own_place.serve_with))


class _Examination:
    """One examination: each step adds to `findings`, and to what later ones need."""

    def __init__(self, server: Server, machine: Machine, place: Place, wish: Wish) -> None:
        self._server = server
        self._machine = machine
        self._place = place
        self._wish = wish
        self._seen = Seen(place.slots)
        self._findings: list[Finding] = []

    async def run(self, sample: Sample, patience_s: float) -> list[Finding]:
        self._wish.told("asking the server")
        there = await self._server_answers(patience_s)
        if there:
            there = await self._model_is_there()
        # Before anything is sent: how busy the GPU is by itself, and who has memory of it.
        seen = self._seen
        seen.sample = await asyncio.to_thread(self._machine.memory)
        try:
            seen.users = await asyncio.to_thread(self._machine.card_users)
        except MemoryUnknownError as exc:
            seen.users = exc.reason
        seen.model_bytes_before = sum(each.vram or 0 for each in seen.running)
        if self._place.remote is None:
            seen.card = Card.of(seen.sample.devices, seen.model_bytes_before)
        if there and self._wish.model is not None:
            await self._load_and_measure(self._wish.model, sample)
        self._this_machine(sample)
        return self._findings

    def _add(self, *findings: Finding) -> None:
        self._findings += findings

    async def _server_answers(self, patience_s: float) -> bool:
        try:
            await self._server.version()
            # Once more: the first one makes the connection.
            version, took_s = await self._server.version()
        except EngineError as exc:
            openai = False
            if exc.status is not None:
                with suppress(EngineError):
                    openai = await self._server.speaks_openai()
            self._add(server_checks.unreachable(exc, self._place, patience_s, openai=openai))
            return False
        self._add(
            server_checks.reached(self._place, took_s), server_checks.check_version(version, self._place)
        )
        return True

    async def _model_is_there(self) -> bool:
        model, server = self._wish.model, self._server
        try:
            models = await server.models()
            if model is not None and full_name(model) in models:
                self._seen.shown = await server.show(model)
            self._seen.running = before = await server.running()
            finding = server_checks.check_model(model, models, self._seen.shown, self._place)
            self._add(finding, *server_checks.check_others(before, model, self._place))
            if any(each.left_s is not None and each.left_s < 0 for each in before):
                await asyncio.sleep(STUCK_S)
                self._seen.running = await server.running()
                self._add(*server_checks.check_stuck(before, self._seen.running, self._place))
        except EngineError as exc:
            self._add(server_checks.tells_nothing(exc, self._place))
            return False
        return finding.level != "problem"

    async def _load_and_measure(self, model: str, sample: Sample) -> None:
        wish, seen = self._wish, self._seen
        held = next((each for each in seen.running if each.is_model(model)), None)
        # What somebody has loaded is not taken from them: their settings, and their time to keep it.
        engine = self._server.engine("5m" if held is None else held.keep_alive)
        try:
            with suppress(EngineError, MemoryUnknownError):
                seen.shape = ModelShape.from_metadata(model, await engine.metadata(model))
            seen.num_ctx = self._num_ctx(sample)
            num_ctx = seen.num_ctx if held is None else held.context
            seen.loaded = held
            if wish.load:
                stuck = any(each.check == "stuck" for each in self._findings)
                if stuck or not await self._load(engine, model, num_ctx):
                    return
                await self._measure(engine, model, num_ctx, sample)
        finally:
            await engine.aclose()
        await asyncio.to_thread(seen.learn, wish.folder)
        self._about_the_load(held)

    def _num_ctx(self, sample: Sample) -> int | None:
        """The context of the run: every request of it asks for that."""
        if self._wish.num_ctx is not None or sample.num_ctx is None:
            return self._wish.num_ctx
        trained = None if self._seen.shape is None else self._seen.shape.context_length
        return min(sample.num_ctx, trained or sample.num_ctx)

    async def _load(self, engine: OllamaEngine, model: str, num_ctx: int | None) -> bool:
        self._wish.told(f"loading {model}")
        try:
            await engine.load(model, num_ctx=num_ctx, deadline=time.monotonic() + LOAD_S)
            self._seen.running = await self._server.running()
        except EngineError as exc:
            self._add(load_checks.failed_to_load(exc, model, num_ctx, self._place))
            return False
        self._seen.loaded = next((each for each in self._seen.running if each.is_model(model)), None)
        return True

    async def _measure(self, engine: OllamaEngine, model: str, num_ctx: int | None, sample: Sample) -> None:
        wish, seen = self._wish, self._seen
        wish.told("measuring with short requests")
        try:
            seen.parallel = await measure_parallel(
                engine, model, num_ctx=num_ctx, deadline=time.monotonic() + wish.measure_s
            )
        except EngineError as exc:
            self._add(
                Finding(
                    check="slots",
                    level="problem",
                    seen=f"a short request was not answered: {exc}",
                    costs="rows will not be answered either",
                    mend=self._place.restart(),
                    on=self._place.remote,
                    sets={},
                )
            )
            return
        if wish.rows is None:
            return
        wish.told(f"measuring with {len(sample.requests)} rows")
        seen.pace = await measure_pace(
            engine,
            sample,
            model,
            num_ctx=num_ctx,
            concurrency=seen.parallel.slots or load_checks.WANTED_SLOTS,
            measure_s=wish.measure_s,
        )

    def _about_the_load(self, held: Running | None) -> None:
        """What was seen of the loaded model, or is predicted of it."""
        wish, seen, place = self._wish, self._seen, self._place
        shape, loaded, found = seen.shape, seen.loaded, seen.parallel
        trained = None if shape is None else shape.context_length
        num_ctx = seen.num_ctx or (None if loaded is None else loaded.context)
        spilled = loaded is not None and (loaded.vram or 0) < (loaded.size or 0)
        if loaded is not None:
            has_gpu = None if place.remote is not None or seen.sample is None else bool(seen.sample.devices)
            contexts = load_checks.check_context(
                loaded,
                asked=seen.num_ctx,
                by_rows=wish.num_ctx is None,
                batch=wish.rows is not None,
                fresh=held is None and wish.load,
                trained=trained,
                place=place,
                fits=lambda longer: False if spilled else seen.fits(longer),
                plan=seen.plan,
            )
            self._add(
                check_spill(
                    loaded,
                    place,
                    has_gpu=has_gpu,
                    plan=seen.best(num_ctx),
                    running=seen.running,
                    asked=seen.num_ctx,
                    shape=shape,
                    card=seen.card,
                ),
                *contexts,
            )
        elif seen.num_ctx is None:
            self._add(
                Finding(check="load", level="unknown", seen="the model is not loaded, and was not to be")
            )
        plan = seen.plan(num_ctx)
        if plan is not None and (loaded is None or loaded.context != num_ctx):
            single = None if seen.slots else seen.plan(num_ctx, 1)
            self._add(load_checks.check_fit(plan, seen.card, place, seen.best(num_ctx), single))
        if found is not None:
            # All settings hold at once: more slots are to fit beside a longer context, if that is advised.
            longer = settings_of(self._findings).get("OLLAMA_CONTEXT_LENGTH")
            num_ctx = num_ctx if longer is None else int(longer)
            # What does not fit now will not with more slots.
            reckoned = spilled or (shape is not None and seen.card is not None and num_ctx is not None)
            self._add(
                load_checks.check_slots(
                    found,
                    place,
                    shape=shape,
                    reckoned=reckoned,
                    best=seen.best(num_ctx),
                    quantized=seen.best(num_ctx, ("q8_0",)),
                    num_ctx=num_ctx,
                    choices=[
                        plan for slots in (2, load_checks.WANTED_SLOTS) if (plan := seen.plan(num_ctx, slots))
                    ],
                    longer=longer is not None,
                )
            )
        elif not wish.load:
            self._add(Finding(check="slots", level="unknown", seen="no request was sent (--no-load)"))

    def _this_machine(self, sample: Sample) -> None:
        wish, seen, place = self._wish, self._seen, self._place
        memory = seen.sample
        assert memory is not None  # noqa: S101 - read before
        busy = [each.busy_percent for each in memory.devices]
        known = [each.get() for each in busy if each.known]
        unread = busy[0].reason if busy else memory.devices_unknown
        if place.remote is not None:
            known, unread = [], f"the GPU of {place.remote} cannot be seen from here"
        self._add(load_checks.check_idle(place, max(known, default=None), str(unread), seen.parallel))
        if place.remote is not None:
            self._add(machine_checks.elsewhere("card", place), machine_checks.elsewhere("ram", place))
        else:
            self._add(*machine_checks.check_card(memory, seen.users, seen.model_bytes_before))
            self._add(machine_checks.check_ram(memory, self._machine.swap_used(), place))
        row_bytes = None if seen.pace is None else seen.pace.row_bytes
        disk = self._machine.disk(folder_of(wish.output).resolve())
        self._add(machine_checks.check_disk(disk, wish.run, rows=wish.rows, row_bytes=row_bytes))
        if sample.invalid:
            self._add(check_input(sample, wish.run))
        if wish.rows is not None:
            self._add(self._night(sample, wish.rows))

    def _night(self, sample: Sample, rows: int) -> Finding:
        if self._seen.pace is None:
            why = "nothing was measured" if self._wish.load else "nothing was sent (--no-load)"
            return Finding(check="night", level="unknown", seen=f"{why}, so nobody knows how long it takes")
        return check_night(self._seen.pace, sample, self._wish.run, rows=rows, hours=self._wish.hours)


def folder_of(output: Path) -> Path:
    """The folder in which a run with that output keeps its journal."""
    return output if output.is_dir() else output.parent
