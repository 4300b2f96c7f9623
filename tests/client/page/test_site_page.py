"""The site's pages over HTTP, as a browser would ask: what they show, what a person's word writes, what they refuse."""

import io
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from support.cohort.cohorts import cohort_of
from support.page.pages import Browser, entered, listening

from client.page.index import Index
from client.page.place import Place
from client.page.site import look_of, routes
from client.site import plans
from client.site.ledger import LEDGER, Ledger
from shared.base.errors import DataError
from shared.data.bids import read_decisions
from shared.page.serve import Where

HOSTILE = 'x"><script>alert(1)</script><img src=x onerror=alert(2)>{{7*7}}'


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "state").mkdir(mode=0o700)
    cohort = cohort_of(tmp_path / "cohort", [("T1", "T2", "FLAIR"), ("T1",), ("T1", "FLAIR")])
    rows = "participant_id\tage\tsex\tdiagnosis\nsub-01\t61\tF\tAD\nsub-02\t70\tM\tHC\n"
    (cohort / "participants.tsv").write_text(rows)
    return Place(state=tmp_path / "state", cohorts=(cohort,))


@pytest.fixture
def me(place: Place) -> Iterator[Browser]:
    with opened(place) as browser:
        yield browser


class opened:
    def __init__(self, place: Place, where: Where | None = None) -> None:
        look = look_of(place)
        self._page = listening(routes(place, look, Index(place.cohorts, place.key)), look, where)

    def __enter__(self) -> Browser:
        return entered(self._page.__enter__())

    def __exit__(self, *error: object) -> None:
        self._page.__exit__(None, None, None)


def handle(me: Browser, subject: str) -> str:
    found = re.search(rf'href="/subjects/([0-9a-f]+)">{subject}<', me.http.get("/subjects").text)
    assert found is not None
    return found[1]


def test_subjects_are_listed_with_what_they_lack(me: Browser) -> None:
    page = me.http.get("/subjects").text
    assert all(f">{name}</a>" in page for name in ("sub-01", "sub-02", "sub-03"))
    assert "lacks T2 <b>2</b>" in page
    only = me.http.get("/subjects?without=FLAIR").text
    assert ">sub-02</a>" in only
    assert ">sub-01</a>" not in only


def test_no_address_bears_a_subjects_name(me: Browser) -> None:
    pages = [me.http.get("/subjects").text, me.http.get(f"/subjects/{handle(me, 'sub-01')}").text]
    for page in pages:
        for address in re.findall(r'(?:href|src|action|hx-[a-z]+|data-[a-z]+)="([^"]*)"', page):
            assert "sub-0" not in address, address


def test_a_search_is_sent_in_a_form_and_finds_words_of_the_chart(me: Browser) -> None:
    found = me.post("/subjects", q="ad 61").text
    assert ">sub-01</a>" in found
    assert ">sub-02</a>" not in found
    nobody = me.post("/subjects", q="nobody at all").text
    assert "Nobody is like that" in nobody


def test_a_volume_is_the_very_file_and_half_of_it_is_smaller(me: Browser, place: Place) -> None:
    one = handle(me, "sub-01")
    path = place.cohorts[0] / "sub-01/anat/sub-01_T1w.nii.gz"
    assert me.http.get(f"/image/{one}/T1").content == path.read_bytes()
    half = me.http.get(f"/image/{one}/T1?half=1").content
    assert half[:4] == (348).to_bytes(4, "little")
    assert len(half) < 2000
    poster = me.http.get(f"/image/{one}/T1?poster=1")  # what is seen before, and without, WebGL
    assert poster.headers["content-type"] == "image/png"
    assert np.asarray(Image.open(io.BytesIO(poster.content)).convert("L")).max() > 200


@pytest.mark.parametrize(
    "what",
    [
        "T2-synthetic",
        "CT",
        "T9",
        "..%2f..%2fparticipants.tsv",
        "T1-uncertainty",
        "T1-difference",
        "%00",
    ],
)
def test_only_what_the_index_has_is_served(me: Browser, what: str) -> None:
    answer = me.http.get(f"/image/{handle(me, 'sub-02')}/{what}")
    assert answer.status_code == 404
    assert b"participant_id" not in answer.content
    assert me.http.get(f"/image/sub-02/{what}").status_code == 404


