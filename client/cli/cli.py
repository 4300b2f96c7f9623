"""`lacuna-site`: a hospital's command, beside its data. Thin: every verb calls one function elsewhere."""

import sys

import typer

from client.cli import bundle as bundle_cli
from client.cli import cohort as cohort_cli
from client.cli import enrol as enrol_cli
from client.cli import node as node_cli
from client.cli import page as page_cli
from client.cli import policy as policy_cli
from client.cli import privacy as privacy_cli
from shared.base.errors import DataError, LacunaError
from shared.page import verbs as page_verbs

app = typer.Typer(
    name="lacuna-site",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""What a site does with its own images. Only **run** and **up** send anything: what **ledger** lists.

**init** and **join** make the site part of a federation. **run**, or **up** and **down** in a container, take part in
its training; **status** and **logs** tell how that goes, and **doctor** what is lacking.

**ingest** makes a cohort of DICOM, **prepare** checks a BIDS cohort and caches it, **synthesize** fills in what a
subject lacks from a signed bundle,
**reconstruct** does so from raw measurements too,
**evaluate** scores a bundle on the site's own subjects. **withdraw** lets a subject leave.

**policy** says what the site allows, **plans** what it was asked and what waits for a yes, **ledger** what left it,
**budget** shows what private training has spent of the site's privacy budget, **audit** tests what it stands on, and
whether a bundle remembers the site's subjects.

**open** shows all of this as pages in a browser of this machine.

Exit codes: 0 done · 2 a wrong key or value · 3 data or a bundle that can't be used · 4 the privacy budget is spent, or
a warning with --strict · 5 an audit failed, or the way to the server.""",
)
for verbs in (cohort_cli, bundle_cli, privacy_cli, enrol_cli, node_cli, policy_cli, page_cli, page_verbs):
    app.add_typer(verbs.app)


def main() -> None:
    """Errors become one line and their exit code; only a bug shows a traceback."""
    try:
        app()
    except LacunaError as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:  # a full disk, a folder that can't be written
        typer.echo(f"DataError: {error}", err=True)
        sys.exit(DataError.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
