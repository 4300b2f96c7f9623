"""A federation's beginning, and its sites: init, admit, a site's new key, revoke. The folder:
server/federation/federation.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from server.federation import federation as disk
from server.federation.authority import make_authority, make_server
from server.federation.federation import Federation, Retired, SiteEntry, State, opened
from shared.base.errors import ConfigError
from shared.base.files import Change, canonical, new_folder, private_folder, read_bounded
from shared.base.names import check_name
from shared.base.options import plain
from shared.trust import certificates
from shared.trust.keys import parse_fingerprint, private_pem, public_pem, spoken
from shared.trust.kit import Request, read_request
from shared.trust.manifest import Intensities, Manifest, Plane


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    entry: SiteEntry
    kit: Path
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NewFederation:
    """What a federation begins with; `amend` changes most of it."""

    name: str
    address: str  # HOST:PORT where sites reach the server
    names: Sequence[str] = disk.OWN_NAMES  # of the server's certificate besides
    modalities: Sequence[str]
    methods: Sequence[str]
    min_holders: int = 3  # what a site's policy asks for; of two holders each can compute the other's update
    quorum: int = 3
    grid: Plane | None = None
    server_days: int = 730  # how long the server's certificate holds
    ca_days: int = 3650
    passphrase: bytes | None = field(default=None, repr=False)  # of the CA's and the signing key


def init(folder: Path, new: NewFederation, *, now: datetime) -> Federation:
    """Make the whole folder, or nothing."""
    state = State(
        federation=check_name(new.name, "name"),
        address=new.address,
        names=tuple(new.names),
        server_days=new.server_days,
    )
    agreed = Manifest(
        federation=new.name,
        version=1,
        before="",
        made=certificates.utc(now),
        lacuna=version("lacuna"),
        modalities=tuple(new.modalities),
        intensities=intensities(new.modalities),
        methods=known_methods(new.methods),
        min_holders=new.min_holders,
        quorum=new.quorum,
        grid=new.grid,
    )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: something is there already; a federation is made in a new folder")
    word = new.passphrase
    ca_key, signer, ca = make_authority(new.name, now=now, days=new.ca_days, word=word)
    server_key, server = make_server(signer, ca, state.hosts, federation=new.name, now=now, days=new.server_days)
    signing = Ed25519PrivateKey.generate()
    private_folder(folder.parent)
    with new_folder(folder, mode=0o700) as made:
        change = Change(made)
        disk.write_manifest(change, agreed, signing)
        change.write(disk.STATE, canonical(plain(state)))
        disk.write_pair(change, (disk.CA_KEY, ca_key), (disk.CA, ca))
        disk.write_pair(change, (disk.SERVER_KEY, server_key), (disk.SERVER, server))
        change.write(disk.SERVER_CA, ca)
        disk.write_pair(
            change,
            (disk.SIGNING_KEY, private_pem(signing, word)),
            (disk.SIGNING_PUBLIC, public_pem(signing.public_key())),
        )
        disk.write_passwords(change)
        change.commit()
    return disk.load(folder)


def admit(folder: Path, request: Path, *, compared: str | None = None, again: bool = False, now: datetime) -> Admission:
    """Register the request's key and write the site's kit. The same request gives the same kit.

    `compared`: the fingerprint as the site told it; another than the request's is refused.
    """
    asked = read_request(read_bounded(request, "request"), f"request {request}")
    _compare(asked, compared)
    with opened(folder) as federation:
        known = _known(federation, asked)
        entry = SiteEntry(
            site=asked.site,
            status="admitted",
            public_key=asked.public_key,
            fingerprint=asked.fingerprint,
            compared=compared is not None,
            admitted=certificates.utc(now),
            versions=asked.versions,
        )
        if known is not None and known.status == "revoked":
            if not again:
                raise ConfigError(
                    f"site={asked.site!r}: was revoked at {known.revoked} ({known.why or 'no reason given'}); "
                    "--again admits it all the same"
                )
            entry = replace(entry, retired=_retire(known, asked, now))
        elif known is not None and known.public_key != asked.public_key:
            raise ConfigError(
                f"site={asked.site!r}: is admitted with another key, {spoken(known.fingerprint)}; "
                f"`lacuna federation rotate {asked.site} --request FILE` replaces it"
            )
        elif known is not None:
            entry = replace(known, compared=known.compared or entry.compared, versions=asked.versions)
        return _register(federation, entry, now)


def rotate_site(folder: Path, site: str, request: Path, *, compared: str | None = None, now: datetime) -> Admission:
    """Another key for a site; the one before is never taken again."""
    asked = read_request(read_bounded(request, "request"), f"request {request}")
    _compare(asked, compared)
    with opened(folder) as federation:
        known = federation.find(site)
        if asked.site != site:
            raise ConfigError(f"request {request}: is of site {asked.site!r}, not of {site!r}")
        if known.status == "revoked":
            raise ConfigError(f"site={site!r}: was revoked at {known.revoked}; `lacuna federation admit` with --again")
        if known.public_key == asked.public_key:
            raise ConfigError(
                f"site={site!r}: has this very key; `lacuna-site init STATE --site {site} --again` makes one"
            )
        _known(federation, asked)
        entry = replace(
            known,
            public_key=asked.public_key,
            fingerprint=asked.fingerprint,
            compared=compared is not None,
            versions=asked.versions,
            retired=_retire(known, asked, now),
        )
        return _register(federation, entry, now)


def revoke(folder: Path, site: str, *, why: str = "", now: datetime) -> SiteEntry:
    """From the next `sync` on the server refuses its key. No other site notices anything."""
    with opened(folder) as federation:
        known = federation.find(site)
        if known.status == "revoked":
            raise ConfigError(f"site={site!r}: was revoked already, at {known.revoked}")
        entry = replace(known, status="revoked", revoked=certificates.utc(now), why=why)
        change = Change(folder)
        disk.write_entry(change, entry)
        change.remove(disk.kit_path(site))
        change.commit()
        return entry


# --- what a manifest may say ----------------------------------------------------------------------------------------


def known_methods(names: Sequence[str]) -> tuple[str, ...]:
    from shared.methods import METHODS

    for name in names:
        if name not in METHODS:
            raise ConfigError(f"method={name!r}: must be one of {', '.join(METHODS)}")
    return tuple(name for name in METHODS if name in names)


def intensities(modalities: Sequence[str]) -> Intensities:
    from shared.data.intensities import RULES, rules_version

    for name in modalities:
        if name not in RULES:
            raise ConfigError(f"modality={name!r}: must be one of {', '.join(RULES)}")
    return Intensities(version=rules_version(modalities), rules={name: plain(RULES[name]) for name in modalities})


# --- parts ----------------------------------------------------------------------------------------------------------


def _compare(asked: Request, said: str | None) -> None:
    if said is not None and parse_fingerprint(said, "fingerprint") != asked.fingerprint:
        raise ConfigError(
            f"site={asked.site!r}: the request's fingerprint is {spoken(asked.fingerprint)}, not what the site told: "
            "the request is not theirs, or was swapped on the way. Do not admit it"
        )


def _known(federation: Federation, asked: Request) -> SiteEntry | None:
    """The site's entry, if there is one. A key is one site's alone, and a retired one nobody's."""
    for entry in federation.sites.values():
        if entry.site != asked.site and entry.site.casefold() == asked.site.casefold():
            raise ConfigError(f"site={asked.site!r}: there is a site {entry.site!r}; names differ in more than case")
        if entry.site != asked.site and asked.public_key == entry.public_key:
            raise ConfigError(f"site={asked.site!r}: its key is that of site {entry.site!r}; each makes its own")
        for retired in entry.retired:
            if retired.public_key == asked.public_key:
                raise ConfigError(
                    f"site={asked.site!r}: {entry.site!r} gave this key up at {retired.until}; make another"
                )
    return federation.sites.get(asked.site)


