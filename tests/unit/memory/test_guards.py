"""What the guards decide, sample by sample."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_support import GIB, MIB, device, engine, host, sample, unknown
from ollama_batch.errors import ConfigError
from ollama_batch.memory import GuardDecision, Level, MemorySample, RamGuard, VramGuard
from ollama_batch.memory._judge import EFFECT_S, MOST_RELOADS


def vram(
    guard: VramGuard, *free_gib: float | None, step_s: float = 1.0, start: float = 0.0
) -> list[GuardDecision]:
    """The decisions on a card of 16 GiB with so much free, in GiB, one sample after another."""
    return [
        guard.decide(sample(start + number * step_s, device(None if free is None else free * GIB)))
        for number, free in enumerate(free_gib)
    ]


def actions(decisions: list[GuardDecision]) -> list[tuple[str, ...]]:
    return [each.actions for each in decisions]


def flat(decisions: list[GuardDecision]) -> list[str]:
    return [action for each in decisions for action in each.actions]


def test_plenty_of_memory_asks_for_nothing() -> None:
    found = vram(VramGuard(), 10, 9, 3, 2)
    assert flat(found) == []
    assert {each.level for each in found} == {Level.OK}
    assert found[0].used_bytes == 6 * GIB
    assert found[0].total_bytes == 16 * GIB
    assert found[0].where == "GPU0"


def test_each_level_has_its_actions_once() -> None:
    # 12 %, 8 % and 4 % of 16 GiB are 1.92, 1.28 and 0.64 GiB.
    found = vram(VramGuard(), 3, 1.9, 1.9, 1.25, 1.25, 0.6, 0.6)
    assert actions(found) == [(), ("stop_growth",), (), ("halve",), (), ("halve", "pause"), ()]
    assert [str(each.level) for each in found] == [
        "ok",
        "warn",
        "warn",
        "high",
        "high",
        "critical",
        "critical",
    ]


def test_from_ok_to_critical_all_that_is_due_is_asked_for() -> None:
    assert actions(vram(VramGuard(), 0.3)) == [("stop_growth", "halve", "pause")]


def test_concurrency_is_halved_again_only_while_it_gets_worse() -> None:
    assert flat(vram(VramGuard(), 1.27, *[1.27] * 100)).count("halve") == 1
    assert flat(vram(VramGuard(), 1.27, 1.1, 0.94, 0.94, 0.8)).count("halve") == 2


def test_a_pause_ends_when_memory_is_back() -> None:
    found = vram(VramGuard(), 0.3, *[8.0] * 11)
    assert flat(found) == ["stop_growth", "halve", "pause", "resume", "allow_growth"]
    assert found[-1].level is Level.OK
    part = vram(VramGuard(), 0.3, *[1.7] * 11)
    assert part[-1].actions == ("resume",)
    assert part[-1].level is Level.WARN


def test_what_stays_critical_is_reloaded_smaller_a_few_times_at_longer_and_longer_waits() -> None:
    found = vram(VramGuard(), *[0.3] * 1000)
    times = [number for number, each in enumerate(found) if "reload_smaller" in each.actions]
    assert times == [30, 90, 210]
    assert len(times) == MOST_RELOADS
    assert "reload_smaller" not in flat(vram(VramGuard(reload_after_s=60.0), *[0.3] * 59))


def test_after_a_moment_of_level_ok_it_may_be_reloaded_again() -> None:
    guard = VramGuard()
    vram(guard, *[0.3] * 300)
    vram(guard, *[8.0] * 12, start=300.0)
    assert "reload_smaller" in flat(vram(guard, *[0.3] * 40, start=400.0))


def test_what_an_action_has_freed_is_measured() -> None:
    found = vram(VramGuard(), 0.6, *[0.6] * 30, *[7.6] * 10)
    effects = {effect.action: effect for each in found for effect in each.effects}
    assert str(effects["halve"]) == "halve: freed: 0 measured"
    assert effects["halve"].after_s == EFFECT_S
    assert effects["reload_smaller"].freed_bytes == 7 * GIB
    assert str(effects["reload_smaller"]) == "reload_smaller: freed: 7.0 GiB measured"
    assert [effect.action for each in found for effect in each.effects].count("reload_smaller") == 1


def test_the_original_warns_and_trims_at_14_gib_and_stops_at_15() -> None:
    guard = VramGuard.original()
    # The card of the seed: 16,376 MiB.
    card = 16376 * MIB
    levels = []
    for number, used in enumerate((13.9, 14.0, 14.6, 15.0)):
        levels.append(guard.decide(sample(number, device(card - used * GIB, card))))
    assert [str(each.level) for each in levels] == ["ok", "warn", "high", "critical"]
    assert levels[1].actions == ("stop_growth", "trim")
    assert any("not expected to free" in note for note in levels[1].notes)
    later = guard.decide(sample(20.0, device(card - 14.0 * GIB, card)))
    assert "trim: freed: 0 measured" in str(later)


def test_conversations_are_trimmed_where_memory_grows_with_use_and_not_elsewhere() -> None:
    assert "trim" not in flat(vram(VramGuard(), 1.9, 1.2, 0.3))
    found = vram(VramGuard(grows_with_use=True), 1.9, 1.2, 1.2)
    assert flat(found) == ["stop_growth", "halve", "trim"]
    assert found[1].notes == ()


@pytest.mark.parametrize("before", [3.0, 1.9, 1.2, 0.3])
def test_an_unknown_sample_changes_nothing_and_asks_for_nothing(before: float) -> None:
    guard = VramGuard()
    level = vram(guard, before)[0].level
    found = vram(guard, *[None] * 200, start=1.0)
    assert flat(found) == []
    assert {each.level for each in found} == {level}
    assert found[0].unknown == "GPU0: the cable is out"
    assert found[0].used_bytes is None
    nothing = guard.decide(sample(300.0))
    assert nothing.unknown == "gpu0: no driver"
    told = " ".join(map(str, (*found, nothing)))
    assert "vram: unknown (" in told
    assert "vram: ok" not in told
    assert str(nothing).endswith(f"; {level} before") is (level is not Level.OK)
    assert nothing.level is level


@given(st.lists(st.one_of(st.none(), st.floats(0, 16)), max_size=80), st.booleans())
def test_unknown_samples_neither_lower_a_level_nor_act(free: list[float | None], grows: bool) -> None:
    guard = VramGuard(grows_with_use=grows)
    level = Level.OK
    for decision, each in zip(vram(guard, *free, step_s=4.0), free, strict=True):
        if each is None:
            assert decision.level == level
            assert decision.actions == ()
            assert decision.unknown is not None
        level = decision.level


@given(st.lists(st.tuples(st.floats(0, 16), st.one_of(st.none(), st.floats(0, 16))), max_size=60))
def test_a_card_that_cannot_be_read_keeps_its_level_beside_one_that_can(
    free: list[tuple[float, float | None]],
) -> None:
    both, second = VramGuard(), VramGuard()
    for number, (first, other) in enumerate(free):
        at = number * 4.0
        cards = [device(first * GIB), device(None if other is None else other * GIB, name="gpu1")]
        alone = second.decide(sample(at, cards[1]))
        assert both.decide(sample(at, *cards)).level >= alone.level


def test_a_card_that_is_gone_is_not_well() -> None:
    guard = VramGuard()
    guard.decide(sample(0.0, device(8 * GIB), device(0.3 * GIB, name="gpu1")))
    for at in range(1, 100):
        found = guard.decide(sample(at, device(8 * GIB), devices_unknown="NVML: GPU is lost"))
        assert found.level is Level.CRITICAL
        assert found.actions == ()
    assert any("gpu1" in note and "GPU is lost" in note for note in found.notes)


@given(st.lists(st.one_of(st.none(), st.floats(0, 16)), max_size=60))
def test_decisions_are_json_and_come_in_order(free: list[float | None]) -> None:
    for decision in vram(VramGuard(grows_with_use=True), *free, step_s=3.0):
        data = json.loads(json.dumps(decision.to_dict(), allow_nan=False))
        assert data["level"] in ("ok", "warn", "high", "critical")
        assert data["actions"] == list(decision.actions)
        assert str(decision)


@given(st.lists(st.floats(0, 16), max_size=100))
def test_pauses_and_ends_of_pauses_take_turns(free: list[float]) -> None:
    found = flat(vram(VramGuard(), *free, step_s=4.0))
    for names in (("pause", "resume"), ("stop_growth", "allow_growth")):
        turns = [action for action in found if action in names]
        assert turns == [names[number % 2] for number in range(len(turns))]


@given(st.integers(0, 1600), st.lists(st.integers(0, 31), max_size=100))
def test_noise_on_a_card_asks_for_each_action_at_most_once(base: int, noise: list[int]) -> None:
    """Less than 2 points of 16 GiB, in hundredths of a GiB."""
    found = flat(
        vram(VramGuard(reload_after_s=1e9), *[min(16, (base + each) / 100) for each in noise], step_s=5.0)
    )
    assert "resume" not in found
    assert "allow_growth" not in found
    assert found.count("pause") <= 1
    assert found.count("stop_growth") <= 1


def test_of_several_cards_the_tightest_that_holds_the_model_decides() -> None:
    cards = [device(0.3 * GIB), device(5 * GIB, name="gpu1"), device(1.8 * GIB, name="gpu2")]
    assert VramGuard().decide(sample(0, *cards)).where == "GPU0"
    held = [cards[0], *(device(each.free.get(), name=each.id, holds_model=True) for each in cards[1:])]
    found = VramGuard().decide(sample(0, *held))
    assert (found.where, found.level) == ("GPU2", Level.WARN)


@pytest.mark.parametrize("name", [1, "gpu1"])
def test_a_named_card_alone_decides(name: int | str) -> None:
    cards = [device(0.3 * GIB), device(5 * GIB, name="gpu1")]
    assert VramGuard(device=name).decide(sample(0, *cards)).level is Level.OK
    missing = VramGuard(device="gpu7").decide(sample(0, *cards))
    assert missing.unknown == "no gpu7, but gpu0, gpu1"


def test_a_remote_engine_is_judged_by_what_it_reports_not_by_the_cards_here() -> None:
    here = device(0.1 * GIB)
    found = VramGuard(total="16GiB").decide(sample(0, here, engine=engine(14.5 * GIB)))
    assert found.level is Level.WARN
    assert found.where == "the engine's card"
    fixed = VramGuard(warn="10GiB", limit="12GiB").decide(sample(0, here, engine=engine(11.5 * GIB)))
    assert fixed.level is Level.HIGH
    assert fixed.total_bytes is None
    share = VramGuard().decide(sample(0, here, engine=engine(11.5 * GIB)))
    assert "give total=" in str(share.unknown)
    silent = VramGuard(total="16GiB").decide(sample(0, here, engine=engine(None)))
    assert silent.unknown == "the engine's card: not said"


def test_an_engine_here_whose_card_cannot_be_read_is_judged_by_what_it_reports() -> None:
    local = engine(14.5 * GIB, remote=False)
    assert VramGuard(total="16GiB").decide(sample(0, engine=local)).level is Level.WARN
    assert VramGuard(total="16GiB").decide(sample(0, device(0.3 * GIB), engine=local)).level is Level.CRITICAL


def test_a_model_that_has_spilled_is_named() -> None:
    spilled = engine(9 * GIB, 10.5 * GIB, remote=False)
    found = VramGuard().decide(sample(0, device(8 * GIB), engine=spilled))
    assert found.level is Level.OK
    assert any("1.5 GiB of the model are in host memory" in note for note in found.notes)
    whole = engine(9 * GIB, remote=False)
    assert VramGuard().decide(sample(0, device(8 * GIB), engine=whole)).notes == ()


def test_a_threshold_beyond_the_card_is_named_and_the_reserve_still_holds() -> None:
    guard = VramGuard(warn="14GiB", limit="15GiB")
    found = guard.decide(sample(0, device(0.4 * GIB, 12 * GIB)))
    assert found.level is Level.CRITICAL
    assert "warn 14.0 GiB lies beyond the 12.0 GiB there are" in found.notes


def ram(guard: RamGuard, free: float | None, at: float = 0.0) -> GuardDecision:
    return guard.decide(sample(at, host=host(None if free is None else free * GIB)))


def test_ram_has_the_same_levels_and_is_not_trimmed() -> None:
    guard = RamGuard()
    assert [str(ram(guard, free).level) for free in (8, 1.9, 1.2, 0.6)] == ["ok", "warn", "high", "critical"]
    assert ram(RamGuard(), 0.3).actions == ("stop_growth", "halve", "pause")
    lost = ram(guard, None, 50.0)
    assert (lost.level, lost.actions, lost.unknown) == (Level.CRITICAL, (), "system memory: the cable is out")
    assert ram(RamGuard(warn="2GiB", limit="4GiB"), 13.5).level is Level.WARN


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"warn": 14.0}, "warn=14.0"),
        ({"limit": "15 apples"}, "'apples' is no unit"),
        ({"reserve": 0.5}, "reserve=0.5"),
        ({"total": "half"}, "total='half'"),
        ({"trim_from": "always"}, "trim_from='always'"),
        ({"hold_s": -1}, "hold_s=-1"),
        ({"reload_after_s": float("nan")}, "reload_after_s=nan"),
    ],
)
def test_a_wrong_option_is_refused_by_name(options: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        VramGuard(**options)


@pytest.mark.parametrize(
    ("options", "warns_gib"),
    [
        ({"limit": "1%"}, 0.01 * 16 * 11 / 12),
        ({"limit": 0.5}, 0.5 * 16 * 11 / 12),
        ({"limit": "12GiB"}, 11.0),
        ({"limit": "12GiB", "high": "10GiB"}, 10.0),
        ({"limit": "12GiB", "warn": "3GiB"}, 3.0),
        ({}, 0.88 * 16),
    ],
)
def test_a_limit_alone_warns_at_eleven_twelfths_of_it(options: dict[str, Any], warns_gib: float) -> None:
    for kind in (VramGuard, RamGuard):
        bounds = kind(**options)._thresholds.bounds(16 * GIB)
        assert bounds is not None
        assert bounds.warn == pytest.approx(warns_gib * GIB, rel=1e-6)


def test_a_guard_alone_reads_this_machine() -> None:
    guard = RamGuard()
    found = guard.sample()
    assert isinstance(found, MemorySample)
    assert guard.decide(found).total_bytes == found.host.total.get()
    json.dumps(found.to_dict(), allow_nan=False)
    assert unknown().to_dict() == {"unknown": "the cable is out", "source": "test"}
