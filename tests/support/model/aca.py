"""ACADiff at its smallest: the method, a network that is awake, batches of noise."""

import torch
from support.model.methods import awake

from shared.base.options import build
from shared.base.records import Batch
from shared.data.bids import Clinical
from shared.methods.aca_diff import AcaDiff
from shared.methods.nets.aca import AcaNet

MODALITIES = ("T1", "FDG", "AV45")


SIDE = 8


CHARTS: tuple[Clinical, ...] = ({"diagnosis": "AD", "mmse": 20.0, "adas13": 30.0, "cdrsb": 5.0},)


def method(**options: object) -> AcaDiff:
    return build(
        AcaDiff,
        {"modalities": list(MODALITIES), "size": "tiny", "depth": SIDE, "height": SIDE, "width": SIDE, **options},
        "method",
    )


def net_of(made: AcaDiff) -> AcaNet:
    net = awake(made.build(0))
    assert isinstance(net, AcaNet)
    return net


def batch(exists: list[list[int]], seed: int = 0, clinical: tuple[Clinical, ...] = ()) -> Batch:
    exists_BM = torch.tensor(exists).bool()
    images = torch.rand(*exists_BM.shape, SIDE, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    images[~exists_BM] = float("nan")
    return Batch(
        images_BMHW=images,
        exists_BM=exists_BM,
        shown_BM=exists_BM,
        subject_B=torch.arange(len(exists)),
        clinical=clinical * len(exists),
    )
