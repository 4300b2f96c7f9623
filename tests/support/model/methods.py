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
# those that a method has, beside modalities and size
OPTIONS: Mapping[str, object] = {"depth": 6, "height": SIDE, "width": SIDE, "target": "FLAIR", "slab": 3}
VOLUMES = ("aca_diff", "ldm")  # in bf16 the same bits as in fp32, on a CPU (tests/shared/methods/test_precision.py)
ONE_SLICE = ("bbdm", "pix2pix")  # slabs of several slices and of one
STEPS: Mapping[str, Mapping[str, object]] = {"ddim": {"steps": 2}, "bridge": {"steps": 3, "eta": 1.0}}


def make(name: str, **options: object) -> Method:
    """Any row of the table, small, with one target or all of them as its target."""
    own = {key: value for key, value in OPTIONS.items() if key in METHODS[name].__dataclass_fields__}
    one = {"slab": 1} if name in ONE_SLICE else {}
    return build(METHODS[name], {"modalities": list(MODALITIES), "size": "tiny", **own, **one, **options}, "method")


def sampler_of(method: Method) -> Sampler:
    """The first of these that it takes, which is not deterministic if it can be helped."""
    kind = next((kind for kind in STEPS if kind in method.samplers), method.samplers[0])
    return Sampler(kind=kind, **STEPS.get(kind, {}))


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
