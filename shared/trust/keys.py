"""The two kinds of keys: Ed25519 for what the coordinator signs, and a site's P-384, in the form that Flower takes.

A private key is mode 0600 and refused if wider; CA's, signing and site's key may be encrypted (PKCS#8). A fingerprint
is what two people compare by telephone: 128 bits, as eight groups of four hex digits. That of a signing key starts with
its id, as bundles name it.
"""

import base64
import hashlib
import re
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shared.base.errors import ConfigError, DataError
from shared.base.files import read_secret, write_bytes, write_once
from shared.trust import passphrase

_KIND, _POINT = "ecdsa-sha2-nistp384", 97  # a site's key on one line: the kind, the curve, 0x04 and two coordinates
_BEFORE_POINT = b"\0\0\0\x13ecdsa-sha2-nistp384\0\0\0\x08nistp384\0\0\0\x61"
_PEM, _SPKI = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo


# --- signing keys


def make_signing_key(path: Path) -> str:
    """A new Ed25519 key at `path` for its owner alone, its public half at `path`.pub; gives the key's id."""
    key = Ed25519PrivateKey.generate()
    try:
        write_once(path, private_pem(key))
    except FileExistsError:
        raise ConfigError(f"signing key {path}: there is one already, and it is never overwritten") from None
    write_bytes(public_path(path), public_pem(key.public_key()))
    return key_id(key.public_key())


def public_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.pub")


def read_signing_key(path: Path) -> Ed25519PrivateKey:
    """Read a signing key; ConfigError when anybody but its owner may read the file."""
    key = read_pem(path, "signing key")
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"signing key {path}: not an Ed25519 key")
    return key


def read_pem(path: Path, what: str) -> object:
    """A private key in PEM; where it is encrypted its passphrase is read or asked for."""
    content = read_secret(path, what)
    word = passphrase.known(f"{what} {path}") if is_encrypted(content) else None
    try:
        return serialization.load_pem_private_key(content, password=word)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        why = (
            "not a private key in PEM" if word is None else "the passphrase is another, or it is no private key in PEM"
        )
        raise ConfigError(f"{what} {path}: {why}") from None


def is_encrypted(content: bytes) -> bool:
    return content.startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")


def read_public_key(path: Path) -> Ed25519PublicKey:
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"public key {path}: can't be read: {error.strerror}") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(f"public key {path}: not a public key in PEM") from None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"public key {path}: not an Ed25519 key")
    return key


def key_id(key: Ed25519PublicKey) -> str:
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def private_pem(key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey, word: bytes | None = None) -> bytes:
    """PKCS#8, encrypted with the passphrase if there is one."""
    encryption = serialization.NoEncryption() if word is None else serialization.BestAvailableEncryption(word)
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, encryption)


def public_pem(key: Ed25519PublicKey | ec.EllipticCurvePublicKey) -> bytes:
    """Write a public key as PEM; for an EC key that is also the form in which a SuperLink keeps it."""
    return key.public_bytes(_PEM, _SPKI)


def signed_by(key: Ed25519PublicKey, signature: bytes, message: bytes) -> bool:
    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True


# --- a site's key


def new_site_key(word: bytes | None = None) -> bytes:
    """Make a private key; with a passphrase it is encrypted."""
    key = ec.generate_private_key(ec.SECP384R1())
    return open_site_key(key) if word is None else private_pem(key, word)


def open_site_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    """As OpenSSH writes it, which is what `flower-supernode --auth-supernode-private-key` reads."""
    return key.private_bytes(_PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())


def parse_site_key(content: bytes, where: str, word: bytes | None = None) -> ec.EllipticCurvePrivateKey:
    """Read a site's key; where it is encrypted its passphrase is `word`, or read or asked for."""
    try:
        if is_encrypted(content):
            key = serialization.load_pem_private_key(content, password=word or passphrase.known(where))
        else:
            key = serialization.load_ssh_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        if is_encrypted(content):
            raise ConfigError(f"{where}: the passphrase is another, or the file was damaged") from None
        raise ConfigError(f"{where}: not a private key as OpenSSH writes it, without a password") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ConfigError(f"{where}: not a P-384 key")
    return key


def site_line(key: ec.EllipticCurvePublicKey) -> str:
    """The public key on one line, as `flwr supernode register` reads it; no comment, which could name a host."""
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode("ascii")


def parse_site_line(line: str, where: str) -> ec.EllipticCurvePublicKey:
    """Read a site's line by its fixed form alone: a stranger wrote it, so no parser of many formats sees it."""
    kind, _, rest = line.partition(" ")
    if kind != _KIND:
        raise DataError(f"{where}: public_key: must be a P-384 key ({_KIND})")
    if not re.fullmatch(r"[A-Za-z0-9+/]{182}==", rest):
        raise DataError(f"{where}: public_key: must be one line of OpenSSH's without a comment")
    before, point = base64.b64decode(rest)[:-_POINT], base64.b64decode(rest)[-_POINT:]
    try:
        if before != _BEFORE_POINT or point[0] != 4:
            raise ValueError
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), point)
    except ValueError:
        raise DataError(f"{where}: public_key: not a P-384 key as OpenSSH writes it") from None
    if site_line(key) != line:
        raise DataError(f"{where}: public_key: is not written as OpenSSH writes it")
    return key


def site_signature(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    return key.sign(message, ec.ECDSA(hashes.SHA384()))


def signed_by_site(key: ec.EllipticCurvePublicKey, signature: bytes, message: bytes) -> bool:
    try:
        key.verify(signature, message, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        return False
    return True


# --- fingerprints


def fingerprint(key: Ed25519PublicKey | ec.EllipticCurvePublicKey) -> str:
    if isinstance(key, Ed25519PublicKey):
        return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:32]
    return hashlib.sha256(key.public_bytes(serialization.Encoding.DER, _SPKI)).hexdigest()[:32]


def spoken(print_: str) -> str:
    """Write a fingerprint in groups of four, to be read out."""
    return " ".join(print_[i : i + 4] for i in range(0, len(print_), 4))


def parse_fingerprint(text: str, key: str) -> str:
    """Read a fingerprint as a person types it: any case, with spaces, colons or dashes, or none."""
    plain = re.sub(r"[\s:-]", "", text).lower()
    if not re.fullmatch(r"[0-9a-f]{32}", plain):
        raise ConfigError(f"{key}={text[:80]!r}: must be the 32 hex digits of a fingerprint; spaces don't matter")
    return plain
