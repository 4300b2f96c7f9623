"""`label_embedding`: what a table of labels gives, the paper's ablation ACADiff-emb; and `none`.

A token is one-hot in slots of its own (several at once for the available modalities), scores in a few classes; the
network's first linear layer then *is* the table of embeddings that is trained.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence

from torch import Tensor

from shared.base.errors import ConfigError
from shared.base.vocabulary import Modality
from shared.clinical.builtin import KNOWN
from shared.clinical.chart import DIAGNOSES, PIECES, Chart
from shared.clinical.encoder import check_lengths, empty, pieces_of

VERSION = 1
CLASSES: Mapping[str, tuple[float, ...]] = {  # where a new class begins
    "mmse": (10, 21, 24, 27),
    "adas13": (10, 20, 30, 40),
    "cdrsb": (0.5, 2.5, 4.5, 9.5),
}
_SIZES: Mapping[str, int] = {
    "target": len(KNOWN) + 1,  # the last: any other
    "available": len(KNOWN) + 1,
    "diagnosis": len(DIAGNOSES),
    **{name: len(edges) + 1 for name, edges in CLASSES.items()},
}
_STARTS: Mapping[str, int] = {p: sum(_SIZES[q] for q in PIECES[:i]) for i, p in enumerate(PIECES)}
SLOTS = sum(_SIZES.values())


class LabelEmbedding:
    def __init__(self, width: int) -> None:
        if width < SLOTS:
            raise ConfigError(f"text width={width}: must be {SLOTS} or more for label_embedding")
        self.width = width
        self.id = f"label_embedding v{VERSION} width {width}"

    def encode(
        self, charts: Sequence[Chart], targets: Sequence[Modality], available: Sequence[tuple[Modality, ...]]
    ) -> tuple[Tensor, Tensor]:
        check_lengths(charts, targets, available)
        tokens_BLD, held_BL = empty(len(charts), self.width)
        for b, (chart, target, shown) in enumerate(zip(charts, targets, available, strict=True)):
            for piece, value in pieces_of(chart, target, shown).items():
                slots = _slots(piece, value)
                row = PIECES.index(piece)
                held_BL[b, row] = True
                for slot in slots:
                    tokens_BLD[b, row, _STARTS[piece] + slot] = math.sqrt(self.width / len(slots))
        return tokens_BLD, held_BL


class NoText:
    """`none`: the network hears nothing."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.id = f"none width {width}"

    def encode(
        self, charts: Sequence[Chart], targets: Sequence[Modality], available: Sequence[tuple[Modality, ...]]
    ) -> tuple[Tensor, Tensor]:
        check_lengths(charts, targets, available)
        return empty(len(charts), self.width)


def _slots(piece: str, value: object) -> tuple[int, ...]:
    if piece == "diagnosis":
        return (DIAGNOSES.index(str(value)),)
    if piece in CLASSES:
        assert isinstance(value, float)
        return (bisect_right(CLASSES[piece], value),)
    names = value if isinstance(value, tuple) else (value,)
    return tuple(sorted({KNOWN.index(name) if name in KNOWN else len(KNOWN) for name in names}))
