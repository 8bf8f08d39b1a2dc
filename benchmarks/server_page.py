"""The server's page in a headless Chromium: batches appear, move, complete, download, are cancelled.

Needs playwright (pip install playwright) and a Chromium (`--chromium PATH`). Screenshots: benchmarks/out.
"""

from __future__ import annotations

import sys
from typing import Any

import harness
import httpx
from harness import OUT, Goal, Outcome
from server_load import CHAT, lines, server


def submitted(url: str, count: int, name: str) -> str:
    """The id of a new batch. Without asyncio, which playwright has a loop of."""
    form: Any = {"file": ("in.jsonl", lines(count, name))}
    with httpx.Client(base_url=f"{url}/v1", timeout=60) as client:
        file = client.post("/files", data={"purpose": "batch"}, files=form).json()["id"]
        asked = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
        return str(client.post("/batches", json=asked).json()["id"])


def main() -> int:
    args = harness.parser(__doc__)
    args.add_argument("--chromium", default="/usr/bin/chromium", help="its program (/usr/bin/chromium)")
    found = args.parse_args()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        print("playwright is not installed: pip install playwright", file=sys.stderr)
        return 2
    said: list[str] = []
    steps: dict[str, bool] = {}
    OUT.mkdir(exist_ok=True)
    with server(0.02) as (url, _), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found.chromium, args=["--no-sandbox"])
        for scheme, size in (("dark", (390, 800)), ("light", (1100, 800))):
            context: Any = browser.new_context(
                color_scheme=scheme,
                viewport={"width": size[0], "height": size[1]},
                accept_downloads=True,
            )
            page = context.new_page()
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            page.on("dialog", lambda dialog: dialog.accept())
            page.goto(f"{url}/")
            if scheme == "dark":
                steps["an empty page says so"] = page.wait_for_selector("#none") is not None
            long = submitted(url, 4_000, f"{scheme}-long")
            card = f"section:has-text('{long}')"
            page.wait_for_selector(f"{card} >> text=in progress")
            moved: set[float] = set()
            for _ in range(100):
                moved.add(page.eval_on_selector(f"{card} progress", "bar => bar.value"))
                if len(moved) > 2:
                    break
                page.wait_for_timeout(200)
            steps[f"{scheme}: a batch appears and moves"] = len(moved) > 2
            page.screenshot(path=str(OUT / f"server_page_{scheme}.png"), full_page=True)
            page.focus(f"{card} button")
            page.keyboard.press("Enter")
            page.wait_for_selector(f"{card} >> text=cancelled")
            steps[f"{scheme}: cancel by keyboard"] = True
            short = submitted(url, 50, f"{scheme}-short")
            page.wait_for_selector(f"section.completed:has-text('{short}')")
            with page.expect_download() as download:
                page.click(f"section:has-text('{short}') >> text=Download results")
            path = download.value.path()
            steps[f"{scheme}: completes and downloads"] = len(path.read_text().splitlines()) == 50
            wide = page.evaluate("document.documentElement.scrollWidth > innerWidth")
            steps[f"{scheme}: nothing is wider than the screen"] = not wide
            context.close()
        browser.close()
    goals = [
        Goal("steps that worked", float(sum(steps.values())), float(len(steps)), "", True),
        Goal("messages in the console", float(len(said)), 0),
    ]
    rows = [[step, "yes" if worked else "no"] for step, worked in steps.items()]
    Outcome(
        "server_page", harness.command_line(), ["step", "worked"], rows, goals, [], said, found.quick
    ).publish()
    return 0


if __name__ == "__main__":
    sys.exit(main())
