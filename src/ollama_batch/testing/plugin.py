"""Fixtures for pytest: a fake Ollama for each test that asks for one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ollama_batch.testing.server import FakeOllama


@pytest.fixture
def fake_ollama_factory(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., FakeOllama]]:
    """Starts fake servers with the settings of FakeOllama; all of them end with the test.

    What runs learn in the test stays in it: $XDG_STATE_HOME is a new folder until the test ends.
    """
    from ollama_batch.testing.server import FakeOllama

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
    with ExitStack() as stack:

        def make(**settings: Any) -> FakeOllama:
            return stack.enter_context(FakeOllama(**settings))

        yield make


@pytest.fixture
def fake_ollama(fake_ollama_factory: Callable[..., FakeOllama]) -> FakeOllama:
    """A fake Ollama of its own for one test, with the model `toy:1b`."""
    return fake_ollama_factory()
