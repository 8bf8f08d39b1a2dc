"""What can go wrong, in one table, and when it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from typing import Any, Literal, NamedTuple, TypeAlias

Action: TypeAlias = Literal["reply", "alter", "send", "drop", "down", "swap", "die", "stick"]

OLLAMA_OOM = "llama-server reported out-of-memory during startup: cudaMalloc failed: out of memory"
RUNNER_STOPPED = (
    "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error, "
    "check ollama server logs for details"
)
RUNNER_ERROR = "an error was encountered while running the model: "
BUSY = "server busy, please try again.  maximum pending requests exceeded"
HTML = "<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"
ZERO_BODY = '{"model":"","created_at":"0001-01-01T00:00:00Z","message":{"role":"","content":""},"done":false}'
# In the form of each server: llama.cpp tools/server, vllm entrypoints/openai.
_LOADING_LLAMA_CPP = '{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}'
_OOM_LLAMA_CPP = (
    '{"error":{"code":500,"message":"failed to find free space in the KV cache","type":"server_error"}}'
)
_OOM_VLLM = (
    '{"error":{"message":"CUDA out of memory. Tried to allocate 512.00 MiB. GPU 0 has a total capacity of '
    '15.60 GiB of which 212.00 MiB is free.","type":"InternalServerError","param":null,"code":500}}'
)
_DEAD_VLLM = (
    '{"error":{"message":"EngineCore encountered an issue. See stack trace (above) for the root cause.",'
    '"type":"EngineDeadError","param":null,"code":500}}'
)


class FaultKind(NamedTuple):
    """One row of the table.

    `action` says how the fault works: "reply" sends `status` and `text` instead of an answer (as the
    error of the route asked, or as it is if `raw`), "alter" changes the answer, "send" breaks its
    transmission, "drop" breaks the connection before it, "down" takes the server down, "swap" exchanges
    the model and then answers, "die" ends the model's process with all that it was working on, "stick" makes
    the model one that never finishes to unload.
    """

    action: Action
    summary: str
    status: int = 200
    text: str = ""
    raw: bool = False
    content_type: str = "application/json; charset=utf-8"


KINDS: Mapping[str, FaultKind] = {
    # Replies with an error status: the literals are those of ollama server/routes.go, server/sched.go
    # and llm/llama_server.go.
    "status": FaultKind("reply", "any status, text and headers", 500, "internal server error"),
    "busy": FaultKind("reply", "scheduler queue full", 503, BUSY),
    "cloud_busy": FaultKind("reply", "overloaded upstream", 503, "Server overloaded, please retry shortly"),
    "too_many": FaultKind("reply", "rate limit", 429, "too many requests"),
    "oom": FaultKind("reply", "out of memory while loading", 500, OLLAMA_OOM),
    "oom_runtime": FaultKind(
        "reply", "out of memory while running", 500, RUNNER_ERROR + "CUDA error: out of memory"
    ),
    "oom_legacy": FaultKind(
        "reply",
        "out of memory, releases before 0.30",
        500,
        "model requires more system memory (11.6 GiB) than is available (9.8 GiB)",
    ),
    "crash": FaultKind("reply", "the runner died", 500, RUNNER_STOPPED),
    "crash_running": FaultKind(
        "reply", "the runner died while generating", 500, RUNNER_ERROR + "unexpected EOF"
    ),
    "loading": FaultKind(
        "reply", "the runner is loading", 500, "unexpected server status: llm server loading model"
    ),
    "load_failed": FaultKind(
        "reply",
        "the model could not be loaded",
        500,
        "llama-server process has terminated: exit status 1: error loading model",
    ),
    "load_stalled": FaultKind(
        "reply", "loading made no progress", 500, "timed out waiting for llama-server to start - "
    ),
    "loading_llama_cpp": FaultKind(
        "reply", "llama-server is loading its model", 503, _LOADING_LLAMA_CPP, raw=True
    ),
    "oom_llama_cpp": FaultKind(
        "reply", "llama-server found no room in its KV cache", 500, _OOM_LLAMA_CPP, raw=True
    ),
    "oom_vllm": FaultKind("reply", "vLLM ran out of memory", 500, _OOM_VLLM, raw=True),
    "engine_dead": FaultKind("reply", "vLLM's engine is dead for good", 500, _DEAD_VLLM, raw=True),
    "no_slots": FaultKind("reply", "no slot in the runner", 500, "no slots available after 10 retries"),
    "not_responding": FaultKind("reply", "the runner hangs", 500, "server not responding"),
    "cancelled": FaultKind("reply", "the client left while loading", 499, "request canceled"),
    "forbidden": FaultKind("reply", "bad Host header", 403, "", raw=True),
    "missing": FaultKind("reply", "the model was removed", 404, "model '{model}' not found"),
    "context": FaultKind(
        "reply",
        "the prompt is longer than the context",
        400,
        "the prompt is longer than the context length currently available to the model; shorten the prompt, "
        "adjust the context length in settings, or use a model with a longer context length",
    ),
    # Replies with status 200 that are no answers.
    "garbage": FaultKind("reply", "not JSON", text="\x00\x7f<<<not json", raw=True),
    "no_body": FaultKind("reply", "200 without a body", text="", raw=True),
    "half_json": FaultKind(
        "reply",
        "JSON that stops in the middle",
        raw=True,
        text='{"model":"toy:1b","message":{"role":"assistant","content":"forty-t',
    ),
    "json_array": FaultKind("reply", "JSON of another shape", text="[]", raw=True),
    "json_null": FaultKind("reply", "JSON null", text="null", raw=True),
    "zero_body": FaultKind("reply", "all fields empty, done:false", text=ZERO_BODY, raw=True),
    "content_type": FaultKind(
        "reply", "an HTML page with status 200", text=HTML, raw=True, content_type="text/html"
    ),
    "gateway": FaultKind("reply", "a proxy's HTML page", 502, HTML, raw=True, content_type="text/html"),
    "error_in_200": FaultKind("reply", "an error with status 200", text='{"error":"' + BUSY + '"}', raw=True),
    # Answers that are changed on their way out.
    "not_done": FaultKind("alter", "partial text, done:false, no done_reason, no metrics"),
    "done_missing": FaultKind("alter", "no `done` field"),
    "message_missing": FaultKind("alter", "done, but no message"),
    "content_null": FaultKind("alter", "the content is null"),
    "content_number": FaultKind("alter", "the content is a number"),
    "empty": FaultKind("alter", "done, but no text"),
    "whitespace": FaultKind("alter", "done, but only white space"),
    "thinking_only": FaultKind("alter", "done, thinking, but no text"),
    "length": FaultKind("alter", "cut off by the token limit"),
    "length_empty": FaultKind("alter", "the token limit reached before any text"),
    "refusal": FaultKind("alter", "the model declines in words"),
    "content_filter": FaultKind("alter", "withheld by a content filter"),
    "fenced": FaultKind("alter", "the text inside a Markdown fence"),
    "repeat": FaultKind("alter", "one word over and over to the token limit"),
    "no_metrics": FaultKind("alter", "all counts and durations absent"),
    "bad_utf8": FaultKind("alter", "bytes that are not UTF-8"),
    "wrong_model": FaultKind("alter", "another model's name in the answer"),
    # Broken transmissions and connections.
    "cut": FaultKind("send", "the body stops short and the socket closes"),
    "cut_open": FaultKind("send", "the body stops short and the socket stays open"),
    "reset_mid": FaultKind("send", "connection reset in the middle of the body"),
    "slow": FaultKind("send", "one byte of the body per interval (1 s)"),
    "stream_error": FaultKind("send", "an error line after the first part of a stream", 500, RUNNER_ERROR),
    "reset": FaultKind("drop", "connection reset before the answer"),
    "close": FaultKind("drop", "connection closed before the answer"),
    "hang": FaultKind("drop", "no answer until the client leaves"),
    "refuse": FaultKind("down", "the server goes down and comes back after `for_s` (0.5 s)"),
    "model_swapped": FaultKind("swap", "the model has another digest from now on, and is loaded anew"),
    # The model's process: what it was working on is lost, the next request loads the model again.
    "runner_dies": FaultKind(
        "die", "the runner dies in mid-answer, and every completion it had fails", 500, RUNNER_ERROR
    ),
    "runner_dies_reset": FaultKind("die", "the same, and their connections are reset instead of answered"),
    "stuck_stopping": FaultKind(
        "stick", 'the model stays in `/api/ps` as "Stopping...", and its requests hang until a restart'
    ),
}
"""Every kind of fault. What the fields mean is said at FaultKind."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong, and when.

    Without conditions it happens to every completion; all conditions that are given must hold:
    `when`, the n-th completion asked of the server, counted from 1, or several of them; `every`, each
    n-th; `share`, this part of all, chosen by the server's seed and the completion's number; `match`,
    text in the last user message; `first`, only the first n times that the same messages are asked;
    `num_ctx_above` tokens asked for; `in_flight_above` completions at once; `from_s` and `until_s`,
    seconds since the server last began to listen. `count` is how often it happens at most. `route` moves
    it from completions to "preload" or "unload", to a path such as "/api/ps", or to "*", every request;
    the n-th is then counted among those.

    `status`, `text` (an error message, or the whole body of a raw kind), `body` (the whole body) and
    `headers` replace those of the kind. `after_s` is waited first. `for_s` is how long "refuse" lasts,
    how long "slow" waits per byte, and how long a runner works on the request before it dies of it (0).
    """

    kind: str
    when: int | Sequence[int] | None = field(default=None, kw_only=True)
    every: int | None = field(default=None, kw_only=True)
    share: float | None = field(default=None, kw_only=True)
    match: str | None = field(default=None, kw_only=True)
    first: int | None = field(default=None, kw_only=True)
    count: int | None = field(default=None, kw_only=True)
    num_ctx_above: int | None = field(default=None, kw_only=True)
    in_flight_above: int | None = field(default=None, kw_only=True)
    from_s: float | None = field(default=None, kw_only=True)
    until_s: float | None = field(default=None, kw_only=True)
    route: str = field(default="completion", kw_only=True)
    status: int | None = field(default=None, kw_only=True)
    text: str | None = field(default=None, kw_only=True)
    body: str | Mapping[str, Any] | None = field(default=None, kw_only=True)
    headers: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    after_s: float = field(default=0.0, kw_only=True)
    for_s: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"Fault kind {self.kind!r} is unknown; there are: {', '.join(sorted(KINDS))}")
        if self.share is not None and not 0 <= self.share <= 1:
            raise ValueError(f"Fault.share is {self.share}: it must be between 0 and 1")
        if self.every is not None and self.every < 1:
            raise ValueError(f"Fault.every is {self.every}: it must be at least 1")
        if self.when is not None and not isinstance(self.when, int):
            object.__setattr__(self, "when", tuple(self.when))

    def to_json(self) -> dict[str, Any]:
        """This as plain JSON data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Fault:
        """The fault that `to_json` gave; fields may be left out, except `kind`."""
        return cls(**data)