def test_a_persons_word_is_what_review_writes_and_stands_in_the_log(me: Browser, place: Place) -> None:
    one = handle(me, "sub-03")
    assert me.post(f"/subjects/{one}", word="reject", why="moved <b>").status_code == 303
    assert read_decisions(place.cohorts[0])["sub-03"]["decision"] == "reject"
    assert "rejected" in me.http.get("/subjects?state=rejected").text
    assert me.post(f"/subjects/{one}", word="accept", why="looked again").status_code == 303
    assert read_decisions(place.cohorts[0])["sub-03"]["decision"] == "accept"
    log = list(place.decided.entries())
    assert [(entry["what"], entry["about"]["subject"]) for entry in log] == [("reject", "sub-03"), ("accept", "sub-03")]
    page = me.http.get("/decisions").text
    assert "moved &lt;b&gt;" in page
    assert me.post(f"/subjects/{one}", why="no word").status_code == 409
    for why in ("", "x" * 501):
        assert me.post(f"/subjects/{one}", word="reject", why=why).status_code == 409
    assert len(list(place.decided.entries())) == 2


def test_the_log_shows_that_it_was_changed(me: Browser, place: Place) -> None:
    for _ in range(2):
        me.post(f"/subjects/{handle(me, 'sub-01')}", word="reject", why="because")
    path = place.state / "page" / "decisions.jsonl"
    path.write_text(path.read_text().replace("because", "perhaps", 1))
    with pytest.raises(DataError):
        list(place.decided.entries())
    assert "The chain is broken" in me.http.get("/decisions").text


