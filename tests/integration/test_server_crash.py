"""A server may be killed at any moment, and is alone on its data folder."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ollama_batch._points import SERVER_POINTS
from ollama_batch.errors import JournalLockedError
from ollama_batch.server import create_app
from ollama_batch.testing import FakeOllama
from server_crash_support import CHILD, STATES, ServerCampaign
from server_support import create, ended, rows, serving

KILLS = 5
"""So many in each state; benchmarks/server_crash.py has 20."""


@pytest.mark.slow
def test_a_kill_in_every_state_loses_and_doubles_nothing(tmp_path: Path) -> None:
    with ServerCampaign(tmp_path / "data", lines=10) as campaign:
        for state in STATES:
            for after in range(3 * KILLS):  # some pass the state before so many points
                if campaign.states[state] >= KILLS:
                    break
                campaign.kill_in(state, after % KILLS)
        campaign.kill_in_upload()
        campaign.finish()
    assert campaign.problems == []
    assert all(campaign.states[state] >= KILLS for state in STATES), campaign.states
    assert campaign.kills > KILLS * len(STATES)


@pytest.mark.slow
def test_a_kill_at_the_servers_own_points_loses_and_doubles_nothing(tmp_path: Path) -> None:
    points = [p for p in SERVER_POINTS if p.startswith("server.") and p != "server.before_forget"]
    with ServerCampaign(tmp_path / "data", lines=8) as campaign:
        for point in points:
            campaign.kill_at(point)
        campaign.finish()
    assert campaign.problems == []
    assert campaign.kills == len(points)


def test_a_data_folder_has_one_server(tmp_path: Path, fake_ollama_factory: Callable[..., FakeOllama]) -> None:
    with serving(tmp_path / "data", fake_ollama_factory()) as server:
        with pytest.raises(JournalLockedError, match="in use by another server"):
            create_app(tmp_path / "data", base_url=server.fake.url).state.service.open()
        told = {"data": str(tmp_path / "data"), "port": 0, "engine": server.fake.url, "kill": None}
        second = subprocess.run(
            [sys.executable, str(CHILD), json.dumps(told)], capture_output=True, timeout=60, check=False
        )
        assert second.returncode != 0
        assert b"is in use by another server" in second.stderr
        client = server.sdk()
        assert ended(client, create(client, rows(2)).id).status == "completed", "the first is not disturbed"


def test_a_stop_and_a_start_keep_ids_and_work(
    tmp_path: Path, fake_ollama_factory: Callable[..., FakeOllama]
) -> None:
    fake = fake_ollama_factory()
    with serving(tmp_path / "data", fake) as server:
        fake.hold()
        batch = create(server.sdk(), rows(20))
    with serving(tmp_path / "data", fake) as server:
        again = ended(server.sdk(), batch.id)
        assert (again.status, again.request_counts.completed) == ("completed", 20)


def test_what_a_kill_left_of_an_upload_is_never_served(
    tmp_path: Path, fake_ollama_factory: Callable[..., FakeOllama]
) -> None:
    fake, folder = fake_ollama_factory(), tmp_path / "data"
    with serving(folder, fake):
        pass
    for name in ("tmp/draft-1", "files/file-1", "parts/part_1", "runs/batch_1/input.jsonl"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"half")
    with serving(folder, fake) as server:
        assert list(server.sdk().files.list()) == []
        assert [path for path in folder.rglob("*") if path.is_file() and b"half" in path.read_bytes()] == []
