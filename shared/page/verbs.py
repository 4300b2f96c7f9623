"""What `lacuna` and `lacuna-site` both say of a page: where it listens, and `person`, who may see it from elsewhere."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from shared.page.serve import Where

app = typer.Typer()


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """Where the page is, and who may see it."""

    listen: Annotated[
        str, typer.Option(help="ADDRESS:PORT. Beyond this machine it needs TLS and passwords; port 0: a free one.")
    ] = "127.0.0.1:0"
    name: Annotated[
        list[str] | None,
        typer.Option(help="With --listen: under which name others reach it; repeat it.", show_default=False),
    ] = None
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate, PEM.", show_default=False)] = None
    tls_key: Annotated[Path | None, typer.Option(help="Its key, PEM.", show_default=False)] = None
    passwords: Annotated[
        Path | None, typer.Option(help="Who may in, written by `person`; mode 600.", show_default=False)
    ] = None
    read_only: Annotated[bool, typer.Option("--read-only", help="Nobody decides, fills in or sends.")] = False
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open this machine's browser.")] = True

    def where(self) -> "Where":
        from shared.page.serve import Where

        return Where(
            listen=self.listen,
            names=tuple(self.name or ()),
            certificate=self.tls_cert,
            key=self.tls_key,
            passwords=self.passwords,
            readonly=self.read_only,
        )


@app.command()
def person(
    file: Annotated[Path, typer.Argument(help="The password file; made if it is not there.", show_default=False)],
    name: Annotated[str, typer.Argument(help="Of the person.", show_default=False)],
    role: Annotated[list[str] | None, typer.Option(help="look | decide | send; repeat it.")] = None,
) -> None:
    """Let a person in from other machines: asks for a password, and writes a line that holds no password."""
    from shared.page import people

    password = typer.prompt("password", hide_input=True, confirmation_prompt=True)
    people.add(file, name, password, role or ["look"])
    typer.echo(f"{name}: {', '.join(role or ['look'])}, in {file}")
