"""`lacuna`: the coordinator's and the researcher's command. Thin: every verb calls one function elsewhere."""

import sys
from collections.abc import Callable

import typer

from server.cli import audit, export, federation, page, phantom, receipts, scores, simulate, train
from shared.base.errors import LacunaError, RunFailed
from shared.page import verbs as page_verbs

app = typer.Typer(
    name="lacuna",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""Train together the models that fill in missing imaging modalities, without an image leaving a site.

On one machine: **phantom** makes hospitals, **simulate** trains over them, **evaluate** says what the federation
bought them, **export** gives the signed bundle that `lacuna-site synthesize` runs, **report** tells it on one page,
**open** shows runs in a browser while they go on.

Exit codes: 0 done · 2 a wrong key or value · 3 data that can't be used · 4 a plan that a site refuses ·
5 a run that could not go on (its checkpoint is whole: the same command with `resume=RUN` goes on).""",
)
for verbs in (phantom, simulate, scores, export):
    app.add_typer(verbs.app)
app.add_typer(audit.app, name="audit")
app.add_typer(federation.app, name="federation")
for verbs in (receipts, train, page, page_verbs):
    app.add_typer(verbs.app)


def run_app(application: Callable[[], None]) -> None:
    """Errors become one line and their exit code; only a bug shows a traceback."""
    try:
        application()
    except LacunaError as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:  # a full disk, a folder that can't be written: what was saved before is whole
        typer.echo(f"RunFailed: {error}", err=True)
        sys.exit(RunFailed.exit_code)
    except KeyboardInterrupt:
        typer.echo("stopped; a run goes on with resume=RUN", err=True)
        sys.exit(130)


def main() -> None:
    run_app(app)
