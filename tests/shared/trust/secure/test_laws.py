"""What the mathematics promises: shares that open at their number and say nothing below, masks that cancel and hide."""

import dataclasses
import hashlib
import itertools
import math

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from shared.base.errors import DataError
from shared.trust.keys import new_site_key, parse_site_key
from shared.trust.secure import masks, sharing
from shared.trust.secure.circle import (
    EVERYBODY,
    KEY,
    SELF,
    Box,
    Circle,
    Dealer,
    key_of,
    opened,
    pair_stream,
    self_stream,
    sign,
    threshold,
)

SITES = ("a", "b", "c", "d")
GROUPS = {EVERYBODY: SITES, "to:T2": ("a", "b", "c")}


def secret(*words: object) -> bytes:
    return hashlib.sha256(repr(words).encode()).digest()


@pytest.fixture(scope="module")
def keys() -> dict[str, ec.EllipticCurvePrivateKey]:
    return {site: parse_site_key(new_site_key(), site) for site in SITES}


@pytest.fixture(scope="module")
def circle(keys: dict[str, ec.EllipticCurvePrivateKey]) -> Circle:
    boxes = {site: Box.make(secret("box", site), "run", site, keys[site]) for site in SITES}
    return Circle(run="run", phase="fit", round=3, least=3, boxes=boxes, groups=GROUPS)


# --- shares


@pytest.mark.parametrize(("least", "count"), [(1, 1), (2, 3), (3, 4), (11, 16)])
def test_any_so_many_shares_give_the_secret(least: int, count: int) -> None:
    hidden = secret("hidden")[: sharing.SECRET]
    shares = sharing.split(hidden, masks.numbers(secret("line"), least - 1, sharing.PRIME), count)
    for places in itertools.islice(itertools.combinations(range(1, count + 1), least), 300):
        found = {place: shares[place - 1] for place in places}
        assert sharing.join(found, sharing.weights(places)) == hidden


def test_one_share_fewer_fits_every_secret_alike() -> None:
    """With two of three shares each secret there is has exactly one third share that gives it."""
    shares = sharing.split(b"\0" * sharing.SECRET, masks.numbers(secret("line"), 2, sharing.PRIME), 4)
    places, known = (1, 2, 3), [int.from_bytes(share, "big") for share in shares[:2]]
    own = sharing.weights(places)
    for other in (bytes(sharing.SECRET), secret("other")[: sharing.SECRET], b"\xff" * sharing.SECRET):
        rest = int.from_bytes(other, "big") - known[0] * own[0] - known[1] * own[1]
        third = rest * pow(own[2], -1, sharing.PRIME) % sharing.PRIME
        found = {1: shares[0], 2: shares[1], 3: third.to_bytes(sharing.SHARE, "big")}
        assert sharing.join(found, own) == other


def test_shares_of_nothing_are_said_to_be_so() -> None:
    with pytest.raises(DataError, match="do not fit"):
        sharing.join({1: (sharing.PRIME - 1).to_bytes(sharing.SHARE, "big")}, [1])


def test_no_third_of_liars_has_both_secrets_opened() -> None:
    """Each honest holder gives one kind of share, a liar both: `threshold` of each kind is more than there are."""
    for holders in range(1, 300):
        liars = holders // 3
        assert 2 * threshold(holders) > (holders - liars) + 2 * liars
        assert threshold(holders) <= holders


# --- what is dealt


def test_what_one_deals_each_holder_opens_and_nobody_else(circle: Circle) -> None:
    dealer = Dealer(circle, "a", secret("a"))
    sealed = dealer.seal(secret("box", "a"))
    assert {to: set(its) for to, its in sealed.items()} == {
        site: {owner for owner, _ in circle.of(site)} for site in SITES
    }
    share = opened(circle, secret("box", "b"), "a", "b", "to:T2", sealed["b"]["to:T2"])
    assert {len(share[SELF]), len(share[KEY])} == {sharing.SHARE}
    for box, giver, taker, owner in (("c", "a", "c", "to:T2"), ("b", "c", "b", "to:T2"), ("b", "a", "b", EVERYBODY)):
        with pytest.raises(DataError, match="does not open"):
            opened(circle, secret("box", box), giver, taker, owner, sealed["b"]["to:T2"])


def test_shares_open_in_their_own_circle_alone(circle: Circle) -> None:
    sealed = Dealer(circle, "a", secret("a")).seal(secret("box", "a"))["b"][EVERYBODY]
    for other in (
        Circle(**{**vars_of(circle), "round": 4}),
        Circle(**{**vars_of(circle), "least": 4}),
        Circle(**{**vars_of(circle), "groups": {**GROUPS, "to:T2": SITES}}),
    ):
        with pytest.raises(DataError, match="does not open"):
            opened(other, secret("box", "b"), "a", "b", EVERYBODY, sealed)


