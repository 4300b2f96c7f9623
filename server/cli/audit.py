"""`lacuna audit`: looks for what should not be there. Thin: the work is done elsewhere."""

from typing import Annotated

import typer

from server.cli.options import Json
from shared.base import doors

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="Look for what should not be there.")


@app.command("privacy")
def audit_privacy(
    repeat: Annotated[int, typer.Option(min=1, help="Audits, one after the other; shows how often one fails.")] = 1,
    as_json: Json = False,
) -> None:
    """Is the private engine that sites train with what its epsilon says? Takes seconds and needs no data.

    The same as `lacuna-site audit privacy`, whose --help says what each test shows and what none of them can.
    Exit code 5 where anything fails.
    """

    from shared.base.display import terminal

    carry_out = doors.load(doors.ENGINE_AUDIT)
    carry_out(repeat=repeat, as_json=as_json, bar=terminal.bar)
