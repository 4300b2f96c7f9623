"""Whom this site believes, and what it signs with: of the kit that it joined, and of its enrolment. Both in STATE."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from shared.base.errors import ConfigError
from shared.base.files import read_bounded, read_secret
from shared.base.vocabulary import SiteName
from shared.trust.keys import is_encrypted, open_site_key, parse_site_key, read_public_key
from shared.trust.kit import read_sites
from shared.trust.warrant import OWN_KEY, SITES, TRUSTED

OPENED = "LACUNA_SITE_KEY"  # in the node's children's environment: where the key is that the node opened


def own_key(state: Path) -> ec.EllipticCurvePrivateKey:
    path = Path(os.environ.get(OPENED) or state / OWN_KEY)
    if not path.exists():
        raise ConfigError(f"{path}: missing; `lacuna-site init {state} --site NAME` makes it, in this very state")
    return parse_site_key(read_secret(path, "site key"), f"site key {path}")


@contextmanager
def opened(path: Path) -> Iterator[Path]:
    """A key as Flower's node and its workers read it: the file, or where that is encrypted, memory of this process."""
    content, where = read_secret(path, "site key"), f"site key {path}"
    if not is_encrypted(content):
        yield path
        return
    plain = open_site_key(parse_site_key(content, where))
    handle = os.memfd_create("site-key")  # on no disk, for this user alone, and gone with this process
    try:
        os.fchmod(handle, 0o600)
        os.write(handle, plain)
        yield Path(f"/proc/{os.getpid()}/fd/{handle}")
    finally:
        os.close(handle)


def federation_key(state: Path) -> Ed25519PublicKey:
    """Read the key by which alone this site lets itself be asked anything."""
    path = state / TRUSTED
    if not path.exists():
        raise ConfigError(f"{path}: missing; `lacuna-site join KIT --state {state}` brings it, in this very state")
    return read_public_key(path)


def known_sites(state: Path) -> Mapping[SiteName, ec.EllipticCurvePublicKey]:
    """The keys of all sites of the federation as the installed kit has them: whom this site hides its updates with."""
    path = state / SITES
    if not path.exists():
        raise ConfigError(f"{path}: missing; a newer kit of the federation brings it: `lacuna-site join KIT`")
    return read_sites(read_bounded(path, "sites"), str(path))
