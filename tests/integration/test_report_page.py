"""The pages in a real browser: no error, no request to any address, readable on every screen and on paper."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from analysis_support import (
    HOSTILE,
    LABELS,
    RATINGS,
    chat_line,
    error_line,
    prepared,
    write_files,
    write_journal,
    write_lines,
)
from browser_support import browser
from ollama_batch.analysis import analyze, compare

pytest.importorskip("jinja2")

FIELDS = {"recommendation": LABELS, "analysis.trajectory.rating": RATINGS}


@pytest.fixture(scope="module")
def chrome(pages: dict[str, Path]) -> Iterator[Any]:
    # After the pages: what makes them runs an event loop, and what drives the browser has one running.
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report of a 5,000-row run, one of its files, a comparison, and a report of hostile answers."""
    folder = tmp_path_factory.mktemp("pages")
    rows = prepared(5000)
    journal, files = write_journal(folder / "run.db", rows), write_files(folder, rows)
    other = write_files(folder, prepared(5000, seed=8), name="other.jsonl")
    said = [
        chat_line(text, json.dumps({"recommendation": text, "score": n})) for n, text in enumerate(HOSTILE)
    ]
    said += [chat_line(f"{text} 2", text) for text in HOSTILE]
    said += [error_line(f"{text} 3", 400, text, text) for text in HOSTILE]
    hostile = write_lines(folder / "hostile.jsonl", said)
    turned = [chat_line(text, json.dumps({"recommendation": text[::-1]})) for text in HOSTILE]
    turned += [chat_line(f"{text} 2", text[::-1]) for text in HOSTILE]
    backwards = write_lines(folder / "backwards.jsonl", turned)
    return {
        "journal": analyze(journal, fields=FIELDS, score="score").to_html(folder / "journal.html"),
        "files": analyze(files, fields="recommendation").to_html(folder / "files.html"),
        "compared": compare(files, other, fields=FIELDS, score="score").to_html(folder / "compared.html"),
        "hostile": analyze(hostile, fields="recommendation", score="score").to_html(folder / "hostile.html"),
        "hostile compared": compare(hostile, backwards).to_html(folder / "hostile-compared.html"),
    }


class Looked:
    """A page as the browser has it, and what it did meanwhile."""

    def __init__(
        self, chrome: Any, path: Path, *, width: int = 1280, dark: bool = False, media: str = "screen"
    ) -> None:
        self.page = chrome.new_page(
            viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light"
        )
        self.told: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.told.append(message.text))
        self.page.on("pageerror", lambda error: self.told.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.emulate_media(media=media)
        self.page.goto(path.as_uri())

    def run(self, script: str) -> Any:
        return self.page.evaluate(script)


NAMES = ("journal", "files", "compared", "hostile", "hostile compared")


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", NAMES)
def test_a_page_asks_nobody_reports_no_error_and_fits_its_screen(
    name: str, width: int, chrome: Any, pages: dict[str, Path]
) -> None:
    looked = Looked(chrome, pages[name], width=width)
    looked.page.mouse.move(300, 300)
    assert looked.told == []
    assert looked.asked == [pages[name].as_uri()], "nothing but the file itself"
    assert looked.run("document.scripts.length + document.images.length") == 0
    assert looked.page.title().startswith(("Results of", "What changed"))
    assert looked.run("document.documentElement.scrollWidth") <= width
    too_small = looked.run(
        "[...document.querySelectorAll('main *')].filter(e => !e.children.length && e.textContent.trim() "
        "&& e.getClientRects().length && parseFloat(getComputedStyle(e).fontSize) < 10.5).length"
    )
    assert too_small == 0
    looked.page.close()


def test_labels_of_an_axis_do_not_touch_on_a_phone(chrome: Any, pages: dict[str, Path]) -> None:
    looked = Looked(chrome, pages["journal"], width=390)
    touching = looked.run(
        """[...document.querySelectorAll('.plot .x')].map(axis => {
            const shown = [...axis.children].map(e => e.getBoundingClientRect()).filter(r => r.width)
                .sort((a, b) => a.left - b.left);
            return shown.slice(1).filter((r, n) => r.left < shown[n].right + 2).length;
        }).reduce((a, b) => a + b, 0)"""
    )
    assert touching == 0
    looked.page.close()


def test_a_dark_screen_gets_a_dark_page_and_paper_a_white_one(chrome: Any, pages: dict[str, Path]) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    light, dark = (Looked(chrome, pages["journal"], dark=each) for each in (False, True))
    paper = Looked(chrome, pages["journal"], dark=True, media="print")
    assert light.run(background) == "rgb(244, 243, 239)"
    assert dark.run(background) == "rgb(20, 20, 19)"
    assert paper.run(background) == "rgb(255, 255, 255)"
    assert paper.run("getComputedStyle(document.body).printColorAdjust") == "exact", "or bars are left out"
    assert paper.page.pdf(format="A4").startswith(b"%PDF")
    for looked in (light, dark, paper):
        looked.page.close()


def test_text_stands_out_from_what_is_behind_it(chrome: Any, pages: dict[str, Path]) -> None:
    """WCAG's contrast of text, 4.5 to 1, for ink and muted text on the page and on cards."""
    contrast = """() => {
        const style = getComputedStyle(document.documentElement);
        const light = name => {
            const hex = style.getPropertyValue(name).trim().slice(1);
            const part = n => parseInt(hex.slice(2 * n, 2 * n + 2), 16) / 255;
            const linear = v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
            return 0.2126 * linear(part(0)) + 0.7152 * linear(part(1)) + 0.0722 * linear(part(2));
        };
        const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        return Math.min(...['--ink', '--muted'].flatMap(ink => ['--page', '--card'].map(
            behind => ratio(light(ink), light(behind)))));
    }"""
    for dark in (False, True):
        looked = Looked(chrome, pages["journal"], dark=dark)
        assert looked.run(contrast) >= 4.5
        looked.page.close()


def test_pointing_at_a_plot_tells_its_figures(chrome: Any, pages: dict[str, Path]) -> None:
    looked = Looked(chrome, pages["journal"])
    hit = looked.page.locator("figure.wide .hit").nth(5)
    hit.hover()
    shown = looked.run(
        "getComputedStyle(document.querySelectorAll('figure.wide .hit')[5], '::after').content"
    )
    assert "finished: " in shown
    assert "failed: " in shown or "failed" not in shown
    looked.page.close()


@pytest.mark.parametrize("name", ["hostile", "hostile compared"])
def test_what_a_model_said_is_shown_as_text(name: str, chrome: Any, pages: dict[str, Path]) -> None:
    looked = Looked(chrome, pages[name])
    text = looked.run("document.body.textContent")
    assert '<script>document.title = "owned"</script>' in text
    assert "{{ 7 * 7 }}" in text
    assert "javascript:alert(1)" in text
    assert "owned" not in looked.page.title()
    assert looked.run("document.querySelectorAll('h1').length") == 1
    looked.page.close()


def test_the_page_of_5000_rows_is_below_two_megabytes(pages: dict[str, Path]) -> None:
    assert pages["journal"].stat().st_size < 2_000_000
    assert pages["journal"].stat().st_size < 400_000, "it was 130,000 when this was written"
