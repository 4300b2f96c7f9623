"""The site in a real browser: from a missing FLAIR to a synthetic one, from a plan to a yes; nothing refused."""

import json
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.cohort.worlds import write_cohort
from support.model.models import AMM_TINY, release, signed
from support.page.chromium import Window, browser  # noqa: F401  (a fixture)
from support.page.pages import listening

from client.page.index import Index
from client.page.place import Place
from client.page.site import look_of, routes
from client.site import plans
from client.site.ledger import LEDGER, Ledger
from shared.data.bids import read_decisions

pytestmark = pytest.mark.slow  # left out of `make fast`

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"


def place(tmp_path: Path) -> Place:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    cohort = write_cohort(tmp_path / "cohort", "a", [("T1", "T2"), ("T1", "T2", "FLAIR")])
    table = (cohort / "participants.tsv").read_text().replace("\tF\t", f"\t{HOSTILE}\t")
    (cohort / "participants.tsv").write_text(table)
    bundle, key = signed(tmp_path / "bundle", release(tmp_path / "run" / "final", "amm_diff", AMM_TINY))
    return Place(state=state, cohorts=(cohort,), bundles=(bundle,), trust=key)


def asked_and_left(state: Path) -> None:
    config = json.dumps({"method": {"name": HOSTILE}})
    with plans._open(state, make=True) as file:
        name = plans.plan_id("first", config)
        file.execute("INSERT INTO plans (id, run, config, came) VALUES (?, 'first', ?, ?)", (name, config, time.time()))
        row = (time.time(), name, "translate", 0, "PlanWaits: it waits", None)
        file.execute("INSERT INTO asked (at, plan, phase, round, verdict, worked) VALUES (?, ?, ?, ?, ?, ?)", row)
    fields = {"update.site": "a", "update.run": "first", "update.counts": "{}", "update.metrics": "{}"}
    facts = {"fields": {**fields, "update.spent": ""}, "tensors": [], "norm": 0.0, "bytes": 9, "sha256": "0" * 64}
    asked = {"run": "first", "phase": "translate", "round": 0}
    Ledger(state / LEDGER).release(lambda before: facts, asked)


def is_drawn(frame: object) -> bool:
    """Is there a brain on the black?"""
    shown = np.asarray(Image.open(BytesIO(frame.screenshot())).convert("L"), dtype=float)  # type: ignore[attr-defined]
    return bool((shown > 60).mean() > 0.02)


def ready(window: Window) -> None:
    window.page.wait_for_selector("#frames[data-ready]")
    assert not window.page.query_selector("[data-failed]")


def test_from_a_missing_flair_to_a_synthetic_one(browser: Window, tmp_path: Path) -> None:  # noqa: F811
    here = place(tmp_path)
    look = look_of(here)
    with listening(routes(here, look, Index(here.cohorts, here.key)), look) as served:
        page = browser.page
        browser.open(served.link())
        browser.picture("subjects")
        page.click("text=sub-asecret000")
        ready(browser)
        canvases = page.query_selector_all(".frame canvas")
        assert len(canvases) == 2
        assert all(is_drawn(canvas) for canvas in canvases)
        canvases[0].click(position={"x": 60, "y": 120})  # one cursor for all
        first = page.inner_text("#where")
        page.keyboard.press("ArrowUp")
        assert page.inner_text("#where") != first
        assert "at=" in page.url
        assert "asecret" not in page.url
        browser.picture("subject-missing")

        page.click("text=Fill in")
        page.select_option("select[name=sampler]", "multistep")
        page.fill("input[name=samples]", "2")
        browser.picture("fill")
        page.click("form.card button")
        page.wait_for_selector("#progress .said", timeout=400_000)  # it gives way to all other work
        assert page.query_selector("#progress .said.ok"), page.inner_text("#progress")
        browser.picture("work")
        page.click("text=Look at it")
        ready(browser)
        made = page.query_selector(".frame.synthetic")
        assert made is not None
        assert is_drawn(made.query_selector("canvas"))
        assert "SYNTHETIC" in made.inner_text()
        page.check("[data-layer=sd]")
        page.wait_for_selector("[data-over=sd]")
        browser.picture("subject-filled")

        page.fill("textarea[name=why]", f"moved {HOSTILE}")
        page.click("button[value=reject]")
        page.wait_for_selector("h1 .tag.bad")
        assert read_decisions(here.cohorts[0])["sub-asecret000"]["decision"] == "reject"
        page.click("text=Decisions")
        assert HOSTILE in page.inner_text("table")
        browser.picture("decisions")


def test_from_a_plan_to_a_yes_and_what_left(browser: Window, tmp_path: Path) -> None:  # noqa: F811
    here = place(tmp_path)
    asked_and_left(here.state)
    look = look_of(here)
    with listening(routes(here, look, Index(here.cohorts, here.key)), look) as served:
        page = browser.page
        browser.open(served.link())
        page.fill("input[type=search]", "asecret001")
        page.wait_for_selector("#rows tbody tr:only-child th")
        assert page.url.endswith("#q=asecret001")  # behind the #: told to nobody
        page.click("text=Plans")
        page.click("text=Run first waits for your word.")
        browser.picture("plan")
        page.fill("textarea[name=why]", "the board agreed")
        page.click("button[value=approved]")
        page.wait_for_selector(".said.ok")
        assert plans.listing(here.state)[0].said == "approved"
        browser.picture("plan-approved")
        page.click("text=What left")
        entry = next(Ledger(here.state / LEDGER).entries())
        receipt = {"site": "a", "run": "first", "phase": "translate", "round": 0, "sha256": entry["sha256"]}
        receipts = json.dumps({"run": "first", "site": "a", "receipts": [{**receipt, "link": entry["before"]}]})
        file = {"name": "receipts.json", "mimeType": "application/json", "buffer": receipts.encode()}
        page.set_input_files("[type=file]", file)
        page.click("form[data-raw] button")
        page.wait_for_selector("#compared .said.ok")
        browser.picture("left")
        page.click("text=Doctor")
        page.wait_for_selector("#checks table")
        browser.picture("doctor")
        page.click("header button")
        page.wait_for_selector(".said.bad")
        browser.said.clear()  # that the page is refused now is a line on the console


def test_no_page_keeps_people_out(browser: Window, tmp_path: Path) -> None:  # noqa: F811
    here = place(tmp_path)
    asked_and_left(here.state)
    look = look_of(here)
    with listening(routes(here, look, Index(here.cohorts, here.key)), look) as served:
        browser.open(served.link())
        base = served.url.rstrip("/")
        one = browser.page.get_attribute("table.rows tbody th a", "href")
        plan = plans.listing(here.state)[0].id
        pages = ["/subjects", one, f"{one}/fill", "/work", "/left", "/left/0", "/plans", f"/plans/{plan}", "/budget"]
        for path in [*pages, "/decisions", "/subjects?lang=de"]:
            browser.page.goto(base + path)
            if path == one:
                ready(browser)
            assert browser.faults() == [], path
        for width in (820, 1280):
            browser.page.set_viewport_size({"width": width, "height": 1100})
            browser.page.goto(base + "/subjects")
            wide = browser.page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, f"{wide} px on {width}"
