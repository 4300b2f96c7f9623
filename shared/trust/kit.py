"""The two files of an admission: a site's request to join, and the kit that the coordinator answers with.

A request is JSON: site, public key, fingerprint, versions, and a signature by that very key, which proves possession.

A kit is text, so that it survives mail, and every byte of it belongs to one part:

    lacuna kit 1
    follows <old key> <new key> <signature by the old one>     the signing key's successions, oldest first
    signed <key> <signature>                                   Ed25519 over all lines but this one
    {"federation": ..., "files": {name: {bytes, sha256}}, ...} the head, one line of canonical JSON
    the files                                                  one after the other, in the head's order

Nothing past the head is read before the head's signature is known to be the coordinator's.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shared.base.errors import ConfigError, DataError
from shared.base.files import MOST, canonical, parse_canonical, sha256
from shared.base.names import Address, check_name, is_ip
from shared.base.options import build, plain, require
from shared.base.vocabulary import SiteName
from shared.trust.keys import fingerprint, parse_site_line, signed_by, signed_by_site, site_line, site_signature, spoken
from shared.trust.signed import Entry, Signature, entry_of

SCHEMA = 1
AUTHORITIES, ADDRESSES, COMPOSE, GPU, SIGNING = "ca.crt", "addresses.json", "compose.yaml", "gpu.yaml", "signing.pub"
SITES = "sites.json"  # the public key of every admitted site: whom a site hides its updates with (decision 0036)
FILES = (
    ADDRESSES,
    AUTHORITIES,
    COMPOSE,
    "federation.json",
    "federation.sig",
    GPU,
    SIGNING,
    SITES,
)  # all of them, in this order
MOST_REQUEST = 2**14
MOST_FOLLOWS = 64
_TEMPLATES = Path(__file__).parents[2] / "deploy"  # site.compose.yaml, site.gpu.yaml
_REQUEST = b"lacuna join request 1\n"  # what is signed begins with what it is: no signature fits another purpose
_KIT = b"lacuna kit 1\n"
_FOLLOWS = b"lacuna signing key 1\n"
_FOLLOWS_LINE = re.compile(rb"follows ([0-9a-f]{64}) ([0-9a-f]{64}) ([0-9a-f]{128})\n")
_VERSION = re.compile(r"[0-9A-Za-z.+-]{1,40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Versions:
    lacuna: str
    flwr: str

    def __post_init__(self) -> None:
        for key, value in (("lacuna", self.lacuna), ("flwr", self.flwr)):
            require(bool(_VERSION.fullmatch(value)), key, value[:80], "a version")


# --- the request ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """All that a site says of itself."""

    site: str
    public_key: str  # one line, as OpenSSH writes it
    fingerprint: str
    versions: Versions
    schema: int = SCHEMA


def write_request(site: str, key: ec.EllipticCurvePrivateKey, versions: Versions) -> bytes:
    public = key.public_key()
    request = Request(
        site=check_name(site, "site"),
        public_key=site_line(public),
        fingerprint=fingerprint(public),
        versions=versions,
    )
    signature = site_signature(key, _REQUEST + canonical(plain(request)))
    return canonical({**plain(request), "signature": signature.hex()})


def read_request(content: bytes, where: str) -> Request:
    """Read a request, if it is whole and whoever wrote it holds the key; else DataError."""
    if len(content) > MOST_REQUEST:
        raise DataError(f"{where}: is over {MOST_REQUEST} bytes: no join request")
    record = parse_canonical(content, where)
    signature = record.pop("signature", None)
    try:
        request = build(Request, record, "request")
        require(request.schema == SCHEMA, "schema", request.schema, f"{SCHEMA}, which this version reads")
        check_name(request.site, "site")
        if not isinstance(signature, str) or not re.fullmatch(r"(?:[0-9a-f]{2}){8,120}", signature):
            raise ConfigError("signature: must be hex digits")
    except ConfigError as error:
        raise DataError(f"{where}: {str(error)[:300]}") from None
    public = parse_site_line(request.public_key, where)
    if not signed_by_site(public, bytes.fromhex(signature), _REQUEST + canonical(record)):
        raise DataError(f"{where}: signature does not fit: it was changed, or its writer does not hold the key")
    if request.fingerprint != fingerprint(public):
        raise DataError(f"{where}: fingerprint is not that of public_key, {spoken(fingerprint(public))}")
    return request


# --- the signing key's successions ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Succession:
    """The old signing key's word that the new one follows it."""

    old: bytes  # raw public keys
    new: bytes
    signature: bytes

    @staticmethod
    def make(old: Ed25519PrivateKey, new: Ed25519PublicKey) -> "Succession":
        before, after = old.public_key().public_bytes_raw(), new.public_bytes_raw()
        return Succession(old=before, new=after, signature=old.sign(_FOLLOWS + before + after))

    def line(self) -> bytes:
        return f"follows {self.old.hex()} {self.new.hex()} {self.signature.hex()}\n".encode("ascii")


