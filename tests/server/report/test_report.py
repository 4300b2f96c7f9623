"""The report is one page, whole at any moment of a run, that loads nothing and believes nobody."""

import base64
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from server.journal import facts
from server.journal.facts import RoundFacts, SiteFacts
from server.report.charts import curves, squares, ticks
from server.report.report import page_of, write_report
from shared.base.errors import DataError
from shared.base.options import plain
from shared.base.records import Inventory
from shared.trust.claims import Certificate, Prior, PrivacyRecord, not_claimed, statement

HOSTILE = "<script>alert('site')</script>"
PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII=")
CSV = """model,site,shown,target,region,metric,per,value,n
federated,north,T1,FLAIR,brain,psnr,volume,20,3
federated,south,T1,FLAIR,brain,psnr,volume,24,1
federated,north,T1+FLAIR,FLAIR,brain,psnr,volume,90,3
alone/north,north,T1,FLAIR,brain,psnr,volume,19.5,3
federated,north,T1,FLAIR,brain,mae,volume,0.05,3
alone/north,north,T1,FLAIR,brain,mae,volume,0.04,3
federated,north,T1,FLAIR,lesion,psnr,volume,nan,3
"""


def one(number: int, **changed: Any) -> RoundFacts:
    sites = {
        "north": SiteFacts(status="ok", loss=0.5, samples=64, seconds=1.5, bytes_up=1_500_000, bytes_down=2_000_000),
        HOSTILE: SiteFacts(status="rejected", reason="delta norm 31 <img src=http://evil.example/x.png> is over 10"),
    }
    values: dict[str, Any] = {
        "phase": "translate",
        "of": 3,
        "sites": sites,
        "loss": 1.0 / (number + 1),
        "watch": {"spread": 0.3},
        "holders": {"shared": 2, "from:T1": 1},
        "counts": {"shared": 64, "from:T1": 32},
        "refusals": (f"{HOSTILE}: no",),
        "validation": {"psnr/FLAIR": 20.0 + number, "loss": 0.4},
    }
    return RoundFacts(round=number, ended=1e9 + number, seconds=2.5, **values | changed)


@pytest.fixture
def started(tmp_path: Path) -> Path:
    """A run that was asked for and has done nothing yet."""
    run = tmp_path / "runs" / "demo"
    run.mkdir(parents=True)
    config = {"method": {"name": "amm_diff"}, "size": "tiny", "tracking": {"uri": "http://me:hunter2@host"}}
    (run / "config.json").write_text(json.dumps({**config, "federation": {"min_holders": 2}}))
    return run


@pytest.fixture
def finished(started: Path) -> Path:
    """A run with everything that the report knows of."""
    patterns = {("T1", "FLAIR"): 7, ("T1",): -5}
    sites = [
        Inventory(site="north", schema="s", subjects=12, patterns=patterns),
        Inventory(site=HOSTILE, schema="s", subjects=9, patterns={("T1",): 9}, refused={"pretext": "<b>no</b>"}),
    ]
    facts.save_coverage(started / "inventory.json", facts.coverage(sites, ["T1", "FLAIR", "T2"]))
    for number in range(3):
        facts.append(started / "rounds.jsonl", one(number))
    texts = {
        "final/model.json": json.dumps({"method": "amm_diff", "weights": "c0ffee", "provenance": {"sites": 2}}),
        "bundle/bundle.json": json.dumps({"sha256": "ba5e", "signature": {"algorithm": "ed25519"}}),
        "evaluation/table.csv": CSV,
        "evaluation/other.csv": "a,b\n1,2\n",
        "evaluation/summary.json": json.dumps({"lesion": {"federated": 12.1234567}}),
    }
    for name, text in texts.items():
        (started / name).parent.mkdir(exist_ok=True)
        (started / name).write_text(text)
    (started / "mosaics").mkdir()
    for path in ("mosaics/000000.png", "mosaics/000002.png", "evaluation/psnr_by_target.png"):
        (started / path).write_bytes(PNG)
    return started


