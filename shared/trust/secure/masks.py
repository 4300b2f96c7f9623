"""The numbers that hide an update: streams of ChaCha20, added to integers modulo 2^32 or 2^64.

A site adds one of its own, whose seed it has shared out, and one with each other holder of the group, which that one
takes away; so they cancel in the sum. Each number of a group is hidden, and none twice by the same.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from shared.base.files import canonical

Words: TypeAlias = NDArray[np.uint32] | NDArray[np.uint64]
KEY = 32
BLOCK = 2**18  # bytes of a stream at a time: they stay in the processor's cache
_NOTHING = bytes(BLOCK)


def derive(secret: bytes, *what: object, length: int = KEY) -> bytes:
    """Derive a key of its own for each purpose: no two purposes have the same words."""
    return HKDF(SHA256(), length, salt=b"lacuna secure 1", info=canonical({"for": what}, indent=None)).derive(secret)


def add(to: Words, key: bytes, number: int, *, sign: int) -> None:
    """Add the stream of a key to the group's tensor of this number, or take it away; it wraps around."""
    stream = _stream(key, number)
    piece = bytearray(min(BLOCK, to.nbytes))
    most = len(piece) // to.itemsize if len(piece) else 0
    for at in range(0, to.size, max(most, 1)):
        part = to[at : at + most]
        length = part.nbytes
        stream(memoryview(_NOTHING)[:length], piece)
        words = np.frombuffer(piece, dtype=to.dtype, count=part.size)
        (np.add if sign > 0 else np.subtract)(part, words, out=part)


def numbers(key: bytes, count: int, below: int) -> list[int]:
    """Draw so many whole numbers below a bound of under 192 bits: as good as even, since 64 bits more are drawn."""
    stream, piece = _stream(key, 0), bytearray(32 * count)
    stream(memoryview(bytes(len(piece))), piece)
    return [int.from_bytes(piece[at : at + 32], "little") % below for at in range(0, len(piece), 32)]


def _stream(key: bytes, number: int) -> Callable[[memoryview, bytearray], int]:
    nonce = bytes(4) + number.to_bytes(12, "little")  # the counter of blocks, then the nonce
    return Cipher(ChaCha20(key, nonce), mode=None).encryptor().update_into
