"""`lacuna train | follow | status | stop | resume`: runs on a SuperLink. Thin: the work is done elsewhere."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from server.cli.options import RUNS, Json, Run, Runs
from shared.base.errors import ConfigError
from shared.base.verbs import flat

app = typer.Typer(rich_markup_mode="markdown")

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="As for `simulate`: `method=amm_diff size=small federation.min_sites=3 run=first`.",
        show_default=False,
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitting:
    """Where a run is submitted, and how long that may take."""

    superlink: Annotated[
        str,
        typer.Option(
            "--superlink", envvar="LACUNA_SUPERLINK", help="HOST:PORT of the SuperLink itself, inside; never the proxy."
        ),
    ] = "127.0.0.1:8000"
    federation: Annotated[
        Path,
        typer.Option(
            "--federation",
            help="The folder that `lacuna federation init` made: its CA, what was agreed, and the key that signs runs.",
        ),
    ] = Path("federation")
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for sites that are not online yet.")] = 0.0
    detach: Annotated[
        bool, typer.Option("--detach", help="Submit and return; nobody supervises until `lacuna follow`.")
    ] = False


@app.command()
@flat
def train(overrides: Overrides = None, *, submitting: Submitting) -> None:
    """Train over the sites of a running federation: submit, watch, and say truthfully how it ended.

    The same keys as `lacuna simulate`, and the same bits. Before anything is submitted: is the SuperLink there, does
    the plan keep to what was agreed, are enough sites online (exit code 5 if not).

    While this command runs it supervises: a run whose process was killed is submitted again from its checkpoint.
    Ctrl-C ends the watching, not the run: `lacuna follow RUN` goes on watching, `lacuna stop RUN` stops it,
    `lacuna resume RUN` takes it up again.
    """
    _train(overrides or [], submitting)


@app.command()
@flat
def resume(
    run: Run,
    runs_folder: Runs = RUNS,
    without: Annotated[
        str | None,
        typer.Option(help="A site that left: train again from before its first part, as RUN-without-SITE."),
    ] = None,
    *,
    submitting: Submitting,
) -> None:
    """Go on with a run that was stopped, failed or killed, from its last finished round: `train resume=RUN`.

    It is signed anew, for 30 days and for the sites that are admitted by now.

    With --without it is another run that goes on, RUN-without-SITE: from the last checkpoint before the site had a part
    in RUN, or from the beginning, and then it ends in the same bits as if the site had never been. RUN stays, and says
    that it has what was withdrawn. The same line goes on with it.
    """
    from server.runs import without as another
    from server.superlink import submission

    folder = runs_folder / run
    if without is not None:
        submission.check_exists(folder)
        made = another.without(folder, without)
        typer.echo(f"{made.name}: goes on {another.where(made)}, without {without}; {run} stays as it is", err=True)
        if submission.find(folder) is None:
            typer.echo(f"lacuna simulate resume={made.name} {submission.quoted('runs', runs_folder)}")
            return
        run = made.name
    elif (folder / "config.json").exists() and submission.find(folder) is None:
        raise ConfigError(
            f"resume={run}: was never submitted to a SuperLink; give the command that made it and resume={run}, "
            f"such as `lacuna simulate resume={run}`"
        )
    overrides = [f"resume={run}", submission.quoted("runs", runs_folder)]
    _train(overrides, submitting)


@app.command()
def follow(run: Run, runs_folder: Runs = RUNS) -> None:
    """Watch a run that goes on elsewhere, and supervise it; ends as the run does, with its exit code."""
    _follow(runs_folder / run)


@app.command()
def status(
    run: Annotated[str | None, typer.Argument(help="Name of a run: more of it.", show_default=False)] = None,
    runs_folder: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Where the runs stand: state, round, sites, loss, since when; of one run also who is online and what was said.

    States: running · submitted (waits for an executor) · finished · failed (its own word, and why) · stopped ·
    interrupted (killed, and nobody has taken it up again). Simulations are listed too.
    """
    from server.superlink import overview
    from shared.base.display import terminal
    from shared.base.options import plain

    if run is not None:
        found = overview.details(runs_folder / run)
        typer.echo(json.dumps(plain(found), indent=1) if as_json else "\n".join(found.lines()))
        return
    runs = overview.standings(runs_folder)
    if as_json:
        typer.echo(json.dumps([plain(one) for one in runs], indent=1))
    elif runs:
        terminal.table(f"runs in {runs_folder}/", overview.COLUMNS, [one.cells() for one in runs])
        for line in (f"warning: {one.run} {line}" for one in runs for line in one.withdrawn):
            typer.echo(line, err=True)
    else:
        typer.echo(f"no runs in {runs_folder}/")


@app.command()
def stop(run: Run, runs_folder: Runs = RUNS) -> None:
    """End a run where it stands; its checkpoint is whole, and `lacuna resume RUN` goes on."""
    from server.superlink import submission

    typer.echo(submission.stop(runs_folder / run))


def _train(overrides: Sequence[str], at: Submitting) -> None:
    from server.runs import runs
    from server.superlink import submission

    link, federation = submission.link_to(at.superlink, at.federation)
    config, folder = submission.prepare(overrides, link, federation=federation, wait=at.wait, say=_say)
    if not runs.finished(folder):
        submission.submit(folder, link)
        _say(f"{folder.name}: submitted to {link.address}")
    if at.detach:
        typer.echo(folder.name)
        return
    _follow(Path(config.runs) / folder.name)
    typer.echo(str(Path(config.runs) / folder.name / "final"))


def _follow(folder: Path) -> None:
    from server.superlink import supervision

    try:
        supervision.follow(folder)
    except KeyboardInterrupt:
        _say(
            f"not watched any more; the run goes on: `lacuna follow {folder.name}` watches and supervises it again, "
            f"`lacuna stop {folder.name}` stops it"
        )
        raise typer.Exit(130) from None


def _say(text: str) -> None:
    typer.echo(text, err=True)
