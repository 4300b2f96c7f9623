"""What a coordinator signs: a few files, the length and hash of each in one text, and one Ed25519 signature over that.

Three kinds: a site's kit (shared/trust/kit.py), a federation's manifest (shared/trust/manifest.py) and a model's bundle
(shared/model/bundle.py). Each says what its signed bytes begin with, so that no signature made for another purpose
fits, and writes its signature in a way of its own: on a line, or as JSON. Nothing is believed before it fits.
"""

import base64
import binascii
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shared.base.errors import DataError
from shared.base.files import canonical, hash_file, sha256
from shared.trust.keys import key_id, signed_by

LINE = r"([0-9a-f]{64}) ([0-9a-f]{128})"  # a signature on a line: the public key and what it signed with
_ALGORITHM = "Ed25519"


# --- the signature --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Signature:
    key: Ed25519PublicKey  # as the signature itself has it: whether it is to be trusted is another question
    value: bytes

    @staticmethod
    def make(signing: Ed25519PrivateKey, message: bytes) -> "Signature":
        return Signature(signing.public_key(), signing.sign(message))

    def fits(self, message: bytes) -> bool:
        return signed_by(self.key, self.value, message)

    def is_by(self, trusted: Ed25519PublicKey) -> bool:
        return self.key.public_bytes_raw() == trusted.public_bytes_raw()

    def line(self) -> bytes:
        return f"{self.key.public_bytes_raw().hex()} {self.value.hex()}\n".encode("ascii")

    @staticmethod
    def parse_line(line: bytes, before: str = "") -> "Signature | None":
        """`before` begins the line; None for any other than `line` writes."""
        found = re.fullmatch(f"{before}{LINE}\n".encode("ascii"), line)
        if found is None:
            return None
        key, value = (bytes.fromhex(part.decode()) for part in found.groups())
        return Signature(Ed25519PublicKey.from_public_bytes(key), value)

    def json(self) -> bytes:
        return canonical(
            {
                "algorithm": _ALGORITHM,
                "key": key_id(self.key),
                "public_key": base64.b64encode(self.key.public_bytes_raw()).decode(),
                "signature": base64.b64encode(self.value).decode(),
            }
        )

    @staticmethod
    def parse_json(content: bytes, where: str, name: str) -> "Signature":
        """`name` is that of its file."""
        try:
            entry = json.loads(content)
            if entry["algorithm"] != _ALGORITHM:
                raise DataError(f"{where}: signed by {str(entry['algorithm'])[:20]}; must be {_ALGORITHM}")
            key = Ed25519PublicKey.from_public_bytes(base64.b64decode(entry["public_key"], validate=True))
            return Signature(key, base64.b64decode(entry["signature"], validate=True))
        except (ValueError, KeyError, TypeError, RecursionError, binascii.Error):
            raise DataError(f"{where}: {name} is damaged") from None


# --- the files ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What is signed of a file."""

    bytes: int
    sha256: str


def entry_of(content: bytes) -> Entry:
    return Entry(bytes=len(content), sha256=sha256(content))


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """A kind of signed folder: `listing` and `signature` lie beside the files that `listing` lists."""

    what: str
    listing: str
    signature: str
    context: bytes
    may_hold: tuple[str, ...]
    must_hold: str  # one of them
    most: int  # bytes of the listing: read before anything is known of it

    def entries(self, folder: Path) -> dict[str, dict[str, Any]]:
        """Of all files that are there now, as `listing` has them under "files"."""
        return {
            path.name: {"sha256": hash_file(path), "bytes": path.stat().st_size} for path in sorted(folder.iterdir())
        }

    def sign(self, listing: bytes, signing: Ed25519PrivateKey) -> bytes:
        return Signature.make(signing, self.context + listing).json()

    def verify(self, folder: Path, trusted: Ed25519PublicKey | None, where: str) -> tuple[bytes, Ed25519PublicKey]:
        """The listing and whose signature it bears; with `trusted`, no key that the folder brings along is believed."""
        listing = self._small(folder / self.listing, where)
        found = Signature.parse_json(self._small(folder / self.signature, where), where, self.signature)
        if trusted is not None and not found.is_by(trusted):
            raise DataError(f"{where}: signed by key {key_id(found.key)}, not by the trusted key {key_id(trusted)}")
        if not found.fits(self.context + listing):
            raise DataError(f"{where}: the signature does not fit {self.listing}: one of them was changed")
        return listing, found.key

    def read(self, folder: Path, files: Mapping[str, Any], where: str) -> Iterator[tuple[str, bytes]]:
        """The files of a verified listing, each checked against it: what was hashed is what is given."""
        self._check_names(folder, files, where)
        for name in sorted(files):
            content = (folder / name).read_bytes()
            if sha256(content) != files[name]["sha256"]:
                raise DataError(
                    f"{where}: {name} was changed: sha256 {sha256(content)[:12]}, not what {self.listing} says"
                )
            yield name, content

    def _check_names(self, folder: Path, files: Collection[str], where: str) -> None:
        """Just the files that are listed, each a plain file of this folder."""
        for name in files:
            if name not in self.may_hold:
                may = ", ".join(self.may_hold)
                raise DataError(f"{where}: {self.listing} lists {name[:40]!r}; a {self.what} holds {may}")
        if self.must_hold not in files:
            raise DataError(f"{where}: {self.listing} lists no {self.must_hold}")
        found = {path.name: path for path in folder.iterdir()}
        for name in sorted(files):
            if name not in found or found[name].is_symlink() or not found[name].is_file():
                raise DataError(f"{where}: {name} is missing")
        for name in sorted(found.keys() - set(files) - {self.listing, self.signature}):
            raise DataError(f"{where}: {name[:40]!r} is no part of it; remove it")

    def _small(self, path: Path, where: str) -> bytes:
        try:
            if path.is_symlink() or not path.is_file():
                raise DataError(f"{where}: {path.name} is missing")
            with path.open("rb") as file:
                content = file.read(self.most + 1)
        except OSError as error:
            raise DataError(f"{where}: {path.name} can't be read: {error.strerror}") from None
        if len(content) > self.most:
            raise DataError(f"{where}: {path.name} is over {self.most} bytes")
        return content
