"""Any model that turns a short text into a vector, as an encoder: one vector per piece, each text embedded once."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from shared.base.errors import DataError
from shared.base.vocabulary import Modality
from shared.clinical.cache import Cache
from shared.clinical.chart import PIECES, Chart
from shared.clinical.encoder import check_lengths, empty, pieces_of
from shared.clinical.prompts import prompt

Embed = Callable[[Sequence[str]], Tensor]  # texts -> float32 (texts, width)


class Prompted:
    def __init__(self, id: str, width: int, embed: Embed, cache: Cache | None = None) -> None:
        self.id, self.width = id, width
        self._embed, self._cache = embed, cache
        self._known: dict[str, Tensor] = {}

    def fresh(self) -> "Prompted":
        """Ask the model now, without memory or cache."""
        return Prompted(self.id, self.width, self._embed)

    def encode(
        self, charts: Sequence[Chart], targets: Sequence[Modality], available: Sequence[tuple[Modality, ...]]
    ) -> tuple[Tensor, Tensor]:
        check_lengths(charts, targets, available)
        tokens_BLD, held_BL = empty(len(charts), self.width)
        rows = [
            (b, PIECES.index(piece), prompt(piece, value))
            for b, (chart, target, shown) in enumerate(zip(charts, targets, available, strict=True))
            for piece, value in pieces_of(chart, target, shown).items()
        ]
        self._look_up(sorted({text for _, _, text in rows}))
        for b, row, text in rows:
            tokens_BLD[b, row] = self._known[text]
            held_BL[b, row] = True
        return tokens_BLD, held_BL

    def _look_up(self, texts: Sequence[str]) -> None:
        new = []
        for text in texts:
            if text in self._known:
                continue
            found = self._cache.read(text) if self._cache is not None else None
            if found is not None and found.shape == (self.width,):
                self._known[text] = torch.from_numpy(found)
            else:
                new.append(text)
        if not new:
            return
        vectors = unit_scale(self._embed(new), len(new), self.width, self.id)
        for text, vector in zip(new, vectors, strict=True):
            self._known[text] = vector
            if self._cache is not None:
                self._cache.write(text, np.asarray(vector))


def unit_scale(vectors_ND: Tensor, n: int, width: int, id: str) -> Tensor:
    """Scale to a root mean square of 1, as all tokens; DataError for what is no embedding."""
    if vectors_ND.shape != (n, width):
        got = vectors_ND.shape[-1] if vectors_ND.ndim == 2 else 0
        raise DataError(f"text encoder {id}: gave {got} numbers for a prompt; must be {width}")
    rms_N1 = vectors_ND.double().square().mean(-1, keepdim=True).sqrt()
    if not (torch.isfinite(vectors_ND).all() and (rms_N1 > 0).all()):
        raise DataError(f"text encoder {id}: gave zeros or numbers that are not finite")
    return (vectors_ND.double() / rms_N1).float()