def vars_of(circle: Circle) -> dict[str, object]:
    return {key: getattr(circle, key) for key in Circle.__dataclass_fields__}


def test_a_card_is_of_one_site_and_one_circle(circle: Circle, keys: dict[str, ec.EllipticCurvePrivateKey]) -> None:
    card = Dealer(circle, "a", secret("a")).card(keys["a"])
    public = {site: key.public_key() for site, key in keys.items()}
    assert card.is_of(circle, "a", public["a"])
    assert not card.is_of(circle, "a", public["b"])
    assert not card.is_of(circle, "b", public["a"])
    assert not card.is_of(Circle(**{**vars_of(circle), "round": 4}), "a", public["a"])
    swapped = dataclasses.replace(card, keys={**card.keys, "to:T2": "00" * 32})
    assert not swapped.is_of(circle, "a", public["a"])
    assert not dataclasses.replace(card, keys={EVERYBODY: card.keys[EVERYBODY]}).is_of(circle, "a", public["a"])
    assert not dataclasses.replace(card, seals=dict.fromkeys(card.seals, "00" * 32)).is_of(circle, "a", public["a"])
    box = circle.boxes["a"]
    assert box.is_of("run", "a", public["a"])
    assert not box.is_of("other", "a", public["a"])
    assert not Box(key="00" * 32, signature=box.signature).is_of("run", "a", public["a"])


# --- masks


@pytest.mark.parametrize("words", [np.uint32, np.uint64])
@pytest.mark.parametrize("gone", [(), ("d",), ("a",), ("b",)])
def test_masks_cancel_in_the_sum_but_for_what_secrets_give_back(
    words: type[np.uint64], gone: tuple[str, ...], circle: Circle, keys: dict[str, ec.EllipticCurvePrivateKey]
) -> None:
    dealers = {site: Dealer(circle, site, secret(site)) for site in SITES}
    cards = {site: dealer.card(keys[site]) for site, dealer in dealers.items()}
    there = [site for site in SITES if site not in gone]
    numbers = {site: np.frombuffer(secret(site, "update") * 9, dtype=words) for site in SITES}
    total = np.zeros_like(numbers["a"])
    for site in there:
        hidden = numbers[site].copy()
        for key, its in dealers[site].streams(EVERYBODY, cards, "bound"):
            masks.add(hidden, key, 5, sign=its)
        total += hidden
    for site in there:
        seed = masks.derive(secret(site), SELF, EVERYBODY, length=sharing.SECRET)
        masks.add(total, self_stream(circle, EVERYBODY, seed, site, "bound"), 5, sign=-1)
    for site in gone:
        key = key_of(masks.derive(secret(site), KEY, EVERYBODY, length=sharing.SECRET))
        for other in there:
            theirs = bytes.fromhex(cards[other].keys[EVERYBODY])
            masks.add(total, pair_stream(circle, EVERYBODY, key, theirs, "bound"), 5, sign=-sign(other, site))
    assert (total == sum(numbers[site] for site in there)).all()


def test_masks_for_one_thing_are_of_no_use_for_another(circle: Circle) -> None:
    """Weights, group, site and tensor: change any, and it is another stream."""
    seed, found = secret("seed"), set()
    for owner, site, bound, number in (
        ("*", "a", "x", 0),
        ("to:T2", "a", "x", 0),
        ("*", "b", "x", 0),
        ("*", "a", "y", 0),
        ("*", "a", "x", 1),
    ):
        words = np.zeros(8, dtype=np.uint64)
        masks.add(words, self_stream(circle, owner, seed, site, bound), number, sign=1)
        found.add(words.tobytes())
    assert len(found) == 5


def test_what_is_hidden_looks_like_nothing(circle: Circle, keys: dict[str, ec.EllipticCurvePrivateKey]) -> None:
    """An update of small numbers, hidden: every bit is even, and it is like its update no more than chance is."""
    count = 2**18
    dealer = Dealer(circle, "a", secret("a"))
    cards = {site: Dealer(circle, site, secret(site)).card(keys[site]) for site in SITES}
    update = np.random.default_rng(0).normal(0, 2.0**40, count).astype(np.int64)
    hidden = update.view(np.uint64).copy()
    for key, its in dealer.streams(EVERYBODY, cards, "bound"):
        masks.add(hidden, key, 0, sign=its)
    bits = np.unpackbits(hidden.view(np.uint8)).reshape(count, 64)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 5 * 0.5 / math.sqrt(count)
    alike = np.corrcoef(hidden.astype(np.float64), update.astype(np.float64))[0, 1]
    assert abs(alike) < 4 / math.sqrt(count)
    low = np.corrcoef((hidden & 0xFFFF).astype(np.float64), (update & 0xFFFF).astype(np.float64))[0, 1]
    assert abs(low) < 4 / math.sqrt(count)
