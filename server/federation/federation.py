"""The coordinator's own disk: certificates, signing key, manifest, and one entry for each site ever admitted.

    federation.json .sig     what the federation agrees on (shared/trust/manifest.py)
    state.json               revision, address, names of the server
    ca/ca.key ca.crt         before.crt: the CA before, while the server still shows its certificate
    server/server.key .crt   for the proxy and the SuperLink; ca.crt: the CA of that certificate, which they trust
    signing/signing.key .pub follows: the successions
    passwords/mlflow         as MLflow's client and server/journal/guarded.py read it; postgres, pgpass: of its database
    sites/NAME.json .pub     a site and its public key, as `flwr supernode register` reads it
    kits/NAME.kit            what it was sent last

A site has files of its own, so admitting or revoking one changes no byte of another. Every change is whole or absent
(shared/base/files.py) and made under a lock. What changes it: server/federation/provision.py (sites),
server/federation/rotation.py (the rest).
"""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shared.base.errors import ConfigError, DataError
from shared.base.files import Change, canonical, locked, parse_canonical, read_bounded, read_secret
from shared.base.names import Address, check_host
from shared.base.options import build, plain, require
from shared.trust import kit, manifest, passphrase
from shared.trust.certificates import Lifetime, lifetime, warnings
from shared.trust.keys import is_encrypted, public_pem, read_public_key, read_signing_key
from shared.trust.kit import Succession, Versions
from shared.trust.manifest import Manifest

