from __future__ import annotations

import json

import pytest

from ollama_batch.testing.faults import KINDS, Fault, FaultPlan, Moment


def moment(
    text: str = "a", *, route: str = "/api/chat", kind: str = "completion", **changes: object
) -> Moment:
    base = Moment(route, kind, text, digest=text, num_ctx=4096, in_flight=1)
    return base._replace(**changes)


def hits(fault: Fault, total: int, *, seed: int = 0) -> list[int]:
    plan = FaultPlan([fault], seed)
    return [n for n in range(1, total + 1) if plan.pick(moment()) is not None]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault("busy"), [1, 2, 3, 4, 5, 6]),
        (Fault("busy", when=3), [3]),
        (Fault("busy", when=(2, 5)), [2, 5]),
        (Fault("busy", every=2), [2, 4, 6]),
        (Fault("busy", count=2), [1, 2]),
        (Fault("busy", every=2, count=2), [2, 4]),
        (Fault("busy", match="b"), []),
        (Fault("busy", first=2), [1, 2]),
        (Fault("busy", num_ctx_above=4096), []),
        (Fault("busy", num_ctx_above=4095, when=1), [1]),
        (Fault("busy", in_flight_above=1), []),
        (Fault("busy", route="/api/ps"), []),
        (Fault("busy", route="*", when=4), [4]),
        (Fault("busy", share=0.0), []),
        (Fault("busy", share=1.0, count=3), [1, 2, 3]),
    ],
)
def test_a_fault_happens_where_all_its_conditions_hold(fault: Fault, expected: list[int]) -> None:
    assert hits(fault, 6) == expected


def test_a_share_is_that_part_of_all_and_is_chosen_by_the_seed() -> None:
    one = hits(Fault("busy", share=0.1), 4000, seed=1)
    assert one == hits(Fault("busy", share=0.1), 4000, seed=1)
    assert one != hits(Fault("busy", share=0.1), 4000, seed=2)
    assert 300 < len(one) < 500  # 400 expected, 5 sigma are 95


def test_first_counts_each_set_of_messages_for_itself() -> None:
    plan = FaultPlan([Fault("crash", first=1)], 0)
    asked = [plan.pick(moment(text)) is not None for text in "abab"]
    assert asked == [True, True, False, False]


def test_the_first_of_several_faults_wins_and_only_it_is_used_up() -> None:
    plan = FaultPlan([Fault("busy", count=1), Fault("crash", count=1)], 0)
    kinds = [fault.kind if (fault := plan.pick(moment())) else None for _ in range(3)]
    assert kinds == ["busy", "crash", None]


@pytest.mark.parametrize(
    "settings", [{"kind": "nonsense"}, {"kind": "busy", "share": 1.5}, {"kind": "busy", "every": 0}]
)
def test_a_fault_that_makes_no_sense_is_refused_at_once(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="Fault"):
        Fault(**settings)


def test_a_fault_survives_json() -> None:
    fault = Fault("status", when=(1, 2), status=418, headers={"Retry-After": "1"}, body={"error": "teapot"})
    assert Fault.from_json(json.loads(json.dumps(fault.to_json()))) == fault


# From ollama server/routes.go, server/sched.go, llm/llama_server.go.
LITERALS = {
    "busy": (503, "server busy, please try again.  maximum pending requests exceeded"),
    "oom": (500, "llama-server reported out-of-memory during startup: "),
    "crash": (
        500,
        (
            "model runner has unexpectedly stopped, this may be due to resource limitations or an internal "
            "error, check ollama server logs for details"
        ),
    ),
    "crash_running": (500, "an error was encountered while running the model: unexpected EOF"),
    "loading": (500, "unexpected server status: llm server loading model"),
    "load_failed": (500, "llama-server process has terminated: exit status 1: "),
    "load_stalled": (500, "timed out waiting for llama-server to start - "),
    "no_slots": (500, "no slots available after 10 retries"),
    "not_responding": (500, "server not responding"),
    "cancelled": (499, "request canceled"),
    "cloud_busy": (503, "Server overloaded, please retry shortly"),
    "oom_legacy": (500, "model requires more system memory (11.6 GiB) than is available (9.8 GiB)"),
    "context": (
        400,
        (
            "the prompt is longer than the context length currently available to the model; shorten the "
            "prompt, adjust the context length in settings, or use a model with a longer context length"
        ),
    ),
    "forbidden": (403, ""),
    "missing": (404, "model '{model}' not found"),
}


@pytest.mark.parametrize("kind", LITERALS)
def test_error_texts_are_ollamas_own(kind: str) -> None:
    status, text = LITERALS[kind]
    assert KINDS[kind].status == status
    assert KINDS[kind].text.startswith(text)
    assert text or not KINDS[kind].text
