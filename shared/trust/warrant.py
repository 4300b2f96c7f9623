"""Who may ask a site for work, and whose answer it is. Three signatures, and nothing is read before its own fits.

    warrant    the federation's signing key, which the kit brought, lets one key lead one run with one set of settings
    question   that key under one message to one site: all that it says, and of the weights their hash
    answer     the site's own key under one reply: its hash, and the hash of the question that it answers

So the federation's key stays where the coordinator's verbs run, and whoever has the run's can ask for no other run.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shared.base.errors import ConfigError, DataError, PlanRefused
from shared.base.files import canonical, parse_canonical, sha256
from shared.base.names import check_run, check_site
from shared.base.options import build, plain, require
from shared.base.vocabulary import SiteName
from shared.trust.certificates import utc_of
from shared.trust.keys import fingerprint, signed_by, signed_by_site, site_signature, spoken
from shared.trust.signed import Signature

SCHEMA = 1
TRUSTED, OWN_KEY = "federation/signing.pub", "enrolment/site.key"  # in a site's STATE
SITES = "federation/sites.json"  # there too: the public key of every admitted site, on one line each
SKEW = 600.0  # seconds by which a site's clock may be ahead of the coordinator's
MOST = 2**21  # bytes of a question: read before anything is known of it
_WARRANT, _QUESTION, _ANSWER = b"lacuna warrant 1\n", b"lacuna question 1\n", b"lacuna answer 1\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Warrant:
    federation: str
    run: str
    settings: str  # sha256 of what the sites are told of it
    key: str  # that leads it: a raw Ed25519 public key, in hex
    until: int  # seconds since 1970
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        check_run(self.run, "run")
        require(self.schema == SCHEMA, "schema", self.schema, f"{SCHEMA}, which this version reads")
        for key, value in (("settings", self.settings), ("key", self.key)):
            require(len(value) == 64 and set(value) <= set("0123456789abcdef"), key, value[:80], "64 hex digits")

    def content(self) -> bytes:
        return canonical(plain(self), indent=None)


def issue(warrant: Warrant, signing: Ed25519PrivateKey) -> bytes:
    """A line with the signature, then the warrant."""
    content = warrant.content()
    return Signature.make(signing, _WARRANT + content).line() + content


@dataclass(frozen=True, slots=True, kw_only=True)
class Leader:
    """What a run asks with."""

    warrant: bytes  # as `issue` gives it
    key: Ed25519PrivateKey


@dataclass(frozen=True, slots=True)
class Question:
    """One signed message to a site, beside which only the weights travel."""

    warrant: bytes
    text: bytes
    signature: bytes

    @staticmethod
    def make(leader: Leader, record: Mapping[str, Any]) -> "Question":
        """No two are equal, so an answer fits one question alone."""
        text = canonical({**record, "nonce": secrets.token_hex(16)}, indent=None)
        return Question(leader.warrant, text, leader.key.sign(_QUESTION + text))

    @property
    def digest(self) -> str:
        return sha256(self.text)

    def read(self, reader: "Reader") -> dict[str, Any]:
        """What it says, if the federation lets its writer ask it, of this site, and now; else PlanRefused."""
        if len(self.text) > MOST or len(self.warrant) > MOST:
            raise reader.refused(f"is over {MOST} bytes")
        warrant = _read_warrant(self.warrant, reader)
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(warrant.key))
        if not signed_by(key, self.signature, _QUESTION + self.text):
            raise reader.refused("was changed, or is not of the key that the federation lets lead the run")
        try:
            record = parse_canonical(self.text, "its text", indent=None)
            run, config, until, to = (record[key] for key in ("run", "config", "until", "to"))
            if not (isinstance(run, str) and isinstance(config, str) and isinstance(until, int | float)):
                raise KeyError("run, config, until")
        except (DataError, KeyError) as error:
            raise reader.refused(f"can't be read: {error}") from None
        if run != warrant.run or sha256(config.encode()) != warrant.settings:
            raise reader.refused(f"is of another run, or has other settings, than run {warrant.run} was signed with")
        if to not in (reader.site, None):
            raise reader.refused(f"is for site {str(to)[:64]!r}")
        if reader.now > until + SKEW:
            raise reader.refused(f"held until {utc_of(until)}, and the clock here says {utc_of(reader.now)}")
        return record


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """Who reads a question: a site, and whom it believes."""

    site: SiteName
    trusted: Ed25519PublicKey
    now: float

    def refused(self, why: str) -> PlanRefused:
        return PlanRefused(f"{self.site}: the message {why}")


def _read_warrant(content: bytes, reader: Reader) -> Warrant:
    line, _, rest = content.partition(b"\n")
    signature = Signature.parse_line(line + b"\n")
    if signature is None:
        raise reader.refused("bears no warrant of the federation")
    if not signature.is_by(reader.trusted):
        raise reader.refused(
            f"has its warrant from the key {spoken(fingerprint(signature.key))}, not from the one that the installed "
            f"kit brought, {spoken(fingerprint(reader.trusted))}; a new signing key comes with a new kit"
        )
    if not signature.fits(_WARRANT + rest):
        raise reader.refused("has a warrant that was changed")
    try:
        warrant = build(Warrant, parse_canonical(rest, "warrant", indent=None), "warrant")
    except (ConfigError, DataError) as error:
        raise reader.refused(f"has a warrant that can't be read: {str(error)[:200]}") from None
    if reader.now > warrant.until + SKEW:
        raise reader.refused(
            f"has a warrant that held until {utc_of(warrant.until)}, and the clock here says {utc_of(reader.now)}; "
            f"`lacuna resume {warrant.run}` makes another"
        )
    return warrant


# --- answers --------------------------------------------------------------------------------------------------------


def sign_answer(key: ec.EllipticCurvePrivateKey, site: SiteName, question: str, sha256: str) -> bytes:
    """`question` is its digest, `sha256` the reply's."""
    return site_signature(key, _answer(site, question, sha256))


def is_answer(key: ec.EllipticCurvePublicKey, signature: bytes, site: SiteName, question: str, sha256: str) -> bool:
    return signed_by_site(key, signature, _answer(site, question, sha256))


def _answer(site: SiteName, question: str, sha256: str) -> bytes:
    return _ANSWER + canonical({"site": check_site(site, "site"), "question": question, "sha256": sha256})
