"""The coordinator's pages over HTTP: a run while it goes on, runs side by side, the federation; names stay text."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.flower import federations
from support.page.pages import Browser, entered, listening
from support.page.runs import make_run

from server.journal import chronicle, events
from server.page.coordinator import look_of, routes
from server.page.house import House
from shared.page.serve import Where
from shared.trust.keys import spoken

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    make_run(tmp_path / "runs", "first")
    make_run(tmp_path / "runs", "second", seed=1, reason=HOSTILE)
    return tmp_path / "runs"


@pytest.fixture
def me(runs: Path, tmp_path: Path) -> Iterator[Browser]:
    house = House(runs=runs, federation=tmp_path / "federation")
    look = look_of(house)
    with listening(routes(house, look), look) as served:
        yield entered(served)


def test_runs_are_listed_with_their_state(me: Browser) -> None:
    page = me.http.get("/runs").text
    assert 'href="/runs/first"' in page
    assert "interrupted" in page


def test_a_run_shows_rounds_holders_coverage_and_refusals(me: Browser) -> None:
    page = me.http.get("/runs/second").text
    for text in ("3 of 10", "to:FLAIR", "7-11", "nobody", "mlflow ui --backend-store-uri sqlite:///runs/mlflow.db"):
        assert text in page, text
    assert "&lt;script&gt;alert(1)" in page
    assert HOSTILE not in page
    assert "<svg" in page


def test_a_run_that_goes_on_says_who_is_at_work_and_asks_again(me: Browser, runs: Path) -> None:
    folder = runs / "first"
    with chronicle.working(folder), (folder / chronicle.EVENTS).open("wb") as file:
        for event in (events.Began(), events.SiteStarted(site="north")):
            file.write(events.line(event, time.time()))
        file.flush()
        page = me.http.get("/runs/first").text
        assert 'hx-trigger="every 3s"' in page
        assert "at work" in page
        part = me.http.get("/runs/first", headers={"HX-Request": "true"}).text
        assert "<html" not in part
        assert "at work" in part
    assert 'hx-trigger="every 3s"' not in me.http.get("/runs/first").text


def test_runs_are_compared_by_what_differs(me: Browser) -> None:
    page = me.http.get("/compare?r.first=1&r.second=1&r.nobody=1").text
    assert "psnr/FLAIR" in page
    assert ">seed<" in page
    assert "nobody" not in page
    assert "Tick two runs" in me.http.get("/compare").text


@pytest.mark.parametrize("name", ["%2e%2e", "nobody", "first%2f..", ".page", "%00"])
def test_only_runs_that_are_there_are_shown(me: Browser, name: str) -> None:
    assert me.http.get(f"/runs/{name}").status_code == 404
    assert me.http.get(f"/runs/{name}/mosaic/config.json").status_code == 404
    assert me.http.get("/runs/first/mosaic/..%2fconfig.json").status_code == 404
    assert me.http.get(f"/runs/first/mosaic/{name}").status_code == 404


def test_a_simulation_is_not_stopped_from_here(me: Browser) -> None:
    answer = me.post("/runs/first/stop", why="too slow")
    assert answer.status_code == 409
    assert "nobody works on it" in answer.text


def test_the_federation_and_what_expires(me: Browser, tmp_path: Path) -> None:
    assert "lacuna federation init" in me.http.get("/federation").text
    assert me.http.get("/decisions").status_code == 200
    folder = federations.make(tmp_path / "federation")
    federations.enter(folder, tmp_path / "north", "north")
    page = me.http.get("/federation").text
    assert 'scope="row">north' in page
    assert spoken(federations.signer(folder)) in page
    assert "What expires" in page


def test_empty_states_say_what_to_type(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    house = House(runs=tmp_path / "runs", federation=tmp_path / "federation")
    look = look_of(house)
    with listening(routes(house, look), look, Where(readonly=True)) as served:
        me = entered(served)
        assert "lacuna simulate" in me.http.get("/runs").text
        assert me.post("/runs/first/stop").status_code == 403
