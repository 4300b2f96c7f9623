"""What a federation agrees on, in one signed file: federation.json, its version, and the hash that names it.

    federation.json   modalities, intensity rules, methods, least holders, quorum, grid; canonical JSON
    federation.sig    <public key> <signature> in hex: Ed25519 over the bytes of federation.json

The hash is that of federation.json. A site's policy can ask for it, and a change of anything gives another.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shared.base.errors import ConfigError, DataError
from shared.base.files import canonical, parse_canonical, sha256
from shared.base.names import check_name
from shared.base.options import build, plain, require
from shared.trust.signed import Signature

SCHEMA = 1
MANIFEST, SIGNATURE = "federation.json", "federation.sig"
_CONTEXT = b"lacuna federation 1\n"  # so that no signature made for another purpose fits
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_]{0,31}")
_HASH = re.compile(r"|[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Intensities:
    """The constants that turn values to [0, 1], as shared/data/intensities.py has them."""

    version: str
    rules: Mapping[str, Any]  # of the federation's modalities


@dataclass(frozen=True, slots=True, kw_only=True)
class Plane:
    """The grid of all runs, as shared/data/volumes.py has it."""

    height: int
    width: int
    spacing_mm: float | None = None  # None: each subject's own
    slice_mm: float | None = None  # None: each subject's own

    def __post_init__(self) -> None:
        require(1 <= self.height <= 4096, "height", self.height, "1 to 4096")
        require(1 <= self.width <= 4096, "width", self.width, "1 to 4096")
        for key, value in (("spacing_mm", self.spacing_mm), ("slice_mm", self.slice_mm)):
            require(value is None or 0 < value <= 100, key, value, "0 to 100 mm")

    @staticmethod
    def parse(text: str) -> "Plane":
        """Read `96x96`, `96x96@2` or `96x96@2x3`: height, width, mm of a pixel, mm from slice to slice, or `own`."""
        mm = r"(own|\d{1,3}(?:\.\d{1,3})?)"
        found = re.fullmatch(rf"(\d{{1,4}})x(\d{{1,4}})(?:@{mm}(?:x{mm})?)?", text)
        if found is None:
            raise ConfigError(f"grid={text[:40]!r}: must be HEIGHTxWIDTH, HEIGHTxWIDTH@MM or HEIGHTxWIDTH@MMxMM")
        height, width, *sizes = found.groups()
        spacing, slices = (None if size in (None, "own") else float(size) for size in sizes)
        return Plane(height=int(height), width=int(width), spacing_mm=spacing, slice_mm=slices)

    def __str__(self) -> str:
        """As `parse` reads it."""
        spacing, slices = ("own" if mm is None else f"{mm:g}" for mm in (self.spacing_mm, self.slice_mm))
        size = "" if spacing == slices == "own" else f"@{spacing}" if slices == "own" else f"@{spacing}x{slices}"
        return f"{self.height}x{self.width}{size}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    federation: str
    version: int  # counts the changes
    before: str  # hash of the version before; empty for the first
    made: str  # when, UTC
    lacuna: str  # the version that the federation runs
    modalities: tuple[str, ...]
    intensities: Intensities
    methods: tuple[str, ...]  # those that a run may use
    min_holders: int  # what fewer sites trained is not released
    quorum: int  # admitted updates without which a round changes nothing
    grid: Plane | None = None  # None: each run says it
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        check_name(self.federation, "federation")
        require(self.schema == SCHEMA, "schema", self.schema, f"{SCHEMA}, which this version reads")
        require(self.version >= 1, "version", self.version, "1 or more")
        require(bool(_HASH.fullmatch(self.before)), "before", self.before[:80], "a hash, or empty")
        require(bool(self.before) == (self.version > 1), "before", self.before, "the hash of the version before")
        for key, words in (("modalities", self.modalities), ("methods", self.methods)):
            require(bool(words), key, words, "one or more")
            require(len(set(words)) == len(words), key, words, "each once")
            require(all(map(_WORD.fullmatch, words)), key, words, f"names that match {_WORD.pattern}")
        ruled = sorted(self.intensities.rules)
        require(
            ruled == sorted(self.modalities), "intensities.rules", ruled, "the rules of the modalities, all of them"
        )
        require(self.min_holders >= 1, "min_holders", self.min_holders, "1 or more")
        require(self.quorum >= self.min_holders, "quorum", self.quorum, f"min_holders={self.min_holders} or more")

    def content(self) -> bytes:
        record = plain(self)
        if self.grid is not None and self.grid.slice_mm is None:
            del record["grid"]["slice_mm"]  # the hash of what was agreed on before there was such a key
        return canonical(record)

    @property
    def digest(self) -> str:
        return sha256(self.content())


def sign(content: bytes, key: Ed25519PrivateKey) -> bytes:
    """Sign these bytes of federation.json; gives what federation.sig holds."""
    return Signature.make(key, _CONTEXT + content).line()


def verify(content: bytes, signature: bytes, trusted: Ed25519PublicKey, where: str) -> Manifest:
    """Read the manifest, if the trusted key signed these bytes; else DataError."""
    found = Signature.parse_line(signature)
    if found is None:
        raise DataError(f"{where}: {SIGNATURE} is damaged")
    if not found.is_by(trusted):
        raise DataError(f"{where}: {SIGNATURE} was made by another key than the trusted one")
    if not found.fits(_CONTEXT + content):
        raise DataError(f"{where}: {SIGNATURE} does not fit {MANIFEST}: one of them was changed")
    return parse(content, where)


def parse(content: bytes, where: str) -> Manifest:
    record = parse_canonical(content, f"{where}: {MANIFEST}")
    try:
        return build(Manifest, record, MANIFEST)
    except ConfigError as error:
        raise DataError(f"{where}: {error}") from None
