"""`lacuna federation withdrawn` and `recall`: who left, and what is taken back."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from server.cli.options import FOLDER, RUNS, Folder, Runs


def withdrawn(
    note: Annotated[Path, typer.Argument(help="What `lacuna-site withdraw` made.", show_default=False)],
    federation: Folder = FOLDER,
    runs: Runs = RUNS,
) -> None:
    """A site says that a subject of its own left: mark the runs that had them. The note names runs, and nobody.

    Only what the site's own key signed is believed.
    """
    from server.federation.leaving import read_site_note
    from server.journal import withdrawn as marks

    told = read_site_note(federation, note)
    found = [runs / run for run in told.runs if (runs / run / "rounds.jsonl").exists()]
    for run in found:
        since = told.runs[run.name]
        mark = marks.Mark(who="subject", phase=since.phase, round=since.round, at=float(told.at))
        marks.mark(run, told.site, mark)
    for name in sorted(set(told.runs) - {run.name for run in found}):
        typer.echo(f"run {name}: is not in {runs}/")
    say_affected(runs, found, told.site)


def recall(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.", show_default=False)],
    why: Annotated[str, typer.Option(help="A line that whoever is refused reads.", show_default=False)],
    federation: Folder = FOLDER,
) -> None:
    """Take a bundle back: its weights go on the list that the signing key signs, whatever else is in the bundle.

    Send the list to every site that has the bundle: it belongs beside the key that they name with --trust, and their
    `lacuna-site synthesize`, `reconstruct` and `evaluate` refuse the bundle from then on.
    """
    from server.federation import leaving

    typer.echo(f"send this to the sites: {leaving.recall(federation, bundle, why=why, now=datetime.now(UTC))}")


def say_affected(runs: Path, found: list[Path], site: str) -> None:
    """Which runs have it, those that started from one of them too, and what can be done."""
    from server.journal import withdrawn

    said = [line for path in sorted(runs.glob("*/config.json")) for line in withdrawn.lines(path.parent)]
    for line in said:
        typer.echo(line)
    if not said:
        typer.echo(f"no run in {runs}/ has anything of {site}")
        return
    for run in found:
        typer.echo(f"to train it again from before: lacuna resume {run.name} --without {site}")
    typer.echo("to take back a bundle of one of them: lacuna federation recall BUNDLE --why ...")
