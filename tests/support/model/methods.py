"""Methods, batches and awake networks for the laws that every method keeps."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from shared.base.options import build
from shared.base.records import Batch
from shared.diffusion.samplers import Sampler
from shared.methods import METHODS, Method

MODALITIES = ("T1", "T1CE", "T2", "FLAIR")
M, SIDE = len(MODALITIES), 16
OPTIONS: Mapping[str, Mapping[str, object]] = {  # beside modalities and size; slabs of several slices and of one
    "aca_diff": {"depth": 6, "height": 16, "width": 16},
    "ldm": {"depth": 6, "height": 16, "width": 16},
    "mmdm": {"target": "FLAIR", "slab": 3},
    "bbdm": {"target": "FLAIR", "slab": 1},
    "ddpm": {"target": "FLAIR", "slab": 3},
    "pix2pix": {"target": "FLAIR", "slab": 1},
}
BRIDGE = Sampler(kind="bridge", steps=3, eta=1.0)
SAMPLERS: Mapping[str, Sampler] = {"mmdm": BRIDGE, "bbdm": BRIDGE, "pix2pix": Sampler(kind="mean")}


def make(name: str, **options: object) -> Method:
    values = {"modalities": list(MODALITIES), "size": "tiny", **OPTIONS.get(name, {}), **options}
    return build(METHODS[name], values, "method")


def name_of(method: Method) -> str:
    return next(name for name, cls in METHODS.items() if cls is type(method))


def sampler_of(method: Method) -> Sampler:
    return SAMPLERS.get(name_of(method), Sampler(kind="ddim", steps=2))


def awake(net: nn.Module) -> nn.Module:
    """Zero-initialised layers randomised: a gradient that is zero must be so for the right reason."""
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            if not p.any():
                p.copy_(0.1 * torch.randn(p.shape, generator=g))
    return net


def batch_of(method: Method, exists: list[list[int]], seed: int = 0, side: int = SIDE) -> Batch:
    exists_BM = torch.tensor(exists).bool()
    g = torch.Generator().manual_seed(seed)
    images = 0.05 + 0.9 * torch.rand(len(exists), M, *depth(method), side, side, generator=g)
    images[..., :2, :] = 0
    images[~exists_BM] = float("nan")  # what does not exist means nothing
    return Batch(images_BMHW=images, exists_BM=exists_BM, shown_BM=exists_BM, subject_B=torch.arange(len(exists)))


def depth(method: Method) -> tuple[int, ...]:
    return () if method.slab == 1 else (method.slab,)


def prepared(method: Method, seed: int = 0) -> nn.Module:
    net = awake(method.build(seed))
    for phase in method.phases:
        if phase.kind == "sums":
            method.settle(net, phase.name, method.sums(net, batch_of(method, [[1, 1, 1, 1]] * 4, seed=9), phase.name))
    return net


def trained(method: Method) -> list[str]:
    return [phase.name for phase in method.phases if phase.kind == "train"]


def gradients(net: nn.Module) -> Mapping[str, Tensor]:
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