def read_successions(lines: Sequence[bytes], where: str) -> list[Succession]:
    """Read a chain, each link signed by the key before and starting where that ended; DataError names the line."""
    chain: list[Succession] = []
    for number, line in enumerate(lines, start=2):
        found = _FOLLOWS_LINE.fullmatch(line)
        if found is None or len(chain) >= MOST_FOLLOWS:
            raise DataError(f"{where}: line {number} (follows) was changed")
        old, new, signature = (bytes.fromhex(part.decode()) for part in found.groups())
        if chain and chain[-1].new != old:
            raise DataError(f"{where}: line {number} (follows) does not continue the line before")
        if not signed_by(Ed25519PublicKey.from_public_bytes(old), signature, _FOLLOWS + old + new):
            raise DataError(f"{where}: line {number} (follows) was changed: the old key did not sign it")
        chain.append(Succession(old=old, new=new, signature=signature))
    return chain


# --- the kit --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    federation: str
    site: str
    public_key: str  # the site's own: a kit fits no other
    fingerprint: str
    revision: int  # of the federation's certificates, signing key, addresses and manifest; an older kit is refused
    manifest: str  # hash of federation.json
    versions: Versions  # of the coordinator
    files: Mapping[str, Entry]
    schema: int = SCHEMA


@dataclass(frozen=True, slots=True, kw_only=True)
class Kit:
    head: Head
    files: Mapping[str, bytes]
    signer: Ed25519PublicKey


def write_kit(
    files: Mapping[str, bytes],
    signing: Ed25519PrivateKey,
    follows: Sequence[Succession],
    *,
    federation: str,
    site: str,
    public_key: str,
    revision: int,
    versions: Versions,
) -> bytes:
    """Write a kit; the same kit and key give the same bytes."""
    if set(files) != set(FILES):
        raise ConfigError(f"kit: its files are {', '.join(FILES)}, all and no others")
    head = Head(
        federation=federation,
        site=site,
        public_key=public_key,
        fingerprint=fingerprint(parse_site_line(public_key, site)),
        revision=revision,
        manifest=sha256(files["federation.json"]),
        versions=versions,
        files={name: entry_of(files[name]) for name in FILES},
    )
    before = _KIT + b"".join(succession.line() for succession in follows)
    line = canonical(plain(head), indent=None)
    signed = Signature.make(signing, before + line).line()
    return before + b"signed " + signed + line + b"".join(files[name] for name in FILES)


def read_kit(content: bytes, where: str, *, trusted: str) -> Kit:
    """Read a kit, if the key of the trusted fingerprint signed it, or one that follows it; else DataError."""
    if len(content) > MOST:
        raise DataError(f"{where}: is over {MOST} bytes: no kit")
    if not content.startswith(_KIT):
        raise DataError(f"{where}: line 1 is not {_KIT.decode().strip()!r}{_mail(content)}")
    lines = content.splitlines(keepends=True)[1 : MOST_FOLLOWS + 3]
    at = next((i for i, line in enumerate(lines) if not line.startswith(b"follows ")), len(lines))
    found = Signature.parse_line(lines[at], "signed ") if at < len(lines) else None
    if found is None:
        raise DataError(f"{where}: line {at + 2} was changed: it must say who signed{_mail(content)}")
    follows = read_successions(lines[:at], where)
    _check_signer(found.key, follows, trusted, where)
    before = _KIT + b"".join(lines[:at])
    rest = content[len(before) + len(lines[at]) :]
    line, newline, body = rest.partition(b"\n")
    if not found.fits(before + line + newline):
        raise DataError(f"{where}: the signature does not fit its head: line {at + 2} or {at + 3} was changed")
    head = _parse_head(line + newline, where)
    return Kit(head=head, files=_cut(head, body, where), signer=found.key)


