"""`builtin`: tokens without weights, for federations that have no language model at every site.

A word is one of a few orthonormal codes. A score is a thermometer (how many marks it has passed, the last in part)
beside slow waves, turned by a fixed rotation: near scores are near tokens. A modality that has no code of its own is
the sum of its letters' codes. Every piece has codes of its own, since MMSE 22 is not ADAS13 22.
"""

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from shared.base.errors import ConfigError
from shared.base.vocabulary import Modality
from shared.clinical import codes
from shared.clinical.chart import DIAGNOSES, PIECES, SCORES, Chart
from shared.clinical.encoder import check_lengths, empty, pieces_of

VERSION, SEED = 1, 0
WIDTH = 64
KNOWN = ("T1", "T1CE", "T2", "FLAIR", "T2S", "CT", "FDG", "AV45", "TOF")  # as in shared/data/modalities.py
MARKS, WAVES = 16, (1, 2, 4, 8)  # half turns over a score's range
GRAIN = 2**20  # waves are rounded to this: sines differ in the last bit between mathematical libraries


class Builtin:
    """The default provider: fixed codes for words, thermometers and waves for scores."""

    def __init__(self, width: int = WIDTH) -> None:
        if width < len(KNOWN):
            raise ConfigError(f"text width={width}: must be {len(KNOWN)} or more for builtin")
        self.width = width
        self.id = f"builtin v{VERSION} seed {SEED} width {width}"

    def encode(
        self, charts: Sequence[Chart], targets: Sequence[Modality], available: Sequence[tuple[Modality, ...]]
    ) -> tuple[Tensor, Tensor]:
        check_lengths(charts, targets, available)
        tokens_BLD, held_BL = empty(len(charts), self.width)
        for b, (chart, target, shown) in enumerate(zip(charts, targets, available, strict=True)):
            for piece, value in pieces_of(chart, target, shown).items():
                row = PIECES.index(piece)
                tokens_BLD[b, row] = _token(self.width, piece, value)
                held_BL[b, row] = True
        return tokens_BLD, held_BL


@functools.lru_cache(maxsize=4096)
def _token(width: int, piece: str, value: object) -> Tensor:
    if piece in SCORES:
        assert isinstance(value, float)
        found = _score(width, piece, value / SCORES[piece].most)
    elif piece == "diagnosis":
        found = codes.orthonormal(len(DIAGNOSES), width, SEED, piece)[DIAGNOSES.index(str(value))]
    elif piece == "target":
        found = _modality(width, piece, str(value))
    else:
        assert isinstance(value, tuple)
        every = tuple(_modality(width, piece, name) for name in value)
        found = codes.combined((1.0,) * len(every), every)
    if piece not in SCORES:
        found = codes.scaled(found)
    return torch.tensor(found, dtype=torch.float64).float()


def _score(width: int, piece: str, share: float) -> codes.Vector:
    """Turn a score into a vector; `share` says where it lies in its range, 0 to 1."""
    marks = min(MARKS, width // 2)
    waves = WAVES[: min(len(WAVES), width // 8)]
    thermometer = [2 * min(1.0, max(0.0, share * marks - i)) - 1 for i in range(marks)]
    turning = [
        round(f(math.pi * k * share) * GRAIN) / GRAIN / k  # a faster wave is a weaker one: it is no order of scores
        for k in waves
        for f in (math.cos, math.sin)
    ]
    features = (*thermometer, *turning)
    size = math.sqrt(width / (marks + math.fsum(1 / k**2 for k in waves)))
    return codes.combined(tuple(size * a for a in features), codes.orthonormal(len(features), width, SEED, piece))


@functools.lru_cache(maxsize=256)
def _modality(width: int, piece: str, name: str) -> codes.Vector:
    if name in KNOWN:
        return codes.scaled(codes.orthonormal(len(KNOWN), width, SEED, piece, "known")[KNOWN.index(name)])
    word = f"^{name.casefold()}$"
    grams = [word[i : i + n] for n in (1, 2, 3) for i in range(len(word) - n + 1)]
    every = tuple(codes.signs(width, SEED, piece, gram) for gram in grams)
    return codes.scaled(codes.combined((1.0,) * len(every), every))