class Moment(NamedTuple):
    """What is known of a request when faults are chosen."""

    route: str
    kind: str
    text: str
    digest: str
    num_ctx: int | None
    in_flight: int
    up_s: float = 0.0


class FaultPlan:
    """The faults of one server, and how often each had its chance and happened."""

    def __init__(self, faults: Sequence[Fault], seed: int) -> None:
        self._seed = seed
        self._faults: list[_Counted] = []
        for fault in faults:
            self.add(fault)

    def __bool__(self) -> bool:
        return bool(self._faults)

    def add(self, fault: Fault) -> None:
        """From now on let `fault` happen; its n-th is counted from now."""
        self._faults.append(_Counted(fault))

    def clear(self) -> None:
        """Let nothing go wrong any more."""
        self._faults.clear()

    def pick(self, moment: Moment) -> Fault | None:
        """The first fault whose conditions hold now, counted as having happened, or None."""
        chosen: _Counted | None = None
        for index, counted in enumerate(self._faults):
            if counted.sees(moment) and chosen is None and counted.holds(moment, f"{self._seed}:{index}"):
                chosen = counted
        if chosen is None:
            return None
        chosen.happened += 1
        return chosen.fault


class _Counted:
    """A fault, the requests it might have hit, and how often it did."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.seen = 0
        self.happened = 0
        self._asked: dict[str, int] = {}

    def sees(self, moment: Moment) -> bool:
        route = self.fault.route
        if route not in ("*", moment.route, moment.kind):
            return False
        self.seen += 1
        if self.fault.first is not None:
            self._asked[moment.digest] = self._asked.get(moment.digest, 0) + 1
        return True

    def holds(self, moment: Moment, seed: str) -> bool:
        fault, nth = self.fault, self.seen
        if fault.count is not None and self.happened >= fault.count:
            return False
        if fault.when is not None and nth not in (
            (fault.when,) if isinstance(fault.when, int) else fault.when
        ):
            return False
        if fault.every is not None and nth % fault.every:
            return False
        if fault.match is not None and fault.match not in moment.text:
            return False
        if fault.first is not None and self._asked[moment.digest] > fault.first:
            return False
        if fault.num_ctx_above is not None and (moment.num_ctx or 0) <= fault.num_ctx_above:
            return False
        if fault.in_flight_above is not None and moment.in_flight <= fault.in_flight_above:
            return False
        if fault.from_s is not None and moment.up_s < fault.from_s:
            return False
        if fault.until_s is not None and moment.up_s >= fault.until_s:
            return False
        return fault.share is None or _chance(f"{seed}:{nth}") < fault.share


def _chance(name: str) -> float:
    return int.from_bytes(blake2b(name.encode(), digest_size=7).digest()) / 2**56
