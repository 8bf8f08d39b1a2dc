"""A real headless Chromium for the tests of pages, or the reason why there is none."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
QUIET = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
"""So that the browser asks nobody anything of its own accord."""


def chromium() -> str:
    """The browser's program. Skips the test where it or what drives it is missing, and fails it in CI."""
    found = next((path for name in NAMES if (path := shutil.which(name)) is not None), None)
    lacking = "Chromium" if found is None else None
    if importlib.util.find_spec("playwright") is None:
        lacking = "playwright"
    if lacking is None:
        assert found is not None
        return found
    reason = f"needs {lacking} to look at pages (apt-get install chromium; pip install playwright)"
    if os.environ.get("CI"):
        pytest.fail(f"{reason}: CI promises it")
    pytest.skip(reason)


@contextmanager
def browser() -> Iterator[Any]:
    """Chromium without a window, driven by Playwright."""
    program = chromium()
    from playwright.sync_api import sync_playwright

    # As root, which containers often are, it starts only without its own sandbox.
    alone = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=program, args=[*QUIET, *alone])
        try:
            yield started
        finally:
            started.close()
