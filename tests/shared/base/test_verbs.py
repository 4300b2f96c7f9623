"""Options written once in a dataclass are the options of each verb that takes it."""

from dataclasses import dataclass, field
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from shared.base.verbs import flat


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    seed: Annotated[int, typer.Option(help="Same seed, same volume.")] = 0
    target: Annotated[list[str] | None, typer.Option(help="Repeat it.", show_default=False)] = None
    force: Annotated[bool, typer.Option("--go-on", help="All the same.")] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherDrawing(Drawing):
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 7


def invoke(app: typer.Typer, *words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, words)
    return result.exit_code, result.output


def grouped() -> typer.Typer:
    app = typer.Typer(rich_markup_mode=None)

    @app.command()
    @flat
    def draw(out: Annotated[str, typer.Argument(help="Where.")], drawing: Drawing, last: int = 3) -> None:
        """Draw it."""
        typer.echo(f"{out} {drawing.seed} {drawing.target} {drawing.force} {last}")

    return app


def by_hand() -> typer.Typer:
    app = typer.Typer(rich_markup_mode=None)

    @app.command()
    def draw(
        out: Annotated[str, typer.Argument(help="Where.")],
        seed: Annotated[int, typer.Option(help="Same seed, same volume.")] = 0,
        target: Annotated[list[str] | None, typer.Option(help="Repeat it.", show_default=False)] = None,
        force: Annotated[bool, typer.Option("--go-on", help="All the same.")] = False,
        last: int = 3,
    ) -> None:
        """Draw it."""
        typer.echo(f"{out} {seed} {target} {force} {last}")

    return app


@pytest.mark.parametrize(
    "words",
    [("--help",), ("x",), ("x", "--seed", "4", "--target", "T1", "--target", "T2", "--go-on", "--last", "1"), ()],
)
def test_a_group_of_options_is_what_its_fields_would_be_by_hand(words: tuple[str, ...]) -> None:
    assert invoke(grouped(), *words) == invoke(by_hand(), *words)


def test_a_subclass_says_an_option_anew_in_its_old_place() -> None:
    app = typer.Typer(rich_markup_mode=None)

    @app.command()
    @flat
    def draw(drawing: OtherDrawing) -> None:
        typer.echo(f"{drawing.seed}")

    _, text = invoke(app, "--help")
    assert text.index("Of the noise.") < text.index("--target") < text.index("--go-on")
    assert "Same seed" not in text
    assert invoke(app) == (0, "7\n")


def test_an_option_that_stands_in_two_groups_is_our_mistake() -> None:
    def draw(one: Drawing, other: OtherDrawing) -> None: ...

    with pytest.raises(AssertionError, match=r"draw: force, seed, target: each option once"):
        flat(draw)


def test_a_default_that_is_made_anew_is_our_mistake() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Bad:
        names: list[str] = field(default_factory=list)

    def draw(bad) -> None: ...  # type: ignore[no-untyped-def]

    draw.__annotations__["bad"] = Bad
    with pytest.raises(AssertionError, match=r"Bad.names: an option's default is a plain value"):
        flat(draw)
