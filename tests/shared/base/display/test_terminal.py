"""A bar says how far the work is, on a terminal and in a log, and nothing of it is in the results."""

import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from shared.base.display import terminal


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


@pytest.mark.parametrize("fixture", ["screen", "capsys"])
def test_a_bar_says_how_far_the_work_is(fixture: str, request: pytest.FixtureRequest) -> None:
    shown = request.getfixturevalue(fixture)
    with terminal.bar("preparing") as advance:
        advance(2, 5)
        advance(3, 5)
    text = shown() if fixture == "screen" else shown.readouterr().err
    assert "preparing" in text
    assert ("3/5" if fixture == "screen" else "3 of 5") in text


def test_a_log_gets_a_line_now_and_then_and_stdout_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "LOG_SECONDS", 0.0)
    with terminal.bar("preparing") as advance:
        advance(1, 0)  # of how many is not known yet
        advance(2, 3)
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split(" in ")[0] for line in err.splitlines()] == [
        "preparing: 1",
        "preparing: 2 of 3",
        "preparing: 2 of 3",
    ]


def test_a_table_goes_to_stdout_with_what_looks_like_markup_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.table("means", ["model", "shown", "psnr"], [["federated", "[bold]T1", "20.1"]])
    out, err = capsys.readouterr()
    assert "[bold]T1" in out
    assert err == ""
