"""Kits and requests that were changed, cut, mixed or forged on the way: each refused by name, nothing touched."""

import base64
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from support.flower.federations import NOW, enter, make, signer, site, tree

from client.site import enrol
from server.federation import provision, rotation
from server.federation.federation import SIGNING_KEY, load
from shared.base.errors import DataError, LacunaError
from shared.base.files import MOST, canonical
from shared.trust import kit
from shared.trust.keys import (
    fingerprint,
    new_site_key,
    parse_site_key,
    parse_site_line,
    read_signing_key,
    site_line,
    site_signature,
)
from shared.trust.kit import Succession, Versions

pytestmark = pytest.mark.slow  # left out of `make fast`

VERSIONS = Versions(lacuna="0.1.0", flwr="1.41.0")


@pytest.fixture
def federation(tmp_path: Path) -> Path:
    return make(tmp_path / "federation")


@pytest.fixture
def followed(federation: Path, tmp_path: Path) -> tuple[bytes, str]:
    """A kit after a rotation of the signing key, so that it has every kind of line; and the key trusted before."""
    enter(federation, tmp_path / "north", "north")
    trusted = signer(federation)
    rotation.rotate_signing(federation)
    return (federation / "kits" / "north.kit").read_bytes(), trusted


def parts(content: bytes) -> list[str]:
    """Of each byte, what an error must name when it was changed: the file, or the line of the kit."""
    lines = content.split(b"\n", 4)
    named = [r"line \d|its head"] * (len(content) - len(lines[-1]))
    for name, entry in json.loads(lines[3])["files"].items():
        named += [f"{re.escape(name)} (was changed|is cut short)"] * entry["bytes"]
    assert len(named) == len(content)
    return named


# --- kits that were changed


