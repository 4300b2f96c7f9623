"""`lacuna open`: runs and the federation in a browser. Thin."""

from typing import Annotated

import typer

from server.cli.options import FOLDER, RUNS, Folder, Runs
from shared.base.errors import ConfigError
from shared.base.verbs import flat
from shared.page.verbs import Listening

app = typer.Typer()


@app.command("open")
@flat
def open_page(
    run: Annotated[str | None, typer.Argument(help="The run to begin with.", show_default=False)] = None,
    runs_folder: Runs = RUNS,
    federation: Folder = FOLDER,
    *,
    listening: Listening,
) -> None:
    """Look instead of read: a run while it goes on, who can teach what, runs side by side, the federation.

    The page runs on this machine, as long as this command does, and loads nothing from elsewhere. The link that is
    printed lets in whoever has it, once. From another machine it needs TLS and passwords: `lacuna person FILE NAME`.
    """
    from server.page.coordinator import open_runs
    from server.page.house import House
    from shared.page.ask import NotFound

    house = House(runs=runs_folder, federation=federation)
    try:
        open_runs(house, run, listening.where(), browse=listening.browser, say=typer.echo)
    except NotFound:
        raise ConfigError(
            f"{run}: no such run in {runs_folder}/; it has {', '.join(house.names()) or 'none'}"
        ) from None
