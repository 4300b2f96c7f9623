"""The sites that hide a round's updates from everybody but their sum, and what each must hand out for it.

    box      a site's key for a run: what the others send it is sealed to it      signed by the site's own key
    circle   who hides which group in a round, and their boxes; equal at all sites, or nothing of it opens
    card     a site's keys for one circle, fresh, one a group                     signed by the site's own key
    shares   of each of these keys, and of the seed of the site's own mask: one of each for every holder of the group

A group is an owner: the parts of an update that holders of one modality send. Each hides by itself, so a site may hold
the one and be missing in the other.
"""

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from shared.base.errors import DataError
from shared.base.files import canonical, sha256
from shared.base.options import plain
from shared.base.vocabulary import Owner, SiteName
from shared.trust.keys import signed_by_site, site_signature
from shared.trust.secure import masks, sharing

EVERYBODY = "*"  # the group of all sites of a round
LEAST = 3  # of two, each can take its own from the sum
_BOX, _CARD = b"lacuna box 1\n", b"lacuna card 1\n"
_NONCE = 12
_HEX = re.compile(r"(?:[0-9a-f]{2}){8,128}")
SEALED = 2 * (_NONCE + 2 * sharing.SHARE + 16)  # hex digits of two shares on their way
_PROBE = b"\1" * masks.KEY  # a key that hides nothing
SELF, KEY = "self", "key"  # what is shared out: the seed of a site's own mask, and that of its key


def threshold(holders: int) -> int:
    """How many shares open a secret: over two thirds, so that no two answers open both secrets of one site.

    Both would take twice as many answers, and each honest holder gives one of the two: that is more than all holders
    and a third of them again, who would have to lie.
    """
    return 2 * holders // 3 + 1


# --- what is signed


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    key: str  # X25519, in hex
    signature: str

    @staticmethod
    def make(secret: bytes, run: str, site: SiteName, own: ec.EllipticCurvePrivateKey) -> "Box":
        key = box_key(secret)
        return Box(key=key, signature=site_signature(own, _box(run, site, key)).hex())

    def text(self) -> str:
        return f"{self.key} {self.signature}"

    @staticmethod
    def parse(text: str) -> "Box":
        key, signature = text.split(" ")
        return Box(key=key, signature=signature)

    def is_of(self, run: str, site: SiteName, known: ec.EllipticCurvePublicKey) -> bool:
        return _is_key(self.key) and _signed(known, self.signature, _box(run, site, self.key))


def box_key(secret: bytes) -> str:
    return _public(_private(secret)).hex()


def _box(run: str, site: SiteName, key: str) -> bytes:
    return _BOX + canonical({"run": run, "site": site, "key": key})


@dataclass(frozen=True, kw_only=True)
class Circle:
    run: str
    phase: str
    round: int
    least: int  # holders whose sum may be seen
    boxes: Mapping[SiteName, Box]
    groups: Mapping[Owner, tuple[SiteName, ...]]  # who hides each, by name

    @functools.cached_property
    def digest(self) -> str:
        return sha256(canonical(plain(self)))

    def __post_init__(self) -> None:
        for owner, holders in self.groups.items():
            if list(holders) != sorted({*holders} & {*self.boxes}):
                raise DataError(f"circle: group {owner[:80]} is of others than its sites, or in disorder")

    def of(self, site: SiteName) -> Iterator[tuple[Owner, tuple[SiteName, ...]]]:
        return ((owner, holders) for owner, holders in sorted(self.groups.items()) if site in holders)

    def enough(self, owner: Owner) -> int:
        """Of how many holders the sum of a group may be seen."""
        return max(threshold(len(self.groups[owner])), self.least, LEAST)


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    keys: Mapping[Owner, str]
    seals: Mapping[Owner, str]  # the hash of the seed of its own mask: of wrong shares somebody can tell
    signature: str

    def is_of(self, circle: Circle, site: SiteName, known: ec.EllipticCurvePublicKey) -> bool:
        groups = {owner for owner, _ in circle.of(site)}
        whole = self.keys.keys() == self.seals.keys() == groups and all(map(_is_key, self.keys.values()))
        return whole and _signed(known, self.signature, _card(circle, site, self.keys, self.seals))


def _card(circle: Circle, site: SiteName, keys: Mapping[Owner, str], seals: Mapping[Owner, str]) -> bytes:
    said = {"circle": circle.digest, "site": site, "keys": dict(keys), "seals": dict(seals)}
    return _CARD + canonical(said)


def seal_of(seed: bytes) -> str:
    return masks.derive(seed, "seal").hex()


def _is_key(text: str) -> bool:
    """In hex, and no point of small order, with which no two keys have a secret: one such would stop all others."""
    if len(text) != 2 * masks.KEY or not set(text) <= set("0123456789abcdef"):
        return False
    try:
        _private(_PROBE).exchange(_parse(text))
    except ValueError:
        return False
    return True


def _signed(known: ec.EllipticCurvePublicKey, signature: str, message: bytes) -> bool:
    return _HEX.fullmatch(signature) is not None and signed_by_site(known, bytes.fromhex(signature), message)


# --- what a site deals


