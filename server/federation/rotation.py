"""New certificates, a new signing key, another agreement: what changes for all sites at once, and how they follow.

    server   a new key and certificate by the current CA; sites notice nothing
    ca       a new CA beside the one of the server's certificate: sites that join their new kits trust both, and the
             next `rotate server` drops the old one. Sites that have not joined by then are cut off until they do
    signing  a new key, whose successor's right the old one signs: a site that trusts the old one follows by itself
    amend    manifest, address or names; a new version, which names the one before by its hash

The private key before is gone when the verb returns.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from server.federation import federation as disk
from server.federation.authority import make_authority, make_server
from server.federation.federation import Federation, opened
from server.federation.leaving import listed
from server.federation.provision import intensities, known_methods
from shared.base.errors import ConfigError
from shared.base.files import Change, canonical, read_bounded
from shared.base.options import plain
from shared.trust import certificates
from shared.trust.keys import private_pem, public_pem, read_pem
from shared.trust.kit import MOST_FOLLOWS, Succession
from shared.trust.leaving import RECALLED, write_recalled
from shared.trust.manifest import Manifest, Plane


@dataclass(frozen=True, slots=True, kw_only=True)
class Amendment:
    """What `amend` changes; None leaves it as it is."""

    modalities: Sequence[str] | None = None
    methods: Sequence[str] | None = None
    min_holders: int | None = None
    quorum: int | None = None
    grid: Plane | None = None
    address: str | None = None
    names: Sequence[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotated:
    revision: int
    manifest: Manifest
    kits: tuple[str, ...] = ()  # made anew, to be sent


def rotate_server(folder: Path, *, now: datetime) -> Rotated:
    with opened(folder) as federation:
        change = Change(folder)
        _new_server(change, federation, now)
        done = Rotated(revision=federation.state.revision, manifest=federation.manifest)
        if (folder / disk.CA_BEFORE).exists():  # the new CA alone from here on
            change.remove(disk.CA_BEFORE)
            ours = read_bounded(folder / disk.CA, "certificate")
            done = _reissue(change, replace(federation, authorities=ours), federation.signing_key())
        change.commit()
        return done


def rotate_ca(folder: Path, *, now: datetime, days: int = 3650) -> Rotated:
    with opened(folder) as federation:
        if (folder / disk.CA_BEFORE).exists():
            raise ConfigError(
                f"{disk.CA_BEFORE}: the server still shows a certificate of the CA before; "
                "`lacuna federation rotate server` first, once all sites have joined their new kits"
            )
        word = federation.word(disk.CA_KEY)
        key, _, ca = make_authority(federation.state.federation, now=now, days=days, word=word)
        before = read_bounded(folder / disk.CA, "certificate")
        change = Change(folder)
        disk.write_pair(change, (disk.CA_KEY, key), (disk.CA, ca))
        change.write(disk.CA_BEFORE, before)
        done = _reissue(change, replace(federation, authorities=before + ca), federation.signing_key())
        change.commit()
        return done


def rotate_signing(folder: Path) -> Rotated:
    with opened(folder) as federation:
        old, new = federation.signing_key(), Ed25519PrivateKey.generate()
        follows = (*federation.follows, Succession.make(old, new.public_key()))[-MOST_FOLLOWS:]
        change = Change(folder)
        disk.write_pair(
            change,
            (disk.SIGNING_KEY, private_pem(new, federation.word(disk.SIGNING_KEY))),
            (disk.SIGNING_PUBLIC, public_pem(new.public_key())),
        )
        change.write(disk.FOLLOWS, b"".join(succession.line() for succession in follows))
        disk.write_manifest(change, federation.manifest, new)
        if (folder / RECALLED).exists():
            change.write(RECALLED, write_recalled(listed(federation), new))
        done = _reissue(change, replace(federation, follows=follows), new)
        change.commit()
        return done


def amend(folder: Path, changes: Amendment, *, now: datetime) -> Rotated:
    """A new version of the manifest, or another address; a server's certificate for other names comes with it."""
    with opened(folder) as federation:
        agreed, state = federation.manifest, federation.state
        modalities = agreed.modalities if changes.modalities is None else tuple(changes.modalities)
        wanted = replace(
            agreed,
            modalities=modalities,
            intensities=intensities(modalities),
            methods=agreed.methods if changes.methods is None else known_methods(changes.methods),
            min_holders=agreed.min_holders if changes.min_holders is None else changes.min_holders,
            quorum=agreed.quorum if changes.quorum is None else changes.quorum,
            grid=agreed.grid if changes.grid is None else changes.grid,
            lacuna=version("lacuna"),
        )
        if wanted != agreed:
            wanted = replace(wanted, version=agreed.version + 1, before=agreed.digest, made=certificates.utc(now))
        moved = replace(
            state,
            address=state.address if changes.address is None else changes.address,
            names=state.names if changes.names is None else tuple(changes.names),
        )
        if wanted == agreed and moved == state:
            raise ConfigError("amend: nothing would change; see `lacuna federation amend --help` for what can")
        change = Change(folder)
        signing = federation.signing_key()
        disk.write_manifest(change, wanted, signing)
        if moved.hosts != state.hosts:
            if (folder / disk.CA_BEFORE).exists():
                raise ConfigError(f"{disk.CA_BEFORE}: a rotation of the CA is under way; `rotate server` first")
            _new_server(change, replace(federation, state=moved), now)
        done = _reissue(change, replace(federation, manifest=wanted, state=moved), signing)
        change.commit()
        return done


def _new_server(change: Change, federation: Federation, now: datetime) -> None:
    ca = read_bounded(federation.folder / disk.CA, "certificate")
    key, certificate = make_server(
        read_pem(federation.folder / disk.CA_KEY, "CA key"),
        ca,
        federation.state.hosts,
        federation=federation.state.federation,
        now=now,
        days=federation.state.server_days,
    )
    disk.write_pair(change, (disk.SERVER_KEY, key), (disk.SERVER, certificate))
    change.write(disk.SERVER_CA, ca)


def _reissue(change: Change, federation: Federation, signing: Ed25519PrivateKey) -> Rotated:
    """The next revision, and a kit of it for every site."""
    state = replace(federation.state, revision=federation.state.revision + 1)
    change.write(disk.STATE, canonical(plain(state)))
    kits = disk.write_kits(change, replace(federation, state=state), signing, list(federation.sites.values()))
    return Rotated(revision=state.revision, manifest=federation.manifest, kits=kits)