def _retire(known: SiteEntry, asked: Request, now: datetime) -> tuple[Retired, ...]:
    if known.public_key == asked.public_key:
        return known.retired
    old = Retired(public_key=known.public_key, fingerprint=known.fingerprint, until=certificates.utc(now))
    return (*known.retired, old)


def _register(federation: Federation, entry: SiteEntry, now: datetime) -> Admission:
    ends = certificates.parse_authorities(federation.authorities, disk.CA)[-1].not_valid_after_utc
    if now >= ends:
        raise ConfigError(f"{disk.CA}: expired at {certificates.utc(ends)}; `lacuna federation rotate ca` first")
    change = Change(federation.folder)
    disk.write_entry(change, entry)
    others = [other for site, other in sorted(federation.sites.items()) if site != entry.site]
    disk.write_kits(change, federation, federation.signing_key(), [entry, *others])  # each names all sites
    change.commit()
    own = disk.versions()
    notes = [
        f"{entry.site} has {name} {theirs}, the coordinator {ours}: runs refuse sites of another version"
        for name, theirs, ours in (
            ("lacuna", entry.versions.lacuna, own.lacuna),
            ("flwr", entry.versions.flwr, own.flwr),
        )
        if theirs != ours
    ]
    return Admission(entry=entry, kit=federation.folder / disk.kit_path(entry.site), notes=tuple(notes))
