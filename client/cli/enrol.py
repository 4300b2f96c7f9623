"""`lacuna-site init` and `join`: how a site becomes part of a federation. Thin: both call one function elsewhere."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def init(
    state: Annotated[Path, typer.Argument(help="This site's private disk.", show_default=False)],
    site: Annotated[str, typer.Option(help="The name to be known by: letters, digits, `.`, `_`, `-`.")],
    again: Annotated[
        bool,
        typer.Option("--again", help="Another key pair; the one in use stays until a kit for the new one is joined."),
    ] = False,
    passphrase: Annotated[bool, typer.Option("--passphrase", help="Encrypt the key; you are asked for it.")] = False,
) -> None:
    """Make this site's key pair, here, and the request to join that goes to the coordinator.

    The request holds the name, the public key, its fingerprint and the installed versions, nothing else; the private
    key never leaves STATE. Send the request, and read the fingerprint out when the coordinator telephones. With
    `--passphrase` whoever uses the key is asked for it, or it is in the file that LACUNA_PASSPHRASE_FILE names; the
    node opens the key into memory alone.
    """
    from client.site.enrol import init_site
    from shared.trust.keys import spoken
    from shared.trust.passphrase import new

    done = init_site(state, site, again=again, word=new("site key") if passphrase else None)
    typer.echo(f"send this to the coordinator: {done.request}")
    typer.echo("when they telephone, read out the fingerprint of the key in it:")
    typer.echo(f"    {spoken(done.fingerprint)}")
    typer.echo(
        f"then, with the kit that they send: lacuna-site join KIT --state {state} --fingerprint 'what they read out'"
    )


@app.command()
def join(
    kit: Annotated[Path, typer.Argument(help="The file that the coordinator sent.", show_default=False)],
    state: Annotated[Path, typer.Option(help="This site's private disk, of `lacuna-site init`.", show_default=False)],
    fingerprint: Annotated[
        str | None,
        typer.Option(
            help="Of the coordinator's signing key, as read out by telephone. Needed the first time; later a kit is "
            "trusted if the key of the one before signed it or vouches for its signer.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Verify a kit and install it under STATE/federation, whole or not at all.

    Refused, with the reason: a kit of which one byte was changed, for another site or another key, by another signer,
    of an older revision, with other intensity rules, or that would run anything but this site's own Lacuna.
    """
    from client.site.enrol import expiry_warnings
    from client.site.enrol import join as carry_out

    now = datetime.now(UTC)
    done = carry_out(state, kit, signer=fingerprint, now=now)
    agreed = done.manifest
    typer.echo(
        f"{done.head.site} is part of {agreed.federation} (revision {done.head.revision}); installed: {done.folder}"
    )
    typer.echo(f"manifest version {agreed.version}, {done.head.manifest}")
    typer.echo(
        f"agreed: {', '.join(agreed.modalities)}; {', '.join(agreed.methods)}; at least {agreed.min_holders} holders, "
        f"{agreed.quorum} sites"
    )
    for note in done.notes:
        typer.echo(f"note: {note}")
    for warning in expiry_warnings(state, now):
        typer.echo(f"warning: {warning}", err=True)