Sealed = Mapping[SiteName, Mapping[Owner, str]]  # to whom, of which group: two shares, in hex, which that one can open


class Dealer:
    """One site in a circle. All that it deals follows from one secret, so the same circle is dealt the same."""

    def __init__(self, circle: Circle, site: SiteName, secret: bytes) -> None:
        self.circle, self.site = circle, site
        self._secrets = {
            (what, owner): masks.derive(secret, what, owner, length=sharing.SECRET)
            for owner, _ in circle.of(site)
            for what in (SELF, KEY)
        }
        self._secret = secret

    def card(self, own: ec.EllipticCurvePrivateKey) -> Card:
        keys = {owner: _public(self._key(owner)).hex() for owner, _ in self.circle.of(self.site)}
        seals = {owner: seal_of(self._secrets[SELF, owner]) for owner in keys}
        signature = site_signature(own, _card(self.circle, self.site, keys, seals))
        return Card(keys=keys, seals=seals, signature=signature.hex())

    def seal(self, box: bytes) -> Sealed:
        """Its shares for every other holder, and its own, each sealed to its box."""
        sealed: dict[SiteName, dict[Owner, str]] = {}
        for owner, holders in self.circle.of(self.site):
            shares = [self._shares(what, owner, len(holders)) for what in (SELF, KEY)]
            for place, to in enumerate(holders):
                content = b"".join(one[place] for one in shares)
                sealed.setdefault(to, {})[owner] = self._lock(box, to, owner).seal(content)
        return sealed

    def streams(self, owner: Owner, cards: Mapping[SiteName, Card], bound: str) -> Iterator[tuple[bytes, int]]:
        """The keys of the masks of one group, each with its sign; `bound`: what they are good for, and nothing else."""
        yield self_stream(self.circle, owner, self._secrets[SELF, owner], self.site, bound), 1
        for other in self.circle.groups[owner]:
            if other != self.site:
                key = bytes.fromhex(cards[other].keys[owner])
                yield pair_stream(self.circle, owner, self._key(owner), key, bound), sign(self.site, other)

    def _key(self, owner: Owner) -> X25519PrivateKey:
        return key_of(self._secrets[KEY, owner])

    def _shares(self, what: str, owner: Owner, count: int) -> list[bytes]:
        key = masks.derive(self._secret, "shares", what, owner)
        drawn = masks.numbers(key, threshold(count) - 1, sharing.PRIME)
        return sharing.split(self._secrets[what, owner], drawn, count)

    def _lock(self, box: bytes, to: SiteName, owner: Owner) -> "_Lock":
        nonce = masks.derive(self._secret, "nonce", to, owner, length=_NONCE)
        return _Lock(self.circle, box, self.site, to, owner, nonce)


class _Lock:
    """Between two boxes, for one group of one circle."""

    def __init__(
        self, circle: Circle, box: bytes, giver: SiteName, taker: SiteName, owner: Owner, nonce: bytes = b""
    ) -> None:
        own = box_key(box)
        other = taker if circle.boxes[giver].key == own else giver
        secret = _private(box).exchange(_parse(circle.boxes[other].key))
        self._cipher = ChaCha20Poly1305(masks.derive(secret, "box", circle.digest, giver, taker, owner))
        self._nonce = nonce

    def seal(self, content: bytes) -> str:
        return (self._nonce + self._cipher.encrypt(self._nonce, content, None)).hex()

    def open(self, sealed: str) -> bytes:
        content = bytes.fromhex(sealed)
        return self._cipher.decrypt(content[:_NONCE], content[_NONCE:], None)


def opened(circle: Circle, box: bytes, giver: SiteName, taker: SiteName, owner: Owner, sealed: str) -> dict[str, bytes]:
    """The two shares that a holder dealt to this one; DataError unless it did so for this very circle."""
    try:
        content = _Lock(circle, box, giver, taker, owner).open(sealed)
    except (InvalidTag, ValueError):
        raise DataError(f"the share of {giver} for {taker} in group {owner[:80]} does not open") from None
    return {SELF: content[: sharing.SHARE], KEY: content[sharing.SHARE :]}


# --- the streams, as a site makes them, and whoever has the secrets again


def self_stream(circle: Circle, owner: Owner, seed: bytes, site: SiteName, bound: str) -> bytes:
    return masks.derive(seed, "own mask", circle.digest, owner, site, bound)


def pair_stream(circle: Circle, owner: Owner, key: X25519PrivateKey, other: bytes, bound: str) -> bytes:
    """The same from either side."""
    both = sorted([_public(key).hex(), other.hex()])
    shared = key.exchange(X25519PublicKey.from_public_bytes(other))
    return masks.derive(shared, "pair mask", circle.digest, owner, *both, bound)


def sign(site: SiteName, other: SiteName) -> int:
    return 1 if site < other else -1


def key_of(seed: bytes) -> X25519PrivateKey:
    return _private(masks.derive(seed, "key"))


def new_secret() -> bytes:
    return X25519PrivateKey.generate().private_bytes_raw()


def _private(secret: bytes) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(secret)


def _public(key: X25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def _parse(key: str) -> X25519PublicKey:
    return X25519PublicKey.from_public_bytes(bytes.fromhex(key))