STATE = "state.json"
CA_KEY, CA, CA_BEFORE = "ca/ca.key", "ca/ca.crt", "ca/before.crt"
SERVER_KEY, SERVER, SERVER_CA = "server/server.key", "server/server.crt", "server/ca.crt"
SIGNING_KEY, SIGNING_PUBLIC, FOLLOWS = "signing/signing.key", "signing/signing.key.pub", "signing/follows"
MLFLOW, POSTGRES, PGPASS = "passwords/mlflow", "passwords/postgres", "passwords/pgpass"
OWN_NAMES = ("localhost", "127.0.0.1", "superlink")  # the server's own inside: see deploy/


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    federation: str
    revision: int = 1  # counts what every kit carries: certificates, signing key, address, manifest
    address: str  # where sites reach the server
    names: tuple[str, ...]  # of the server's certificate besides
    server_days: int = 730
    schema: int = 1

    def __post_init__(self) -> None:
        Address.parse(self.address, "address")
        for name in self.names:
            check_host(name, "name")
        require(1 <= self.server_days <= 825, "server_days", self.server_days, "1 to 825")  # no longer anywhere

    @property
    def hosts(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((Address.parse(self.address, "address").host, *self.names)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Retired:
    public_key: str
    fingerprint: str
    until: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteEntry:
    """A site on the coordinator's list. It is never taken off: a revoked key must be known."""

    site: str
    status: Literal["admitted", "revoked"]
    public_key: str
    fingerprint: str
    compared: bool  # did a person compare the fingerprint?
    admitted: str  # when, UTC
    revoked: str | None = None
    why: str = ""
    versions: Versions
    retired: tuple[Retired, ...] = ()  # keys that it had before
    schema: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Federation:
    """What the folder holds, without the private keys."""

    folder: Path
    state: State
    manifest: Manifest
    authorities: bytes  # what a site must trust, in PEM: the CA of the server's certificate, and a new one if there is
    follows: tuple[Succession, ...]
    sites: Mapping[str, SiteEntry]

    def signing_key(self) -> Ed25519PrivateKey:
        return read_signing_key(self.folder / SIGNING_KEY)

    def word(self, key: str) -> bytes | None:
        """The passphrase that the key which follows this one is encrypted with; None where this one is not."""
        path = self.folder / key
        return passphrase.known(f"key {path}") if is_encrypted(read_secret(path, "key")) else None

    def find(self, site: str) -> SiteEntry:
        if site not in self.sites:
            raise ConfigError(f"site={site[:80]!r}: was never admitted; `lacuna federation list` names them all")
        return self.sites[site]


# --- in -------------------------------------------------------------------------------------------------------------


@contextmanager
def opened(folder: Path) -> Iterator[Federation]:
    """The federation of a folder, for this process alone."""
    if not (folder / STATE).is_file():
        raise ConfigError(f"{folder}: no federation there; `lacuna federation init {folder}` makes one")
    with locked(folder):
        yield load(folder)


def load(folder: Path) -> Federation:
    state = build(State, parse_canonical(read_bounded(folder / STATE, "federation"), STATE), STATE)
    agreed = manifest.verify(
        read_bounded(folder / manifest.MANIFEST, "federation"),
        read_bounded(folder / manifest.SIGNATURE, "federation"),
        read_public_key(folder / SIGNING_PUBLIC),
        str(folder),
    )
    follows = read_bounded(folder / FOLLOWS, "federation") if (folder / FOLLOWS).exists() else b""
    before = read_bounded(folder / CA_BEFORE, "federation") if (folder / CA_BEFORE).exists() else b""
    entries = [
        build(SiteEntry, parse_canonical(read_bounded(path, "site"), str(path)), f"sites/{path.name}")
        for path in sorted((folder / "sites").glob("*.json"))
    ]
    return Federation(
        folder=folder,
        state=state,
        manifest=agreed,
        authorities=before + read_bounded(folder / CA, "federation"),
        follows=tuple(kit.read_successions(follows.splitlines(keepends=True), str(folder / FOLLOWS))),
        sites={entry.site: entry for entry in entries},
    )


def lifetimes(folder: Path) -> dict[str, Lifetime]:
    """How long each certificate in the folder holds, by file."""
    remedies = {
        SERVER: ("the server's certificate", "`lacuna federation rotate server`, then restart the server"),
        CA: ("the CA", "`lacuna federation rotate ca`, and send every site its new kit"),
        CA_BEFORE: ("the CA before", "`lacuna federation rotate server` once all sites have joined their new kits"),
    }
    found = {}
    for path, (name, remedy) in remedies.items():
        if (folder / path).exists():
            pem = read_bounded(folder / path, "certificate")
            try:
                found[path] = lifetime(x509.load_pem_x509_certificate(pem), f"{name} ({path})", remedy)
            except ValueError:
                raise DataError(f"certificate {folder / path}: not a certificate in PEM") from None
    return found


def expiry_warnings(folder: Path, now: datetime) -> list[str]:
    return warnings(lifetimes(folder), now)


# --- out, as part of a change ---------------------------------------------------------------------------------------


def write_pair(change: Change, private: tuple[str, bytes], public: tuple[str, bytes]) -> None:
    change.write(*private, mode=0o600)
    change.write(*public)


def write_passwords(change: Change) -> None:
    """Of what the server's containers ask of each other and of a person: made here, and in no environment."""
    change.write(
        MLFLOW,
        f"[mlflow]\nmlflow_tracking_username = lacuna\nmlflow_tracking_password = {secrets.token_hex(24)}\n".encode(),
        mode=0o600,
    )
    word = secrets.token_hex(24)
    change.write(POSTGRES, f"{word}\n".encode(), mode=0o644)  # its container has another uid; the folder is 0700
    change.write(PGPASS, f"postgres:5432:mlflow:mlflow:{word}\n".encode(), mode=0o600)


def write_manifest(change: Change, agreed: Manifest, signing: Ed25519PrivateKey) -> None:
    change.write(manifest.MANIFEST, agreed.content())
    change.write(manifest.SIGNATURE, manifest.sign(agreed.content(), signing))


def write_kits(
    change: Change, federation: Federation, signing: Ed25519PrivateKey, entries: Sequence[SiteEntry]
) -> tuple[str, ...]:
    """The kits of these sites but the revoked ones, as the federation now stands; gives their names in the folder."""
    content = federation.manifest.content()
    named = {**federation.sites, **{entry.site: entry for entry in entries}}
    sites = {site: entry.public_key for site, entry in named.items() if entry.status == "admitted"}
    written = []
    for entry in entries:
        if entry.status == "revoked":
            continue
        address = Address.parse(federation.state.address, "address")
        files = {
            **kit.site_files(entry.site, federation.state.federation, address),
            kit.AUTHORITIES: federation.authorities,
            kit.SIGNING: public_pem(signing.public_key()),
            kit.SITES: canonical(sites),
            manifest.MANIFEST: content,
            manifest.SIGNATURE: manifest.sign(content, signing),
        }
        made = kit.write_kit(
            files,
            signing,
            federation.follows,
            federation=federation.state.federation,
            site=entry.site,
            public_key=entry.public_key,
            revision=federation.state.revision,
            versions=versions(),
        )
        written.append(kit_path(entry.site))
        change.write(written[-1], made)
    return tuple(written)


def kit_path(site: str) -> str:
    return f"kits/{site}.kit"


def write_entry(change: Change, entry: SiteEntry) -> None:
    change.write(f"sites/{entry.site}.json", canonical(plain(entry)))
    change.write(f"sites/{entry.site}.pub", entry.public_key.encode("ascii") + b"\n")


def versions() -> Versions:
    return Versions(lacuna=version("lacuna"), flwr=version("flwr"))
