"""`lacuna-site open`: the site's pages in a browser. Thin."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from shared.base.verbs import flat
from shared.page.verbs import Listening

app = typer.Typer()


@dataclass(frozen=True, slots=True, kw_only=True)
class Using:
    """What is filled in with, and where it may go."""

    bundle: Annotated[list[Path] | None, typer.Option(help="Folder of a bundle; repeat it.", show_default=False)] = None
    trust: Annotated[Path | None, typer.Option(help="The coordinator's public key.", show_default=False)] = None
    push: Annotated[
        str | None, typer.Option(help="The PACS: https://host/dicom-web, or AET@host:port.", show_default=False)
    ] = None
    auth_file: Annotated[
        Path | None, typer.Option(help="Holds the DICOMweb server's authorization; mode 600.", show_default=False)
    ] = None
    out: Annotated[Path | None, typer.Option(help="For what is filled in. Default: STATE/filled.")] = None


@app.command("open")
@flat
def open_page(
    *,
    state: Annotated[Path, typer.Option(help="This site's private disk.", envvar="LACUNA_STATE", show_default=False)],
    cohort: Annotated[
        list[Path] | None,
        typer.Option(help="Repeat it. Default: [site] cohorts of STATE/site.toml.", show_default=False),
    ] = None,
    using: Using,
    listening: Listening,
) -> None:
    """Look instead of read: subjects, what is filled in, what left, plans, budget and doctor, in a browser.

    The page runs on this machine, as long as this command does, and loads nothing from elsewhere. The link that is
    printed lets in whoever has it, once. `--bundle B --trust K.pub` makes *fill in* possible, `--push PACS` sending.

    From another machine: `--listen 0.0.0.0:8443 --name lacuna.hospital --tls-cert C --tls-key K --passwords FILE`, with
    a line for each person in FILE: `lacuna-site person FILE NAME --role look`.
    """
    from client.page.place import Place
    from client.page.site import open_site
    from client.site import settings

    folders = tuple(cohort or [Path(folder) for folder in settings.load(state).cohorts])
    place = Place(
        state=state,
        cohorts=folders,
        bundles=tuple(using.bundle or ()),
        trust=using.trust,
        push=using.push,
        auth_file=using.auth_file,
        out=using.out,
    )
    open_site(place, listening.where(), browse=listening.browser, say=typer.echo)
