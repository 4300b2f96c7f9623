"""What is said when somebody leaves: a site's note of the runs that a person was in, and the list of recalled bundles.

    STATE/withdrawn/NNNN.note   signed by the site's key: since when each run has what was taken back. It names nobody
    recalled.json               a line with the signature of the federation's key, then which weights are not to be used

The list lies beside the key that it is checked by: where a site keeps the key that it trusts, it keeps the list.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shared.base.errors import ConfigError, DataError
from shared.base.files import canonical, parse_canonical, read_bounded
from shared.base.names import check_run, check_site
from shared.base.options import build, plain, require
from shared.base.vocabulary import SiteName
from shared.trust.keys import key_id, signed_by_site, site_signature
from shared.trust.signed import Signature

SCHEMA = 1
RECALLED = "recalled.json"
MOST_WHY = 500  # characters
_NOTE, _LIST = b"lacuna withdrawal 1\n", b"lacuna recalled bundles 1\n"
_HASH = re.compile(r"[0-9a-f]{64}")
_PHASE = re.compile(r"[A-Za-z0-9_-]{1,64}")


# --- a site's note --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Since:
    """The first round of a run for which something was sent that a person was in."""

    phase: str
    round: int

    def __post_init__(self) -> None:
        require(bool(_PHASE.fullmatch(self.phase)), "phase", self.phase[:80], f"a name that matches {_PHASE.pattern}")
        require(0 <= self.round < 2**31, "round", self.round, "0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    site: SiteName
    at: int  # seconds since 1970
    runs: Mapping[str, Since]
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        check_site(self.site, "site")
        require(self.schema == SCHEMA, "schema", self.schema, f"{SCHEMA}, which this version reads")
        for run in self.runs:
            check_run(run, "runs")


def write_note(note: Note, key: ec.EllipticCurvePrivateKey) -> bytes:
    record = plain(note)
    return canonical({**record, "signature": site_signature(key, _NOTE + canonical(record)).hex()})


def read_note(content: bytes, where: str, keys: Mapping[SiteName, ec.EllipticCurvePublicKey]) -> Note:
    """Read a note, if the site whose name it bears signed it; else DataError."""
    record = parse_canonical(content, where)
    signature = record.pop("signature", None)
    try:
        note = build(Note, record, "note")
    except ConfigError as error:
        raise DataError(f"{where}: {str(error)[:300]}") from None
    if note.site not in keys:
        raise DataError(f"{where}: is of site {note.site}, which was never admitted")
    if not isinstance(signature, str) or not re.fullmatch(r"(?:[0-9a-f]{2}){8,120}", signature):
        raise DataError(f"{where}: signature: must be hex digits")
    if not signed_by_site(keys[note.site], bytes.fromhex(signature), _NOTE + canonical(record)):
        raise DataError(f"{where}: the key of {note.site} did not sign it: it was changed, or is another's")
    return note


# --- bundles that are not to be used --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall:
    why: str
    at: str  # when, UTC

    def __post_init__(self) -> None:
        said = bool(self.why.strip()) and self.why.isprintable() and len(self.why) <= MOST_WHY
        require(said, "why", self.why[:80], f"a line of at most {MOST_WHY} characters, for whoever is refused")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalled:
    federation: str
    weights: Mapping[str, Recall] = field(default_factory=dict)  # by the sha256 of model.safetensors
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        require(self.schema == SCHEMA, "schema", self.schema, f"{SCHEMA}, which this version reads")
        for digest in self.weights:
            require(bool(_HASH.fullmatch(digest)), "weights", digest[:80], "the 64 hex digits of a hash")


def write_recalled(found: Recalled, signing: Ed25519PrivateKey) -> bytes:
    content = canonical(plain(found))
    return Signature.make(signing, _LIST + content).line() + content


def read_recalled(content: bytes, where: str, trusted: Ed25519PublicKey) -> Recalled:
    line, _, rest = content.partition(b"\n")
    signature = Signature.parse_line(line + b"\n")
    if signature is None:
        raise DataError(f"{where}: its first line is no signature: it was damaged or changed")
    if not signature.is_by(trusted):
        raise DataError(f"{where}: signed by key {key_id(signature.key)}, not by the trusted key {key_id(trusted)}")
    if not signature.fits(_LIST + rest):
        raise DataError(f"{where}: the signature does not fit: it was changed")
    try:
        return build(Recalled, parse_canonical(rest, where), "recalled")
    except ConfigError as error:
        raise DataError(f"{where}: {str(error)[:300]}") from None


def check_not_recalled(weights: str, key: Path, trusted: Ed25519PublicKey, where: str) -> None:
    """DataError for weights on the list that lies beside this key's file; no list, no recall."""
    path = key.parent / RECALLED
    if not path.exists():
        return
    recall = read_recalled(read_bounded(path, RECALLED), str(path), trusted).weights.get(weights)
    if recall is not None:
        raise DataError(f"{where}: was recalled at {recall.at}: {recall.why}; use a newer one")
