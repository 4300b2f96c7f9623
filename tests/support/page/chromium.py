"""Debian's Chromium for tests, driven by Playwright, drawing WebGL without a graphics card.

    def test_something(browser: Window) -> None:     # skipped where there is no Chromium or no Playwright

A page that says anything on its console (a refused script, a missing file) fails the test. With LACUNA_PICTURES=FOLDER
every `picture` is kept there, for a person to look at.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-sandbox")
PATIENCE = 180_000.0  # ms: software drawing on two shared cores
SERIOUS = ("serious", "critical")


@dataclass
class Window:
    page: Any  # of Playwright
    said: list[str] = field(default_factory=list)  # on the console

    def open(self, link: str) -> None:
        self.page.goto(link)
        self.page.wait_for_selector("nav")

    def picture(self, name: str) -> bytes:
        content = bytes(self.page.screenshot(full_page=True))
        folder = os.environ.get("LACUNA_PICTURES")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            (Path(folder) / f"{name}.png").write_bytes(content)
        return content

    def faults(self) -> list[str]:
        """What axe-core finds that keeps people out."""
        import axe_playwright_python

        axe = Path(axe_playwright_python.__file__).with_name("axe.min.js").read_text(encoding="utf-8")
        self.page.evaluate(axe)
        found = self.page.evaluate("axe.run().then(r => r.violations.map(v => [v.impact, v.id, v.nodes[0].html]))")
        return [f"{rule}: {where}" for impact, rule, where in found if impact in SERIOUS]


def why_not() -> str | None:
    if PROGRAM is None:
        return "there is no Chromium: apt install chromium"
    if find_spec("playwright") is None or find_spec("axe_playwright_python") is None:
        return "playwright and axe-playwright-python are not installed: make install"
    if not (Path(__file__).parents[3] / "shared/page/vendor/niivue.umd.js").is_file():
        return "NiiVue is not there: python deploy/vendor.py"
    return None


@pytest.fixture
def browser() -> Iterator[Window]:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=PROGRAM, args=list(FLAGS))
        context = chromium.new_context(viewport={"width": 1280, "height": 860}, locale="en-GB")
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        window = Window(page=page)
        page.on("console", lambda message: window.said.append(message.text))
        page.on("pageerror", lambda error: window.said.append(str(error)))
        page.on("dialog", lambda dialog: (window.said.append(f"dialog {dialog.message}"), dialog.dismiss()))
        yield window
        said = list(window.said)  # before the server goes, and a page that asks again hears nothing
        chromium.close()
    assert said == []
