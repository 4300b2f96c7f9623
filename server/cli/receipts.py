"""`lacuna receipts`: what the coordinator got from each site, held against what the sites say that they sent."""

from pathlib import Path
from typing import Annotated

import typer

from server.cli.options import RUNS, Run, Runs

app = typer.Typer()


@app.command()
def receipts(
    run: Run,
    runs_folder: Runs = RUNS,
    site: Annotated[str | None, typer.Option(help="Of this site alone.", show_default=False)] = None,
    export: Annotated[
        Path | None, typer.Option(help="FILE.json for the site to verify with, or FILE.csv.", show_default=False)
    ] = None,
) -> None:
    """Every reply of a run's rounds: which site, hash, bytes, what became of it, and why.

    Each receipt carries the hash of the one before, over kills and resumptions; a broken chain ends this with exit
    code 3. Send a site its own, `lacuna receipts RUN --site north --export north.json`, and it compares them with its
    ledger: `lacuna-site ledger verify --state STATE --receipts north.json`.
    """
    from server.journal import receipts as kept
    from server.journal.facts import words
    from server.runs.runs import read_config

    folder = runs_folder / run
    config = read_config(folder)
    found = kept.read(folder, site)
    if export is not None:
        kept.export(found, export, run=config.run or folder.name, site=site)
    for one in found:
        why = f"  {words(one['reason'])}" if one["reason"] else ""
        typer.echo(
            f"{one['phase']:<12} {one['round']:>4}  {one['site']:<16} {one['verdict']:<9}"
            f"{one['bytes']:>12} bytes  sha256 {one['sha256'][:16]}{why}"
        )
    typer.echo(f"{len(found)} receipts; the chain is whole" + (f"; written to {export}" if export else ""))