class Page(HTMLParser):
    """Elements and text of a page; a tag that is not closed in order fails."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("img", "meta", "br"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


def test_the_page_loads_nothing_and_runs_nothing(finished: Path) -> None:
    page = Page(write_report(finished).read_text(encoding="utf-8"))
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form", "use", "image"}
    for _, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        assert not attributes.keys() & {"href", "action", "srcset", "data", "poster", "background"}
        assert (attributes.get("src") or "data:image/png;base64,").startswith("data:image/png;base64,")
        assert "url(" not in (attributes.get("style") or "")
    style = (Path(__file__).parents[3] / "shared" / "base" / "display" / "page.css").read_text(encoding="utf-8")
    assert style in page.text
    assert "url(" not in style
    assert "@import" not in style
    (policy,) = (a["content"] for tag, a in page.elements if tag == "meta" and a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_what_others_wrote_is_shown_as_text(finished: Path) -> None:
    page = Page(page_of(finished))
    assert HOSTILE in page.text
    assert "<img src=http://evil.example/x.png>" in page.text
    assert "<b>no</b>" in page.text


def test_a_full_run_shows_all_its_parts(finished: Path) -> None:
    page = Page(page_of(finished))
    for heading in (
        "The sites",
        "What may be said of privacy",
        "Who can teach what",
        "Training",
        "How good it is",
        "Samples",
        "Who trained which part",
        "Round by round",
        "What was not folded in",
        "Where it comes from",
    ):
        assert heading in page.text
    for fact in (
        "c0ffee",
        "ba5e",
        "ed25519",
        "17-20",
        "<5",
        "The run is finished.",
        "lesion.federated",
        "12.1235",
        "after round 3",
        "psnr by target",
        "nobody",
    ):
        assert fact in page.text
    assert sum(tag == "img" for tag, _ in page.elements) == 3


def test_the_evaluation_is_a_weighted_mean_over_what_was_hidden(finished: Path) -> None:
    page = Page(page_of(finished))
    text = " ".join(page.text.split())
    assert "psnr · brain · per volume model FLAIR federated 21.00 alone/north 19.50" in text
    assert "lesion · per volume" not in text  # there was no number in it
    best = [a for tag, a in page.elements if tag == "td" and "best" in (a.get("class") or "")]
    assert len(best) == 2  # highest PSNR, lowest MAE


def test_what_may_be_said_of_privacy_is_said_with_its_numbers(finished: Path) -> None:
    certificate = Certificate(
        site="north",
        epsilon=3.371,
        budget=7.5,
        delta=2e-5,
        noise=2.19,
        rate=0.125,
        clip=0.3,
        draws=4,
        slices=3,
        steps=207,
        size=240,
        ledger="ab12",
        sequence=214,
        head="f00d",
        others=6,
    )
    prior = Prior(run="first", data=f"public {HOSTILE}", weights="c0ffee")
    record = PrivacyRecord(private=(certificate,), not_private=(HOSTILE,), prior=prior)
    provenance = {"sites": 2, "private": True, "privacy": plain(record)}
    (finished / "final" / "model.json").write_text(json.dumps({"method": "amm_diff", "provenance": provenance}))
    page = Page(page_of(finished))
    lines = page.text.splitlines()
    for text in (*statement(record), *not_claimed()):
        assert text in lines
    cells = " ".join(page.text.split())
    assert "north 3.371 7.5 2e-05 2.19 0.125 207 0.3 240 6" in cells
    assert f"{HOSTILE} not private" in cells
    assert not {tag for tag, _ in page.elements} & {"script"}


def test_a_run_without_privacy_says_so_once_it_is_finished(finished: Path, started: Path) -> None:
    assert statement(PrivacyRecord())[0] in Page(page_of(finished)).text
    (finished / "final" / "model.json").unlink()
    assert "What may be said of privacy" not in Page(page_of(finished)).text


def test_a_run_that_has_done_nothing_yet_has_a_page(started: Path) -> None:
    page = Page(page_of(started))
    assert "no round has finished yet" in page.text
    assert "The run is not finished." in page.text


def test_a_run_that_was_killed_has_a_page(started: Path) -> None:
    bare = {"watch": {}, "holders": {}, "counts": {}, "validation": None, "loss": None, "sites": {}, "refusals": ()}
    facts.append(started / "rounds.jsonl", one(0, **bare))
    with (started / "rounds.jsonl").open("ab") as file:
        file.write(b'{"phase": "tra')
    assert "translate (1 of 3 rounds)" in Page(page_of(started)).text


def test_the_same_folder_gives_the_same_page_without_passwords(finished: Path, tmp_path: Path) -> None:
    first = write_report(finished).read_text(encoding="utf-8")
    assert write_report(finished, tmp_path / "elsewhere.html").read_text(encoding="utf-8") == first
    assert "hunter2" not in first


def test_a_folder_that_is_no_run_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run there"):
        write_report(tmp_path)


def test_an_evaluation_with_a_word_for_a_number_names_its_line(finished: Path) -> None:
    with (finished / "evaluation" / "table.csv").open("a") as file:
        file.write("federated,north,T1,FLAIR,brain,psnr,volume,good,3\n")
    with pytest.raises(DataError, match=r"table\.csv line 9"):
        page_of(finished)


@pytest.mark.parametrize(
    "points", [[(1.0, 0.5)], [(1.0, 0.5), (2.0, 0.5)], [(1.0, 1e-3), (2.0, 10.0)], [(1.0, -3.0), (900.0, 0.0)]]
)
def test_a_curve_stays_in_its_frame(points: list[tuple[float, float]]) -> None:
    chart = curves({"loss": points}, across="round", up="loss")
    assert chart is not None
    ((_, _, places),) = chart.lines
    assert len(places) == len(points)
    for x, y in places:
        assert 56 <= x <= 548
        assert 10 <= y <= 216


def test_many_sites_are_drawn_by_their_edges_and_without_a_point_there_is_no_chart() -> None:
    each = {f"s{i}": [(1.0, 0.1 * i), (2.0, 0.2 * i)] for i in range(1, 21)}
    chart = curves({"all sites": [(1.0, 1.0)]}, across="round", up="loss", faint=each)
    assert chart is not None
    assert [name for name, _, _ in chart.lines] == ["lowest", "highest", "all sites"]
    assert [text for _, text in chart.legend] == ["all sites", "lowest and highest site"]
    assert curves({"loss": []}, across="round", up="loss") is None


@pytest.mark.parametrize(("sites", "rounds"), [(1, 1), (3, 40), (300, 2000)])
def test_every_site_and_round_has_its_square(sites: int, rounds: int) -> None:
    rows = {f"s{i}": dict.fromkeys(range(rounds), ("ok", "tip")) for i in range(sites)}
    drawn = squares(rows, count=rounds)
    assert len(drawn.squares) == sites * rounds
    assert all(0 <= x <= drawn.width - drawn.wide for x, _, _, _ in drawn.squares)
    assert all(y <= drawn.height - drawn.tall for _, y, _, _ in drawn.squares)
    assert bool(drawn.names) == (sites <= 40)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (3.2, 3.21), (1.0, 1000.0), (-5.0, 5.0)])
def test_ticks_are_few_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 7
    assert all(low <= tick <= high for tick in found)
