"""`lacuna export | report`: a run for others to use, and to read. Thin: the work is done elsewhere."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli.options import RUNS, Run, Runs

if TYPE_CHECKING:
    from shared.trust.audits import Summary

app = typer.Typer(rich_markup_mode="markdown")
NOT_CALIBRATED = "not calibrated: a site's uncertainty is how far samples differ"


@app.command()
def export(
    run: Run,
    out: Annotated[Path, typer.Option(help="Folder of the bundle.")],
    key: Annotated[Path, typer.Option(help="Ed25519 signing key, mode 0600; made where there is none.")],
    runs_folder: Runs = RUNS,
    ranges: Annotated[
        Path | None,
        typer.Option(
            help="The coordinator's own BIDS cohort: what inputs the bundle is for. Default: WORLD/coordinator.",
            show_default=False,
        ),
    ] = None,
    audit: Annotated[
        list[Path] | None,
        typer.Option(
            help="A site's summary.json of `lacuna-site audit memorisation`, kept in the bundle; repeat it.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Turn a finished run into a signed bundle: weights, config, provenance, hashes, torch.export and ONNX denoiser.

    Prints what may be said of the training's privacy. An audit above the limits that its site set is a warning.
    """
    import json

    from server.evaluation import calibrate
    from server.evaluation.compare import headline_figures
    from server.journal import withdrawn
    from server.runs.trained_on import ranges_for
    from shared.model import bundle
    from shared.model.model import run_folder

    if not key.exists():
        typer.echo(f"made a signing key: {key} (keep it), {bundle.public_path(key)} (give it to the sites)", err=True)
        bundle.make_signing_key(key)
    folder = run_folder(runs_folder, run)
    for line in withdrawn.lines(folder):
        typer.echo(f"warning: {line}", err=True)
    made_for = ranges_for(folder, ranges)
    if made_for is None:
        typer.echo(
            "no subjects of the coordinator's own: sites can't check what they show the bundle (--ranges)", err=True
        )
    intervals = calibrate.read(folder)
    if intervals is None:
        typer.echo(NOT_CALIBRATED + (f" (lacuna calibrate {run})" if folder == runs_folder / run else ""), err=True)
    audits = _audits(audit or [])
    done = bundle.export(
        folder / "final",
        out,
        key=key,
        metrics=headline_figures(folder),
        ranges=made_for,
        audits=audits,
        calibration=intervals,
    )
    for line in json.loads((done / bundle.MANIFEST).read_text())["privacy"]["statement"]:
        typer.echo(line)
    typer.echo(str(done))


def _audits(paths: Sequence[Path]) -> "list[Summary]":
    from shared.trust.audits import read_summary

    audits = [read_summary(path) for path in paths]
    for path, found in zip(paths, audits, strict=True):
        for warning in found.warnings:
            typer.echo(f"warning: {path}: {warning}", err=True)
    return audits


@app.command()
def report(
    run: Run,
    runs_folder: Runs = RUNS,
    out: Annotated[Path | None, typer.Option(help="Default: runs/RUN/report.html.", show_default=False)] = None,
) -> None:
    """Tell a run on one self-contained HTML page; works on unfinished runs too."""
    from server.report.report import write_report

    typer.echo(str(write_report(runs_folder / run, out)))
