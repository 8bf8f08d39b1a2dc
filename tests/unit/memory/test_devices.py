"""GPUs as NVML and amdgpu tell of them: numbers with their source, or unknown with the reason; never 0."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pynvml
import pytest

from memory_support import GIB, MIB, Card, FakeNvml, known, unknown
from ollama_batch.errors import MemoryUnknownError
from ollama_batch.memory import LocalProbe, Reading, nvml
from ollama_batch.memory.amd import AmdProbe
from ollama_batch.memory.host import HostProbe
from ollama_batch.memory.nvml import AGAIN_S, NvmlProbe


def probe(*cards: Card, **other: Any) -> NvmlProbe:
    return NvmlProbe(FakeNvml(list(cards), **other))


def driver_is_missing() -> bool:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return True
    pynvml.nvmlShutdown()
    return False


def test_the_fake_has_only_names_of_the_real_module() -> None:
    names = [name for name in dir(FakeNvml) if name.lower().startswith("nvml")]
    assert len(names) > 10
    for name in names:
        assert hasattr(pynvml, name), name


@pytest.mark.skipif(not driver_is_missing(), reason="this machine has NVIDIA's driver")
def test_the_real_module_without_a_driver_is_unknown_with_its_reason() -> None:
    with pytest.raises(MemoryUnknownError, match=r"NVML: .*(Not Found|Not Loaded)"):
        NvmlProbe().devices()
    found = LocalProbe(amd=AmdProbe(Path("nowhere"))).read()
    assert found.devices == ()
    assert found.devices_unknown is not None
    assert "NVML" in found.devices_unknown
    with pytest.raises(MemoryUnknownError, match="NVML"):
        found.device()


def test_where_there_is_no_library_of_the_driver_it_is_said_as_the_real_module_says_it_which_is_not_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nvml, "LIBRARY", "libnowhere.so.1")
    monkeypatch.delitem(sys.modules, "pynvml")
    missing = pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    with pytest.raises(MemoryUnknownError) as told:
        NvmlProbe().devices()
    assert told.value.reason == f"NVML: {missing}"
    assert "pynvml" not in sys.modules


def test_a_card_is_read_by_what_is_free() -> None:
    (card,) = probe(Card(total=16 * GIB, free=10 * GIB)).devices()
    assert (card.id, card.name) == ("gpu0", "NVIDIA Fake 4080")
    assert card.free == Reading("nvml", 10 * GIB)
    # Not the driver's `used`, which leaves out what the driver itself reserves.
    assert card.room.used.get() == 6 * GIB
    assert card.busy_percent == Reading("nvml", 37)
    assert not card.unified


def test_an_older_driver_is_asked_the_older_way() -> None:
    (card,) = probe(Card(old_driver=True)).devices()
    assert card.free.get() == 10 * GIB


def test_several_cards_are_told_apart_and_one_lost_is_unknown() -> None:
    first, second, third = probe(Card(free=GIB), Card(lost=True), Card(free=3 * GIB)).devices()
    assert [each.id for each in (first, second, third)] == ["gpu0", "gpu1", "gpu2"]
    assert second.free.reason == "GPU is lost"
    with pytest.raises(MemoryUnknownError, match="GPU is lost"):
        second.free.get()
    assert third.free.get() == 3 * GIB


@pytest.mark.parametrize(
    "error", [pynvml.NVMLError_NoPermission, pynvml.NVMLError_Unknown], ids=lambda error: error.__name__
)
def test_memory_that_cannot_be_read_is_unknown_not_0(error: type[Exception]) -> None:
    (card,) = probe(Card(memory_error=error)).devices(host=(known(64 * GIB), known(9 * GIB)))
    assert card.free.value is None
    assert card.free.reason == str(error())
    assert card.room.used.value is None


def test_utilisation_that_is_not_supported_is_unknown() -> None:
    (card,) = probe(Card(busy=None)).devices()
    assert card.busy_percent.value is None
    assert card.busy_percent.reason == "Not Supported"
    assert card.free.known


def test_the_instances_of_a_divided_card_are_read_and_the_whole_is_not() -> None:
    parts = {
        0: Card(total=20 * GIB, free=4 * GIB, busy=None),
        2: Card(total=10 * GIB, free=9 * GIB, busy=None),
    }
    whole = Card(memory_error=pynvml.NVMLError_NoPermission, parts=parts)
    found = probe(whole, Card()).devices()
    assert [each.id for each in found] == ["gpu0/mig0", "gpu0/mig2", "gpu1"]
    assert [each.free.get() for each in found] == [4 * GIB, 9 * GIB, 10 * GIB]


@pytest.mark.parametrize(
    "card", [Card(memory_error=pynvml.NVMLError_NotSupported), Card(total=0, free=0)], ids=["error", "zero"]
)
def test_a_card_without_memory_of_its_own_has_the_hosts(card: Card) -> None:
    (found,) = probe(card).devices(host=(known(64 * GIB), known(9 * GIB)))
    assert found.unified
    assert (found.total.get(), found.free.get()) == (64 * GIB, 9 * GIB)
    assert found.free.source == "test"
    (alone,) = probe(card).devices()
    assert alone.free.value is None
    (unread,) = probe(card).devices(host=(unknown(), unknown()))
    assert unread.free.value is None


def test_the_cards_that_hold_the_model_are_those_of_the_engines_processes() -> None:
    cards = probe(Card(pids=(7, 8)), Card(pids=(9,)), Card())
    assert [each.holds_model for each in cards.devices([9, 10])] == [None, True, None]
    assert [each.holds_model for each in cards.devices()] == [None, None, None]


def test_a_driver_that_is_missing_is_asked_again_only_after_a_minute() -> None:
    fake = FakeNvml([Card()], init_error=pynvml.NVMLError_DriverNotLoaded)
    now = [0.0]
    watched = NvmlProbe(fake, now=lambda: now[0])
    for _ in range(5):
        with pytest.raises(MemoryUnknownError, match="Driver Not Loaded"):
            watched.devices()
    assert fake.calls == ["init"]
    fake.init_error = None
    now[0] = AGAIN_S
    assert watched.devices()[0].free.known
    watched.devices()
    assert fake.calls == ["init", "init"]
    watched.close()
    watched.close()
    assert fake.calls[2:] == ["shutdown"]


def test_a_driver_that_was_reloaded_is_greeted_anew() -> None:
    fake = FakeNvml([Card()])
    watched = NvmlProbe(fake)
    watched.devices()
    fake.count_error = pynvml.NVMLError_Uninitialized
    with pytest.raises(MemoryUnknownError, match="Uninitialized"):
        watched.devices()
    fake.count_error = None
    assert watched.devices()[0].free.known
    assert fake.calls == ["init", "shutdown", "init"]


def amd_card(root: Path, name: str, **numbers: int | str) -> None:
    folder = root / name / "device"
    folder.mkdir(parents=True)
    for file, value in numbers.items():
        (folder / file).write_text(f"{value}\n")


def test_amd_cards_are_read_from_the_drivers_files(tmp_path: Path) -> None:
    vram = {"mem_info_vram_total": 24 * GIB, "mem_info_vram_used": 5 * GIB, "gpu_busy_percent": 91}
    amd_card(tmp_path, "card1", **vram)
    amd_card(tmp_path, "card0", vendor="0x10de")  # another maker's: no such files
    (tmp_path / "card1-DP-1" / "device").mkdir(parents=True)
    (card,) = AmdProbe(tmp_path).devices()
    assert (card.id, card.total, card.free) == (
        "card1",
        Reading("amdgpu", 24 * GIB),
        Reading("amdgpu", 19 * GIB),
    )
    assert card.busy_percent.get() == 91
    assert not card.unified


def test_graphics_of_a_processor_count_the_host_memory_they_may_use(tmp_path: Path) -> None:
    amd_card(
        tmp_path,
        "card0",
        mem_info_vram_total=512 * MIB,
        mem_info_vram_used=500 * MIB,
        mem_info_gtt_total=15 * GIB,
        mem_info_gtt_used=3 * GIB,
    )
    (card,) = AmdProbe(tmp_path).devices()
    assert card.unified
    assert card.total.get() == 512 * MIB + 15 * GIB
    assert card.free.get() == 12 * MIB + 12 * GIB
    assert card.busy_percent.value is None


@pytest.mark.parametrize(("used", "reason"), [("", "mem_info_vram_used"), ("-5", "-5"), ("n/a", "n/a")])
def test_an_amd_number_that_is_none_is_unknown(tmp_path: Path, used: str, reason: str) -> None:
    amd_card(tmp_path, "card0", mem_info_vram_total=24 * GIB, mem_info_vram_used=used)
    (card,) = AmdProbe(tmp_path).devices()
    assert card.free.value is None
    assert reason in str(card.free.reason)


def test_no_amd_card_is_unknown_with_its_reason(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "absent"):
        with pytest.raises(MemoryUnknownError, match="amdgpu: "):
            AmdProbe(root).devices()


def test_of_one_makers_machine_the_others_cards_are_missed_only_if_they_were_there(tmp_path: Path) -> None:
    amd_card(tmp_path, "card0", mem_info_vram_total=24 * GIB, mem_info_vram_used=GIB)
    fake = FakeNvml([Card()])
    both = LocalProbe(nvml=NvmlProbe(fake), amd=AmdProbe(tmp_path), host=HostProbe([1], group=lambda: None))
    assert [each.id for each in both.read().devices] == ["gpu0", "card0"]
    fake.count_error = pynvml.NVMLError_GpuIsLost
    lost = both.read()
    assert [each.id for each in lost.devices] == ["card0"]
    assert lost.devices_unknown == "NVML: GPU is lost"
    fake.init_error = fake.count_error = pynvml.NVMLError_LibraryNotFound
    never = LocalProbe(nvml=NvmlProbe(fake), amd=AmdProbe(tmp_path), host=HostProbe([1], group=lambda: None))
    assert never.read().devices_unknown is None