def site_files(site: str, federation: str, address: Address) -> dict[str, bytes]:
    """What a kit says about running the site. The site makes the same from its own copy of Lacuna, and compares."""
    # The site's container finds its gate by the server's name. Of an IP address nothing is looked up, so there it is by
    # the name that every server's certificate has besides.
    name = "superlink" if is_ip(address.host) else address.host
    values = {"@SITE@": site, "@FEDERATION@": federation, "@ADDRESS@": str(address), "@NAME@": name}
    text = (_TEMPLATES / "site.compose.yaml").read_text("utf-8")
    for mark, value in values.items():
        text = text.replace(mark, value)
    return {
        ADDRESSES: canonical({"superlink": str(address)}),
        COMPOSE: text.encode(),
        GPU: (_TEMPLATES / "site.gpu.yaml").read_bytes(),
    }


def read_address(content: bytes, where: str) -> Address:
    record = parse_canonical(content, f"{where}: {ADDRESSES}")
    try:
        return Address.parse(str(record.get("superlink")), "superlink")
    except ConfigError as error:
        raise DataError(f"{where}: {ADDRESSES}: {error}") from None


def read_sites(content: bytes, where: str) -> dict[SiteName, ec.EllipticCurvePublicKey]:
    lines = parse_canonical(content, where)
    return {check_name(site, "site"): parse_site_line(str(line), f"{where}: {site}") for site, line in lines.items()}


def _check_signer(signer: Ed25519PublicKey, follows: Sequence[Succession], trusted: str, where: str) -> None:
    """Refuse a signer that is neither the trusted key nor the end of a chain that starts there, or passes it."""
    raw = signer.public_bytes_raw()
    if follows and follows[-1].new != raw:
        raise DataError(f"{where}: line {len(follows) + 2} names another signer than the follows lines lead to")
    known = [Ed25519PublicKey.from_public_bytes(succession.old) for succession in follows]
    if trusted not in [fingerprint(key) for key in (*known, signer)]:
        raise DataError(
            f"{where}: line {len(follows) + 2}: signed by the key {spoken(fingerprint(signer))}, which is not, and "
            f"does not follow, the one that you trust, {spoken(trusted)}"
        )


def _parse_head(line: bytes, where: str) -> Head:
    record = parse_canonical(line, f"{where}: its head", indent=None)
    try:
        head = build(Head, record, "head")
        require(head.schema == SCHEMA, "schema", head.schema, f"{SCHEMA}, which this version reads")
        check_name(head.federation, "federation")
        check_name(head.site, "site")
        require(head.revision >= 1, "revision", head.revision, "1 or more")
        require(tuple(head.files) == FILES, "files", list(head.files), f"{', '.join(FILES)}, all and no others")
        require(all(entry.bytes >= 0 for entry in head.files.values()), "files", "bytes", "0 or more")
    except ConfigError as error:
        raise DataError(f"{where}: its head: {str(error)[:300]}") from None
    return head


def _cut(head: Head, body: bytes, where: str) -> dict[str, bytes]:
    files = {}
    for name, entry in head.files.items():
        files[name], body = body[: entry.bytes], body[entry.bytes :]
        if len(files[name]) != entry.bytes:
            raise DataError(f"{where}: {name} is cut short: {len(files[name])} bytes of {entry.bytes}")
        if entry_of(files[name]) != entry:
            raise DataError(f"{where}: {name} was changed: it has not the hash that the signed head gives")
    if body:
        raise DataError(f"{where}: {len(body)} bytes follow its last file, {FILES[-1]}: it was changed")
    if sha256(files["federation.json"]) != head.manifest:
        raise DataError(f"{where}: federation.json is not the manifest that its head names")
    return files


def _mail(content: bytes) -> str:
    return "; its line ends were changed on the way, send it as a file" if b"\r\n" in content[:400] else ""
