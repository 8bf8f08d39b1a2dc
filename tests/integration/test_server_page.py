"""The server's page in a real browser: what a person is told, by keyboard, on a phone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from browser_support import browser
from ollama_batch.testing import FakeOllama
from server_support import KEYS, Serving, create, ended, jsonl, line, rows, serving

NAME = '<img src=x onerror=alert(1)> "nightly"'


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server with a failed, a finished and a running batch of one key."""
    folder = tmp_path_factory.mktemp("server") / "data"
    with FakeOllama() as fake, serving(folder, fake, keys=KEYS) as served:
        client = served.sdk(KEYS[0])
        ended(client, create(client, b"x\n" * 30).id)
        mixed = jsonl(line("good"), line("bad", n=2))
        ended(client, create(client, mixed, metadata={"name": NAME}).id)
        fake.hold()
        create(client, rows(3))
        yield served


@pytest.fixture(scope="module")
def chrome(locked: Serving) -> Iterator[Any]:
    with browser() as started:
        yield started


def test_the_page_asks_for_a_key_and_shows_what_is_of_that_key(chrome: Any, locked: Serving) -> None:
    said: list[str] = []
    page = chrome.new_page(viewport={"width": 390, "height": 800}, color_scheme="dark")
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto(f"{locked.url}/")
    page.wait_for_selector("#key:visible")
    assert page.inner_text("#engine") == "a key is needed"
    assert said == [], "nothing was asked for in vain"
    page.focus("#key")
    page.keyboard.type("sk-nobodys-0123456789")
    page.keyboard.press("Enter")
    page.wait_for_selector("#engine:text-is('the server does not know this key')")
    said.clear()  # the browser tells of the 401 by itself
    page.keyboard.type(KEYS[0])
    page.keyboard.press("Enter")
    page.wait_for_selector("section.in_progress")
    running, done, failed = page.query_selector_all("section")
    assert "line 1: This line is not parseable as valid JSON." in failed.inner_text()
    assert "and more: the batch itself lists 30" in failed.inner_text()
    assert f"name: {NAME}" in done.inner_text()
    assert "1 of 2 done, 1 failed" in done.inner_text()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    running.query_selector("button").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("section.cancelling, section.cancelled")
    locked.fake.release()
    page.wait_for_selector("section.cancelled >> text=Download results")
    assert said == []