@pytest.mark.slow
def test_no_byte_of_a_kit_can_be_changed(followed: tuple[bytes, str]) -> None:
    content, trusted = followed
    draw = random.Random(0)
    kit.read_kit(content, "kit north.kit", trusted=trusted)
    for place, part in enumerate(parts(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << draw.randrange(8)
        with pytest.raises(DataError, match=rf"kit north\.kit: (.*)({part})"):
            kit.read_kit(bytes(changed), "kit north.kit", trusted=trusted)


def test_a_changed_kit_leaves_a_site_as_it_was(followed: tuple[bytes, str], tmp_path: Path) -> None:
    content, _ = followed
    before, draw = tree(tmp_path / "north"), random.Random(1)
    for place in draw.sample(range(len(content)), 60):
        changed = bytearray(content)
        changed[place] = (changed[place] + draw.randrange(1, 256)) % 256
        (tmp_path / "changed.kit").write_bytes(changed)
        with pytest.raises(DataError, match=r"changed\.kit: "):
            enrol.join(tmp_path / "north", tmp_path / "changed.kit", now=NOW)
        assert tree(tmp_path / "north") == before
    (tmp_path / "changed.kit").write_bytes(content)
    enrol.join(tmp_path / "north", tmp_path / "changed.kit", now=NOW)


def test_a_kit_that_is_cut_or_goes_on_is_refused(followed: tuple[bytes, str]) -> None:
    content, trusted = followed
    for end in [*range(0, len(content), 29), len(content) - 1]:
        with pytest.raises(DataError, match=r"kit north\.kit: "):
            kit.read_kit(content[:end], "kit north.kit", trusted=trusted)
    for more in (b"\n", b"\0", b" ", content):
        with pytest.raises(DataError, match="bytes follow its last file"):
            kit.read_kit(content + more, "kit north.kit", trusted=trusted)
    with pytest.raises(DataError, match="over 1048576 bytes"):
        kit.read_kit(content + b"\0" * MOST, "kit north.kit", trusted=trusted)


def test_line_ends_changed_by_mail_are_explained(followed: tuple[bytes, str]) -> None:
    content, trusted = followed
    with pytest.raises(DataError, match="line ends were changed on the way, send it as a file"):
        kit.read_kit(content.replace(b"\n", b"\r\n"), "kit", trusted=trusted)


def test_parts_of_two_good_kits_do_not_make_a_third(federation: Path, tmp_path: Path) -> None:
    for name in ("north", "south"):
        enter(federation, tmp_path / name, name)
    before = (federation / "kits" / "north.kit").read_bytes()
    rotation.rotate_ca(federation, now=NOW)
    after = (federation / "kits" / "north.kit").read_bytes()
    south = (federation / "kits" / "south.kit").read_bytes()
    for one, two in ((before, after), (after, before), (after, south)):
        lines, others = one.split(b"\n", 3), two.split(b"\n", 3)
        for take in range(1, 15):  # each part from one or the other
            mixed = b"\n".join(others[i] if take >> i & 1 else lines[i] for i in range(4))
            if mixed not in (one, two):
                with pytest.raises(DataError):
                    kit.read_kit(mixed, "kit", trusted=signer(federation))


# --- kits that were forged


def remade(content: bytes, key: Ed25519PrivateKey, follows: tuple[Succession, ...] = ()) -> bytes:
    """The same kit, signed by another key."""
    lines = content.split(b"\n", 3)
    line = lines[2] + b"\n"
    before = b"lacuna kit 1\n" + b"".join(succession.line() for succession in follows)
    public = key.public_key().public_bytes_raw().hex()
    return before + f"signed {public} {key.sign(before + line).hex()}\n".encode() + line + lines[3]


def test_a_strangers_signature_is_refused_however_it_is_introduced(federation: Path, tmp_path: Path) -> None:
    enter(federation, tmp_path / "north", "north")
    content, trusted = (federation / "kits" / "north.kit").read_bytes(), signer(federation)
    honest = read_signing_key(federation / SIGNING_KEY).public_key()
    stranger, second = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    own = Succession.make(stranger, second.public_key())
    claimed = Succession(  # "the honest key says so", without its signature
        old=honest.public_bytes_raw(), new=stranger.public_key().public_bytes_raw(), signature=own.signature
    )
    backwards = Succession.make(stranger, honest)  # the stranger introduces the honest key, which proves nothing
    other = Succession.make(stranger, stranger.public_key())
    for forged, says in (
        (remade(content, stranger), "is not, and does not follow, the one that you trust"),
        (remade(content, second, (own,)), "is not, and does not follow"),
        (remade(content, stranger, (claimed,)), r"line 2 \(follows\) was changed: the old key did not sign it"),
        (remade(content, stranger, (backwards,)), "line 3 names another signer"),
        (remade(content, second, (backwards, own)), r"line 3 \(follows\) does not continue"),
        (remade(content, stranger, (other,) * 70), "line 68 was changed"),
    ):
        with pytest.raises(DataError, match=says):
            kit.read_kit(forged, "kit", trusted=trusted)


def test_the_old_signing_key_is_worth_nothing_to_a_thief_once_a_site_has_followed(
    federation: Path, tmp_path: Path
) -> None:
    enter(federation, tmp_path / "north", "north")
    stolen = read_signing_key(federation / SIGNING_KEY)
    rotation.rotate_signing(federation)
    enrol.join(tmp_path / "north", federation / "kits" / "north.kit", now=NOW)
    thief = Ed25519PrivateKey.generate()
    content = (federation / "kits" / "north.kit").read_bytes()
    head = content.split(b"\n", 3)
    plain = b"\n".join((head[0], head[2], *content.split(b"\n", 4)[3:]))
    for forged in (remade(plain, stolen), remade(plain, thief, (Succession.make(stolen, thief.public_key()),))):
        (tmp_path / "forged.kit").write_bytes(forged)
        with pytest.raises(DataError, match=r"is not, and does not follow|was changed"):
            enrol.join(tmp_path / "north", tmp_path / "forged.kit", now=NOW)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda head: head | {"schema": 2}, "schema=2"),
        (lambda head: head | {"site": "../../etc"}, "must match"),
        (lambda head: head | {"revision": 0}, "revision=0"),
        (lambda head: head | {"extra": 1}, "unknown key"),
        (lambda head: {k: v for k, v in head.items() if k != "site"}, "missing"),
        (lambda head: head | {"files": {}}, "files="),
        (lambda head: head | {"files": head["files"] | {"../../evil": head["files"]["ca.crt"]}}, "files="),
        (lambda head: head | {"files": head["files"] | {"ca.crt": {"bytes": -1, "sha256": ""}}}, "files="),
        (lambda head: head | {"manifest": "0" * 64}, "is not the manifest that its head names"),
        (lambda head: head | {"site": ["north"]}, "must be str"),
    ],
)
def test_a_signed_head_is_still_checked(
    federation: Path, tmp_path: Path, change: Callable[[dict[str, object]], dict[str, object]], says: str
) -> None:
    enter(federation, tmp_path / "north", "north")
    content = (federation / "kits" / "north.kit").read_bytes()
    lines = content.split(b"\n", 3)
    lines[2] = canonical(change(json.loads(lines[2])), indent=None).rstrip(b"\n")
    forged = remade(b"\n".join(lines), read_signing_key(federation / SIGNING_KEY))
    with pytest.raises(DataError, match=says):
        kit.read_kit(forged, "kit", trusted=signer(federation))


