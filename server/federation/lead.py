"""What a run asks the sites with, and knows their answers by: made where the federation's key is, read by the run.

    RUN/trust/warrant      the federation's word that this key leads this run (shared/trust/warrant.py)
              run.key      which signs each message; it is worth nothing beyond this run and its settings
              sites.json   the public key of every admitted site, on one line each

A simulation is a federation too: its key and its sites' are made up beside the sites' disks, and read by the same code.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from server.federation.federation import Federation
from shared.base.errors import ConfigError
from shared.base.files import canonical, parse_canonical, private_folder, read_bounded, sha256, write_bytes
from shared.base.vocabulary import SiteName
from shared.trust.keys import (
    make_signing_key,
    new_site_key,
    parse_site_key,
    parse_site_line,
    private_pem,
    public_path,
    read_signing_key,
    site_line,
)
from shared.trust.warrant import OWN_KEY, TRUSTED, Leader, Warrant, issue
from shared.trust.warrant import SITES as KNOWN

FOLDER, WARRANT, KEY, SITES = "trust", "warrant", "run.key", "sites.json"
DAYS = 30  # that a warrant holds; a resumed run has a new one
MADE_UP = ".federation/signing.key"  # of a simulation, beside its sites' disks


@dataclass(frozen=True, slots=True, kw_only=True)
class Lead:
    leader: Leader
    sites: Mapping[SiteName, ec.EllipticCurvePublicKey]

    @staticmethod
    def read(run: Path) -> "Lead":
        folder = run / FOLDER
        if not (folder / WARRANT).exists():
            raise ConfigError(f"{folder}: missing: no site would believe this run; `lacuna resume {run.name}` makes it")
        lines = parse_canonical(read_bounded(folder / SITES, "run"), str(folder / SITES))
        return Lead(
            leader=Leader(warrant=read_bounded(folder / WARRANT, "run"), key=read_signing_key(folder / KEY)),
            sites={site: parse_site_line(str(line), site) for site, line in lines.items()},
        )


def write_lead(run: Path, name: str, settings: str, federation: Federation) -> None:
    """Let the run in this folder be asked under this name, with the settings that its sites are told."""
    admitted = {e.site: e.public_key for e in federation.sites.values() if e.status == "admitted"}
    _write(run, name, settings, federation.state.federation, federation.signing_key(), admitted)


def make_up(run: Path, name: str, settings: str, states: Mapping[SiteName, Path], disks: Path) -> None:
    """The same for a simulation; its sites' disks (`states`) get what `lacuna-site join` leaves there of keys."""
    path = disks / MADE_UP
    if not path.exists():
        make_signing_key(path)
    lines = {}
    for site, state in states.items():
        if not (state / OWN_KEY).exists():
            private_folder((state / OWN_KEY).parent)
            write_bytes(state / OWN_KEY, new_site_key(), mode=0o600, durable=False)
        key = parse_site_key((state / OWN_KEY).read_bytes(), site)
        lines[site] = site_line(key.public_key())
        write_bytes(state / TRUSTED, public_path(path).read_bytes(), durable=False)
    for state in states.values():
        write_bytes(state / KNOWN, canonical(dict(lines)), durable=False)
    _write(run, name, settings, "simulation", read_signing_key(path), lines)


def _write(
    run: Path, name: str, settings: str, federation: str, signing: Ed25519PrivateKey, sites: Mapping[SiteName, str]
) -> None:
    key = Ed25519PrivateKey.generate()
    warrant = Warrant(
        federation=federation,
        run=name,
        settings=sha256(settings.encode()),
        key=key.public_key().public_bytes_raw().hex(),
        until=int(time.time() + DAYS * 86400),
    )
    folder = run / FOLDER
    private_folder(folder)
    write_bytes(folder / SITES, canonical(dict(sites)))
    write_bytes(folder / KEY, private_pem(key), mode=0o600)
    write_bytes(folder / WARRANT, issue(warrant, signing))