def test_hostile_texts_are_shown_as_text(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    cohort = cohort_of(tmp_path / "cohort", [("T1",)])
    columns = ("participant_id", "age", "sex", "diagnosis", "split")
    cells = ("sub-01", *(HOSTILE,) * (len(columns) - 1))
    (cohort / "participants.tsv").write_text("\t".join(columns) + "\n" + "\t".join(cells) + "\n")
    (cohort / "decisions.json").write_text(
        json.dumps({"sub-01": {"decision": "reject", "why": HOSTILE, "at": HOSTILE}})
    )
    (cohort / HOSTILE.replace("/", "_")).mkdir()
    (cohort / ("sub-" + HOSTILE.replace("/", "_"))).mkdir()
    state = tmp_path / "state"
    config = json.dumps(
        {"method": {"name": HOSTILE, "options": {"size": HOSTILE}}, "training": {HOSTILE: {"lr": HOSTILE}}}
    )
    _asked(state, HOSTILE, config)
    _left(state, run=HOSTILE)
    with opened(Place(state=state, cohorts=(cohort,))) as me:
        one = handle(me, "sub-01")
        plan = plans.listing(state)[0].id
        for path in ("/subjects", f"/subjects/{one}", "/plans", f"/plans/{plan}", "/left", "/left/0", "/decisions"):
            answer = me.http.get(path)
            assert answer.status_code == 200, path
            assert "<script>alert" not in answer.text, path
            assert "<img src=x" not in answer.text, path
            assert "{{7*7}}" in answer.text or "49" not in answer.text, path
        assert "&lt;script&gt;alert(1)" in me.http.get(f"/subjects/{one}").text
        searched = me.post("/subjects", q=HOSTILE).text
        assert "<script>alert" not in searched


def _asked(state: Path, run: str, config: str) -> None:
    with plans._open(state, make=True) as file:
        name = plans.plan_id(run, config)
        file.execute("INSERT INTO plans (id, run, config, came) VALUES (?, ?, ?, ?)", (name, run, config, time.time()))
        row = (time.time(), name, "translate", 0, f"PlanWaits: {run}", None)
        file.execute("INSERT INTO asked (at, plan, phase, round, verdict, worked) VALUES (?, ?, ?, ?, ?, ?)", row)


def _left(state: Path, run: str = "first", count: int = 3) -> None:
    book = Ledger(state / LEDGER)
    for number in range(count):
        fields = {
            "update.site": "a",
            "update.run": run,
            "update.counts": "{}",
            "update.metrics": "{}",
            "update.spent": "",
        }
        facts = {
            "fields": fields,
            "tensors": [{"name": f"w<{number}>", "shape": [2, 3], "norm": 1.5}],
            "norm": 1.5,
            "bytes": 100,
            "sha256": f"{number:064x}",
        }
        book.release(lambda before, facts=facts: facts, {"run": run, "phase": "translate", "round": number})


def test_a_plan_is_approved_with_who_and_why(me: Browser, place: Place) -> None:
    _asked(place.state, "first", "{}")
    plan = plans.listing(place.state)[0]
    page = me.http.get("/plans").text
    assert "Run first waits for your word." in page
    assert me.post(f"/plans/{plan.id}", word="approved", why="").status_code == 409
    assert plans.listing(place.state)[0].said is None
    assert me.post(f"/plans/{plan.id}", word="approved", why="the board agreed").status_code == 303
    assert plans.listing(place.state)[0].said == "approved"
    assert "the board agreed" in me.http.get(f"/plans/{plan.id}").text
    assert me.post(f"/plans/{plan.id}", word="refused", why="changed its mind").status_code == 303
    assert plans.listing(place.state)[0].said == "refused"
    assert [entry["what"] for entry in place.decided.entries()] == ["approve", "refuse"]
    assert me.post(f"/plans/{'0' * 64}", word="approved", why="x").status_code == 404


def test_what_left_is_shown_and_held_against_receipts(me: Browser, place: Place) -> None:
    assert "Nothing has left this site yet" in me.http.get("/left").text
    _left(place.state)
    page = me.http.get("/left").text
    assert "whole" in page
    assert "w&lt;0&gt;" in me.http.get("/left/0").text
    assert me.http.get("/left/3").status_code == 404
    every = list(Ledger(place.state / LEDGER).entries())
    receipts = [
        {"site": "a", "run": "first", "phase": "translate", "round": n, "sha256": one["sha256"], "link": one["before"]}
        for n, one in enumerate(every)
    ]
    headers = {"Origin": me.url, "X-CSRF": me.csrf}

    def compare(record: object) -> str:
        content = json.dumps(record).encode()
        return me.http.post("/left/receipts", content=content, headers=headers).text

    assert "all 3 receipts of a agree" in compare({"run": "first", "site": "a", "receipts": receipts})
    receipts[1]["sha256"] = "f" * 64
    assert "1 differences" in compare({"run": "first", "site": "a", "receipts": receipts})
    assert "is not what" in compare([1, 2, 3])
    too_large = me.http.post("/left/receipts", content=b"0" * (2**25 + 1), headers=headers)
    assert too_large.status_code == 413


def test_a_ledger_that_was_changed_says_so(me: Browser, place: Place) -> None:
    _left(place.state)
    path = place.state / LEDGER
    path.write_text(path.read_text().replace('"norm": 1.5', '"norm": 2.5', 1))
    assert "The chain is broken" in me.http.get("/left").text


def test_empty_states_say_what_to_type(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    with opened(Place(state=tmp_path / "state")) as me:
        for path, command in (
            ("/subjects", "lacuna-site ingest"),
            ("/left", "lacuna-site run"),
            ("/plans", "lacuna-site run"),
            ("/budget", "lacuna-site budget"),
        ):
            assert command in me.http.get(path).text, path


def test_whoever_may_only_look_decides_nothing(place: Place) -> None:
    with opened(place, Where(readonly=True)) as me:
        one = handle(me, "sub-01")
        page = me.http.get(f"/subjects/{one}").text
        assert 'name="word"' not in page
        for path in (f"/subjects/{one}", f"/subjects/{one}/fill", f"/subjects/{one}/send"):
            assert me.post(path, word="reject", why="x").status_code == 403
    assert not read_decisions(place.cohorts[0])
    assert not list(place.decided.entries())


def test_in_german(me: Browser) -> None:
    page = me.http.get("/subjects", headers={"Accept-Language": "de"}).text
    assert "<h1>Personen</h1>" in page
    assert me.http.get("/subjects?lang=de").status_code == 200
    assert "<h1>Personen</h1>" in me.http.get("/subjects").text  # it is remembered


def test_two_thousand_subjects_are_listed_in_half_a_second(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    cohort = cohort_of(tmp_path / "cohort", [("T1", "T2")])
    first = {path.relative_to(cohort / "sub-01"): path for path in (cohort / "sub-01").rglob("*.nii.gz")}
    for number in range(2, 2001):
        for inside, path in first.items():
            target = cohort / f"sub-{number:04d}" / str(inside).replace("sub-01", f"sub-{number:04d}")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.hardlink_to(path)
    with opened(Place(state=tmp_path / "state", cohorts=(cohort,))) as me:
        me.http.get("/subjects")  # `open` reads the cohort before anybody asks
        took = min(_seconds(me.http, "/subjects?page=7") for _ in range(3))
        page = me.http.get("/subjects").text
    assert "<b>2000</b>" in page
    assert took < 0.5, took


def _seconds(http: httpx.Client, path: str) -> float:
    """Of work, in both ends of the wire: what else the machine does is not counted."""
    started = time.process_time()
    assert http.get(path).status_code == 200
    return time.process_time() - started