# --- requests


@pytest.fixture
def request_(tmp_path: Path) -> bytes:
    return site(tmp_path / "west", "west").read_bytes()


def test_no_byte_of_a_request_can_be_changed(request_: bytes) -> None:
    draw = random.Random(2)
    assert kit.read_request(request_, "r").site == "west"
    for place in range(len(request_)):
        changed = bytearray(request_)
        changed[place] ^= 1 << draw.randrange(8)
        with pytest.raises(DataError, match=r"request west: "):
            kit.read_request(bytes(changed), "request west")
    for end in range(len(request_)):
        with pytest.raises(DataError, match=r"request west: "):
            kit.read_request(request_[:end], "request west")


def signed(record: dict[str, object], key: ec.EllipticCurvePrivateKey) -> bytes:
    return canonical({**record, "signature": site_signature(key, b"lacuna join request 1\n" + canonical(record)).hex()})


def own(key: ec.EllipticCurvePrivateKey, **changes: object) -> dict[str, object]:
    public = key.public_key()
    return {
        "schema": 1,
        "site": "west",
        "public_key": site_line(public),
        "fingerprint": fingerprint(public),
        "versions": {"lacuna": "0.1.0", "flwr": "1.41.0"},
        **changes,
    }


def line_of(key: object) -> str:
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()  # type: ignore[attr-defined]


def altered(key: ec.EllipticCurvePrivateKey, place: int, to: int | None = None) -> str:
    kind, text = site_line(key.public_key()).split()
    blob = bytearray(base64.b64decode(text))
    blob[place] = blob[place] ^ 1 if to is None else to
    return f"{kind} {base64.b64encode(blob).decode()}"


