"""Vectors that are the same bits on every machine: hashes, exact sums and square roots, no BLAS and no global RNG."""

import functools
import hashlib
import json
import math

Vector = tuple[float, ...]


def signs(width: int, *keys: str | int) -> Vector:
    """Make a vector of +1 and -1 from the keys."""
    stream = hashlib.shake_256(json.dumps(keys).encode()).digest((width + 7) // 8)
    return tuple(1.0 if stream[i // 8] >> (i % 8) & 1 else -1.0 for i in range(width))


@functools.lru_cache(maxsize=64)
def orthonormal(n: int, width: int, *keys: str | int) -> tuple[Vector, ...]:
    """Make n vectors from the keys, by Gram and Schmidt; n is at most width."""
    assert n <= width
    rows: list[Vector] = []
    draw = 0
    while len(rows) < n:
        v = signs(width, *keys, draw)
        draw += 1
        for _ in range(2):  # once more: what rounding left of the others
            for row in rows:
                along = math.fsum(a * b for a, b in zip(v, row, strict=True))
                v = tuple(a - along * b for a, b in zip(v, row, strict=True))
        norm = math.sqrt(math.fsum(a * a for a in v))
        if norm > 1e-3:  # else it was a combination of the others
            rows.append(tuple(a / norm for a in v))
    return tuple(rows)


def combined(weights: Vector, rows: tuple[Vector, ...]) -> Vector:
    """Add rows up by their weights, exactly rounded."""
    return tuple(math.fsum(w * row[i] for w, row in zip(weights, rows, strict=True)) for i in range(len(rows[0])))


def scaled(v: Vector, rms: float = 1.0) -> Vector:
    """Scale a vector to this root mean square."""
    size = math.sqrt(math.fsum(a * a for a in v) / len(v))
    return tuple(a * rms / size for a in v)
