"""Whom this site believes, and what it signs with: of the kit that it joined, and of its enrolment. Both in STATE."""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from shared.base.errors import ConfigError
from shared.base.files import read_secret
from shared.trust.keys import parse_site_key, read_public_key
from shared.trust.warrant import OWN_KEY, TRUSTED


def own_key(state: Path) -> ec.EllipticCurvePrivateKey:
    path = state / OWN_KEY
    if not path.exists():
        raise ConfigError(f"{path}: missing; `lacuna-site init {state} --site NAME` makes it, in this very state")
    return parse_site_key(read_secret(path, "site key"), f"site key {path}")


def federation_key(state: Path) -> Ed25519PublicKey:
    """Read the key by which alone this site lets itself be asked anything."""
    path = state / TRUSTED
    if not path.exists():
        raise ConfigError(f"{path}: missing; `lacuna-site join KIT --state {state}` brings it, in this very state")
    return read_public_key(path)
