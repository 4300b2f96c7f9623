"""The coordinator's pages in a real browser: a run that goes on is seen to go on; no page keeps people out."""

import time
from pathlib import Path

import pytest
from support.flower import federations
from support.page.chromium import Window, browser  # noqa: F401  (a fixture)
from support.page.pages import listening
from support.page.runs import make_run

from server.journal import chronicle, events, facts
from server.page.coordinator import look_of, routes
from server.page.house import House

pytestmark = pytest.mark.slow  # left out of `make fast`


def test_a_run_is_seen_to_go_on(browser: Window, tmp_path: Path) -> None:  # noqa: F811
    folder = make_run(tmp_path / "runs", "first")
    house = House(runs=tmp_path / "runs", federation=tmp_path / "federation")
    look = look_of(house)
    with listening(routes(house, look), look) as served, chronicle.working(folder):
        with (folder / chronicle.EVENTS).open("wb") as file:
            file.write(events.line(events.Began(), time.time()))
            file.write(events.line(events.SiteStarted(site="north"), time.time()))
        page = browser.page
        browser.open(served.link())
        page.click("text=first")
        page.wait_for_selector("h1 .tag.now")
        assert "at work" in page.inner_text("#progress")
        assert "3 of 10" in page.inner_text("#progress")
        *_, last = facts.read(folder / "rounds.jsonl")
        facts.append(folder / "rounds.jsonl", facts.RoundFacts(**{**_fields(last), "round": 3}))
        page.wait_for_selector("text=4 of 10")  # it asked again by itself
        browser.picture("run-live")
        browser.said.clear()


def _fields(one: facts.RoundFacts) -> dict[str, object]:
    return {name: getattr(one, name) for name in facts.RoundFacts.__dataclass_fields__}


def test_no_page_keeps_people_out(browser: Window, tmp_path: Path) -> None:  # noqa: F811
    make_run(tmp_path / "runs", "first")
    make_run(tmp_path / "runs", "second", seed=1, reason="its policy says no")
    folder = federations.make(tmp_path / "federation")
    federations.enter(folder, tmp_path / "north", "north")
    house = House(runs=tmp_path / "runs", federation=folder)
    look = look_of(house)
    with listening(routes(house, look), look) as served:
        browser.open(served.link())
        for name, path in (
            ("runs", "/runs"),
            ("run", "/runs/second"),
            ("compare", "/compare?r.first=1&r.second=1"),
            ("federation", "/federation"),
            ("decisions-coordinator", "/decisions"),
        ):
            browser.page.goto(served.url.rstrip("/") + path)
            browser.picture(name)
            assert browser.faults() == [], path