def test_forged_requests_are_refused(federation: Path, tmp_path: Path) -> None:
    mine, victim = (parse_site_key(new_site_key(), "key") for _ in range(2))
    small = ec.generate_private_key(ec.SECP256R1())
    big = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    theirs = {"public_key": site_line(victim.public_key()), "fingerprint": fingerprint(victim.public_key())}
    before = tree(federation)
    for content, says in (
        (signed(own(mine, **theirs), mine), "its writer does not hold the key"),  # another's key, to be let in as them
        (signed(own(mine, fingerprint=theirs["fingerprint"]), mine), "fingerprint is not that of public_key"),
        (signed(own(mine, site="../north"), mine), "must match"),
        (signed(own(mine, site="ca"), mine), "reserved"),
        (signed(own(mine, site="a\nb"), mine), "must match"),
        (signed(own(mine, schema=2), mine), "schema=2"),
        (signed(own(mine, subjects=120), mine), "unknown key"),
        (signed(own(mine, versions={"lacuna": "x" * 99, "flwr": "1"}), mine), "a version"),
        (signed(own(mine, public_key=site_line(mine.public_key()) + " root@ward-7"), mine), "without a comment"),
        (signed(own(mine, public_key=line_of(small.public_key())), mine), "must be a P-384 key"),
        (signed(own(mine, public_key=line_of(big.public_key())), mine), "must be a P-384 key"),
        (signed(own(mine, public_key="ssh-rsa AAAA"), mine), "must be a P-384 key"),
        (signed(own(mine, public_key="ß"), mine), "must be a P-384 key"),
        (signed(own(mine, public_key=altered(mine, -97, to=2)), mine), "not a P-384 key"),  # a compressed point
        (signed(own(mine, public_key=altered(mine, -1)), mine), "not a P-384 key|does not fit"),  # not on the curve
        (signed(own(mine, public_key=altered(mine, 30)), mine), "not a P-384 key"),  # another curve's name
        (canonical(own(mine)), "signature: must be hex digits"),
        (canonical({**own(mine), "signature": "00" * 40}), "signature does not fit"),
        (canonical({**own(mine), "signature": ["00"]}), "signature: must be hex digits"),
        (json.dumps(own(mine)).encode(), "is not written as Lacuna writes it"),
        (b"[]\n", "is not written as Lacuna writes it"),
        (b"[" * 10000, "can't be read"),
        (b'{"schema": NaN}\n', "can't be read"),
        (b"\xff\xfe\n", "can't be read"),
        (b"", "can't be read"),
        (b" " * 20000, "over 16384 bytes"),
    ):
        (tmp_path / "forged.json").write_bytes(content)
        with pytest.raises(DataError, match=says):
            provision.admit(federation, tmp_path / "forged.json", now=NOW)
    assert tree(federation) == before


def test_a_signature_made_for_one_purpose_fits_no_other(federation: Path, tmp_path: Path) -> None:
    """Whatever else a site or the coordinator signs with these keys is no request and no kit."""
    key = parse_site_key(new_site_key(), "key")
    record = own(key)
    bare = canonical({**record, "signature": site_signature(key, canonical(record)).hex()})
    with pytest.raises(DataError, match="signature does not fit"):
        kit.read_request(bare, "request")
    enter(federation, tmp_path / "north", "north")
    content = (federation / "kits" / "north.kit").read_bytes()
    lines = content.split(b"\n", 3)
    signing = read_signing_key(federation / SIGNING_KEY)
    for message in (lines[2] + b"\n", b"lacuna federation 1\n" + lines[2] + b"\n", b"lacuna bundle 1\n" + lines[2]):
        public = signing.public_key().public_bytes_raw().hex()
        lines[1] = f"signed {public} {signing.sign(message).hex()}".encode()
        with pytest.raises(DataError, match="does not fit its head"):
            kit.read_kit(b"\n".join(lines), "kit", trusted=signer(federation))


def test_a_request_of_a_revoked_site_replayed_is_refused(federation: Path, tmp_path: Path) -> None:
    request = site(tmp_path / "north", "north")
    provision.admit(federation, request, now=NOW)
    provision.revoke(federation, "north", why="left", now=NOW)
    with pytest.raises(LacunaError, match="was revoked"):
        provision.admit(federation, request, now=NOW)
    assert load(federation).sites["north"].status == "revoked"


def test_what_is_no_file_is_not_read(federation: Path, tmp_path: Path) -> None:
    enter(federation, tmp_path / "north", "north")
    for path in (Path("/dev/zero"), tmp_path, tmp_path / "none"):
        with pytest.raises(DataError, match="is missing or no file"):
            enrol.join(tmp_path / "north", path, now=NOW)
    assert parse_site_line(load(federation).sites["north"].public_key, "here")
