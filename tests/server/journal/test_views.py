"""The display says what happened, in a log and on a terminal, also when the run breaks."""

import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from server.journal import facts, views
from server.journal.events import CoverageFound, PhaseStarted, RoundFinished, SiteFinished, SiteStarted, View
from server.journal.facts import RoundFacts, SiteFacts
from shared.base.display import terminal
from shared.base.records import Inventory

GOOD = SiteFacts(status="ok", loss=0.25, samples=64, seconds=1.5, bytes_up=1_500_000, bytes_down=2_000)
BAD = SiteFacts(status="rejected", reason="delta norm 31 is over the limit 10")


def one(number: int, **changed: Any) -> RoundFacts:
    values: dict[str, Any] = {
        "phase": "translate",
        "of": 3,
        "seconds": 2.0,
        "loss": 0.25,
        "sites": {"north": GOOD, "so[/bold]uth": BAD},
        "bytes_up": 1_500_000,
        "refusals": ("so[/bold]uth: delta norm 31 is over the limit 10",),
        "validation": {"psnr/FLAIR": 20.125, "loss": None},
    }
    return RoundFacts(round=number, ended=1e9, **values | changed)


def play(view: View, rounds: int = 3) -> None:
    north = Inventory(site="north", schema="s", subjects=12, patterns={("T1", "FLAIR"): 7, ("T1",): -5})
    view.tell(CoverageFound(found=facts.coverage([north], ["T1", "FLAIR", "T2"])))
    view.tell(PhaseStarted(phase="translate", of=3, first=0))
    for number in range(rounds):
        for site, result in one(number).sites.items():
            view.tell(SiteStarted(site=site))
            view.tell(SiteFinished(site=site, result=result))
        view.tell(RoundFinished(one=one(number)))


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """What a terminal 100 columns wide has received."""
    received = io.StringIO()
    options: dict[str, Any] = {
        "force_terminal": True,
        "width": 100,
        "height": 50,
        "color_system": None,
        "markup": False,
    }
    monkeypatch.setattr(terminal, "console", lambda: Console(file=received, **options))
    return received.getvalue


def test_a_log_has_one_line_per_round_and_one_per_site_that_gave_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with views.live("demo") as view:
        play(view)
    output = capsys.readouterr()
    assert output.out == ""
    lines = output.err.splitlines()
    rounds = [line for line in lines if line.startswith("translate ")]
    assert len(rounds) == 3
    assert rounds[1] == (
        "translate 2/3 · loss 0.25 · 1 of 2 sites · 2.0 s · up 1.5 MB down 0 B · psnr FLAIR 20.12 · loss – · left 2.0 s"
    )
    assert lines.count("  so[/bold]uth rejected: delta norm 31 is over the limit 10") == 3
    assert "north: 12 subjects: T1 <5, T1+FLAIR 7" in lines
    assert "T1               1 (8-11)  1 (7)  –" in lines


def test_a_terminal_shows_phases_sites_and_notes(screen: Callable[[], str]) -> None:
    with views.live("demo") as view:
        play(view)
        view.note("odd [red]words")
    last = screen().split("demo")[-1]
    assert "✓  translate" in last
    assert "3/3" in last
    assert "so[/bold]uth  rejected" in last
    assert "1.5 MB" in last
    assert "odd [red]words" in screen()


@pytest.mark.parametrize("fixture", ["screen", "capsys"])
def test_when_a_run_breaks_what_was_shown_stays_and_the_error_passes(
    fixture: str, request: pytest.FixtureRequest
) -> None:
    shown = request.getfixturevalue(fixture)

    def break_down() -> None:
        with views.live("demo") as view:
            play(view, rounds=2)
            view.note("the last words")
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        break_down()
    text = shown() if fixture == "screen" else shown.readouterr().err
    assert "2/3" in text
    assert "the last words" in text


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with views.live("demo", quiet=True) as view:
        play(view)
        view.note("nothing")
    assert capsys.readouterr() == ("", "")


def test_hundreds_of_sites_fit_a_screen(screen: Callable[[], str]) -> None:
    with views.live("demo") as view:
        view.tell(PhaseStarted(phase="translate", of=1, first=0))
        many = {f"s{i:03}": GOOD for i in range(300)} | {"bad": BAD}
        view.tell(RoundFinished(one=one(0, of=1, sites=many)))
    last = screen().split("demo")[-1]
    assert "300 of 301 sites done" in last
    assert "bad" in last
    assert "s001" not in last


def test_a_sparkline_shows_the_whole_course() -> None:
    line = views.sparkline([float(100 - i) for i in range(101)])
    assert len(line) == 20
    assert (line[0], line[-1]) == ("█", "▁")
    assert views.sparkline([1.0, 1.0]) == "▁▁"
    assert views.sparkline([1.0]) == ""
