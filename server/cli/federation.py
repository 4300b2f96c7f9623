"""`lacuna federation`: who may take part, and by which keys. Thin: every verb calls one function elsewhere."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli import leaving
from server.cli.options import FOLDER, RUNS, Folder, Runs
from shared.base.errors import ConfigError
from shared.base.verbs import flat

if TYPE_CHECKING:
    from server.federation.provision import Admission
    from server.federation.rotation import Rotated
    from shared.trust.manifest import Plane

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="""Who may take part in the federation, and by which keys.

**init** makes the coordinator's folder, **admit** answers a site's request with a signed kit, **sync** tells the
running SuperLink, **list** shows it all, **revoke** ends a site's part, **rotate** renews keys and certificates,
**amend** changes what was agreed. **withdrawn** reads a site's note that a subject left, **recall** takes a bundle
back.

The folder holds the private keys of the CA, the server and the signing key: keep it on an encrypted disk, back it up,
and never send any of it but the kits. No site's private key ever comes here.""",
)

Fingerprint = Annotated[
    str | None,
    typer.Option(
        help="The fingerprint as the site read it out by telephone; a request with another is refused.",
        show_default=False,
    ),
]
Modalities = Annotated[
    list[str] | None, typer.Option("--modality", help="Repeat it: T1, T1CE, T2, FLAIR, ...", show_default=False)
]
Methods = Annotated[
    list[str] | None, typer.Option("--method", help="That a run may use; repeat it.", show_default=False)
]
Grid = Annotated[
    str | None,
    typer.Option(
        help="HEIGHTxWIDTH[@MM[xMM]], the same for all runs: pixels, their size, from slice to slice. Default: a run's "
        "own.",
        show_default=False,
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """What a new federation agrees on, and the names of its server."""

    modality: Modalities = None
    method: Methods = None
    server_name: Annotated[
        list[str] | None,
        typer.Option(
            help="Another name or IP address in the server's certificate, besides the host of --address; repeat it.",
            show_default="localhost, 127.0.0.1, superlink",
        ),
    ] = None
    min_holders: Annotated[
        int,
        typer.Option(help="What fewer sites have trained is not released. Of 2, each can compute the other's update."),
    ] = 3
    quorum: Annotated[int, typer.Option(help="Updates without which a round changes nothing.")] = 3
    grid: Grid = None


@app.command()
@flat
def init(
    folder: Annotated[Path, typer.Argument(help="New folder, on the coordinator's private disk.")],
    name: Annotated[str, typer.Option(help="Of the federation: letters, digits, `.`, `_`, `-`.")],
    address: Annotated[str, typer.Option(help="HOST:PORT where sites reach the server.")],
    agreement: Agreement,
    server_days: Annotated[int, typer.Option(help="How long the server's certificate holds.")] = 730,
    ca_days: Annotated[int, typer.Option(help="How long the CA holds.")] = 3650,
    passphrase: Annotated[
        bool, typer.Option("--passphrase", help="Encrypt the CA's and the signing key; you are asked for it.")
    ] = False,
) -> None:
    """Make a federation: CA, server certificate, signing key, and the signed manifest of what is agreed.

    `lacuna federation init federation --name strokes --address fl.example.org:443 --modality T1 --modality FLAIR
    --method amm_diff`

    With `--passphrase` every verb that signs asks for it, or reads it from the file that LACUNA_PASSPHRASE_FILE names.
    """
    from server.federation import provision
    from server.federation.federation import OWN_NAMES
    from shared.trust.passphrase import new

    modalities, methods = agreement.modality, agreement.method
    if not modalities or not methods:
        raise ConfigError("--modality and --method: name one or more of each")
    wanted = provision.NewFederation(
        name=name,
        address=address,
        names=OWN_NAMES if agreement.server_name is None else agreement.server_name,
        modalities=[_modality(text) for text in modalities],
        methods=methods,
        min_holders=agreement.min_holders,
        quorum=agreement.quorum,
        grid=_grid(agreement.grid),
        server_days=server_days,
        ca_days=ca_days,
        passphrase=new("CA's and the signing key") if passphrase else None,
    )
    provision.init(folder, wanted, now=_now())
    list_(folder)


@app.command()
def admit(
    request: Annotated[Path, typer.Argument(help="The request that `lacuna-site init` made.")],
    federation: Folder = FOLDER,
    fingerprint: Fingerprint = None,
    again: Annotated[bool, typer.Option("--again", help="Admit a site that was revoked.")] = False,
) -> None:
    """Register a site's public key and write its signed kit. Call the site before you send it.

    Let the site read out the fingerprint that `lacuna-site init` showed, and give it as `--fingerprint`; without it the
    list keeps saying NO under compared, and the same line with it mends that. Read out the signing key's, too: the
    site needs it to `lacuna-site join` the kit.
    """
    from server.federation import provision

    _say_admitted(provision.admit(federation, request, compared=fingerprint, again=again, now=_now()), federation)


@app.command("list")
def list_(
    federation: Folder = FOLDER,
    as_json: Annotated[bool, typer.Option("--json", help="For a program.")] = False,
) -> None:
    """The sites, their keys' fingerprints, the certificates and how long they hold."""
    from server.federation import view

    said = view.facts(federation, _now())
    typer.echo(json.dumps(said, indent=1) if as_json else "\n".join(view.lines(said)))
    _warn(federation)


@app.command()
def revoke(
    site: Annotated[str, typer.Argument(help="Name of the site.")],
    federation: Folder = FOLDER,
    why: Annotated[str, typer.Option(help="The reason, for whoever reads the list later.")] = "",
    withdraw: Annotated[
        bool, typer.Option("--withdraw", help="It takes its data back: each run that it was in says so from now on.")
    ] = False,
    runs: Runs = RUNS,
) -> None:
    """End a site's part: its key is refused from the next `sync` on. No other site notices anything.

    With --withdraw every run under --runs into which its updates were folded is marked: `lacuna status`, `report` and
    `export` say from which round and checkpoint on, and `lacuna resume RUN --without SITE` trains again from before.
    """
    from server.federation import provision
    from server.federation.federation import load
    from server.journal import withdrawn

    entry = load(federation).find(site)
    if not (withdraw and entry.status == "revoked"):
        provision.revoke(federation, site, why=why, now=_now())
        typer.echo(f"{site} is revoked. Now tell the SuperLink: lacuna federation sync --federation {federation}")
    if withdraw:
        found = withdrawn.with_part_of(runs, site)
        for run in found:
            withdrawn.mark(run, site, withdrawn.Mark(who="site", why=why, at=_now().timestamp()))
        leaving.say_affected(runs, found, site)
    _warn(federation)


app.command("withdrawn")(leaving.withdrawn)
app.command()(leaving.recall)


@app.command()
def rotate(
    what: Annotated[str, typer.Argument(help="server | ca | signing | the name of a site")],
    federation: Folder = FOLDER,
    request: Annotated[
        Path | None, typer.Option(help="For a site: its request for the new key.", show_default=False)
    ] = None,
    fingerprint: Fingerprint = None,
) -> None:
    """Renew a key or a certificate; the one before is gone then.

    **A site**: it types `lacuna-site init STATE --site NAME --again` and sends the new request. It works on with the
    old key until it joins the kit, and you `sync`.

    **server**: restart the server afterwards; sites notice nothing.

    **ca**: every site gets a new kit, which trusts the old CA and the new one. When all have joined, `rotate server`
    moves the server to the new CA and drops the old one. At once one after the other if the CA's key was stolen.

    **signing**: every site gets a new kit. The old key vouches for the new one, so they need no telephone; if the old
    key was stolen, tell them the new fingerprint, and to `join` with `--fingerprint`.
    """
    from server.federation import provision, rotation

    if what not in ("server", "ca", "signing"):
        if request is None:
            raise ConfigError(f"--request: missing; a new key for site {what!r} comes from the site")
        _say_admitted(provision.rotate_site(federation, what, request, compared=fingerprint, now=_now()), federation)
        return
    if request is not None or fingerprint is not None:
        raise ConfigError(f"--request and --fingerprint: are for a site, not for {what}")
    if what == "server":
        done = rotation.rotate_server(federation, now=_now())
        typer.echo("a new server key and certificate: restart the server")
    elif what == "ca":
        done = rotation.rotate_ca(federation, now=_now())
    else:
        done = rotation.rotate_signing(federation)
    _kits(done, federation)
    _warn(federation)


@app.command()
def amend(
    federation: Folder = FOLDER,
    modality: Modalities = None,
    method: Methods = None,
    min_holders: Annotated[int | None, typer.Option(show_default=False)] = None,
    quorum: Annotated[int | None, typer.Option(show_default=False)] = None,
    grid: Grid = None,
    address: Annotated[str | None, typer.Option(help="Where sites reach the server.", show_default=False)] = None,
    server_name: Annotated[
        list[str] | None, typer.Option(help="All further names of the server; repeat it.", show_default=False)
    ] = None,
) -> None:
    """Change what was agreed; what is not named stays. Every site gets a new kit, and the manifest a new hash."""
    from server.federation import rotation

    changes = rotation.Amendment(
        modalities=None if modality is None else [_modality(text) for text in modality],
        methods=method,
        min_holders=min_holders,
        quorum=quorum,
        grid=_grid(grid),
        address=address,
        names=server_name,
    )
    done = rotation.amend(federation, changes, now=_now())
    typer.echo(f"manifest version {done.manifest.version}, {done.manifest.digest}")
    _kits(done, federation)
    _warn(federation)


@app.command(name="sign-image")
def sign_image(
    image: Annotated[list[str], typer.Argument(help="Ids, sha256:..., as deploy/images.sh prints them.")],
    federation: Folder = FOLDER,
    out: Annotated[Path, typer.Option(help="The file of signatures, for STATE/images of a site.")] = Path("images.sig"),
) -> None:
    """Vouch for container images, with the signing key: `lacuna-site up` starts no other but what a site built."""
    from server.federation.federation import load
    from shared.base.files import write_bytes
    from shared.trust.image import sign

    write_bytes(out, sign(image, load(federation).signing_key()))
    typer.echo(f"{out}: {len(image)} signed; send it with the images, it is public")


@app.command()
def sync(
    federation: Folder = FOLDER,
    superlink: Annotated[str, typer.Option(help="HOST:PORT of the SuperLink itself, inside; never the proxy.")] = (
        "127.0.0.1:8000"
    ),
) -> None:
    """Make the running SuperLink's list of keys equal to this folder's: once after every admit, revoke and rotate.

    By hand it would be `flwr supernode register federation/sites/NAME.pub --name NAME`, and `flwr supernode unregister
    NODE` for a node whose number you wrote down.
    """
    from server.superlink.superlink import sync as carry_out

    done = carry_out(federation, superlink)
    for site in done.registered:
        typer.echo(f"registered {site}")
    for site in done.unregistered:
        typer.echo(f"unregistered a key of {site}")
    for node in done.strangers:
        typer.echo(f"unregistered node {node}: its key is of no site that was ever admitted")
    if not (done.registered or done.unregistered or done.strangers or done.spent):
        typer.echo("nothing to change")
    _warn(federation)
    if done.spent:
        raise ConfigError(
            f"site={', '.join(done.spent)}: its key was unregistered before, and Flower takes none twice: let the site "
            "make another (`lacuna-site init STATE --site NAME --again`) and `lacuna federation rotate NAME`"
        )


def _say_admitted(admission: "Admission", folder: Path) -> None:
    from server.federation.federation import SIGNING_PUBLIC
    from shared.trust.keys import fingerprint, read_public_key, spoken

    entry = admission.entry
    typer.echo(f"{entry.site}: admitted; its key's fingerprint is")
    typer.echo(f"    {spoken(entry.fingerprint)}")
    if not entry.compared:
        typer.echo(
            "NOT COMPARED YET: telephone the site, let it read out its own, and run this again with --fingerprint"
        )
    typer.echo(f"kit to send it: {admission.kit}")
    typer.echo("tell it by telephone the signing key's fingerprint, which `lacuna-site join` asks for:")
    typer.echo(f"    {spoken(fingerprint(read_public_key(folder / SIGNING_PUBLIC)))}")
    typer.echo(f"then tell the SuperLink: lacuna federation sync --federation {folder}")
    for note in admission.notes:
        typer.echo(f"warning: {note}", err=True)
    _warn(folder)


def _kits(done: "Rotated", folder: Path) -> None:
    if done.kits:
        typer.echo(f"revision {done.revision}: send each site its new kit, for `lacuna-site join`:")
    for path in done.kits:
        typer.echo(f"    {folder / path}")


def _warn(folder: Path) -> None:
    from server.federation.federation import expiry_warnings

    for warning in expiry_warnings(folder, _now()):
        typer.echo(f"warning: {warning}", err=True)


def _modality(text: str) -> str:
    from shared.data.modalities import parse

    return parse(text)


def _grid(text: str | None) -> "Plane | None":
    from shared.trust.manifest import Plane

    return None if text is None else Plane.parse(text)


def _now() -> datetime:
    return datetime.now(UTC)
