"""Options that several verbs of `lacuna` have, written once."""

from pathlib import Path
from typing import Annotated

import typer

Run = Annotated[str, typer.Argument(help="Name of the run.")]
Runs = Annotated[Path, typer.Option("--runs", help="Folder of all runs.")]
RUNS = Path("runs")
Device = Annotated[str, typer.Option(help="auto | cpu | cuda")]
Json = Annotated[bool, typer.Option("--json", help="As JSON.")]

Folder = Annotated[Path, typer.Option("--federation", help="The folder that `init` made.")]
FOLDER = Path("federation")
