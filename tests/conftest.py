"""What holds for every test."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

# A machine that is busy for a moment is no counterexample.
settings.register_profile("house", deadline=None)
settings.load_profile("house")


@pytest.fixture(autouse=True, scope="session")
def state_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test, and no process that one starts, learns from the user's own runs or writes among them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        assert os.environ["XDG_STATE_HOME"]
        yield


def pytest_collection_finish() -> None:
    """Leave what is there by now out of later collections, whose pauses would be long ones."""
    gc.collect()
    gc.freeze()
