"""Shamir's secret sharing of 128 bits: any `least` of the shares give the secret, fewer give nothing.

A polynomial over the integers modulo 2^130 - 5, whose value at 0 is the secret, and at 1, 2, ... the shares. Decision
0036 says why it is not a library's: that works bit by bit, and took minutes for a round of 64 sites.
"""

from collections.abc import Mapping, Sequence

from shared.base.errors import DataError

PRIME = 2**130 - 5
SECRET, SHARE = 16, 17  # bytes


def split(secret: bytes, coefficients: Sequence[int], count: int) -> list[bytes]:
    """Give the shares at 1 to `count`; one more than there are coefficients, each drawn at random, give the secret."""
    polynomial = [*reversed(coefficients), int.from_bytes(secret, "big")]
    shares = []
    for x in range(1, count + 1):
        value = 0
        for coefficient in polynomial:
            value = (value * x + coefficient) % PRIME
        shares.append(value.to_bytes(SHARE, "big"))
    return shares


def weights(places: Sequence[int]) -> list[int]:
    """What each of the shares at these places counts for in their secret: Lagrange's polynomials at 0."""
    found = []
    for one in places:
        over = under = 1
        for other in places:
            if other != one:
                over, under = over * other % PRIME, under * (other - one) % PRIME
        found.append(over * pow(under, -1, PRIME) % PRIME)
    return found


def join(shares: Mapping[int, bytes], own: Sequence[int]) -> bytes:
    """Give the secret of these shares, by place, whose `weights` are `own`; DataError where they have none."""
    total = sum(int.from_bytes(share, "big") * weight for share, weight in zip(shares.values(), own, strict=True))
    try:
        return (total % PRIME).to_bytes(SECRET, "big")
    except OverflowError:
        raise DataError("the shares of a secret do not fit each other") from None
