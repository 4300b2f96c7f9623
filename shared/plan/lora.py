"""Low-rank additions to frozen weights: W + up @ down, for sites that can afford to train only a little.

`down` is fixed, drawn once from the run's seed, and `up` starts at zero. With one factor fixed the addition is linear
in what is trained: the mean of the sites' additions is the addition of the mean, and noise on `up` is not squared.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from shared.base.disk.tensors import WorkedOut
from shared.base.randomness import generator
from shared.base.records import Cut, Owners
from shared.base.vocabulary import SHARED, Owner

ADAPTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_WITHIN = ".parametrizations.weight."
_ORIGINAL, _UP, _DOWN = f"{_WITHIN}original", f"{_WITHIN}0.up", f"{_WITHIN}0.down"


class LowRank(nn.Module):
    down: Tensor

    def __init__(self, weight: Tensor, rank: int, noise: torch.Generator) -> None:
        super().__init__()
        columns = weight[0].numel()
        self.register_buffer("down", torch.randn(rank, columns, generator=noise) * columns**-0.5)
        self.up = nn.Parameter(torch.zeros(len(weight), rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.up @ self.down).view_as(weight)


def adapt(net: nn.Module, rank: int, seed: int) -> nn.Module:
    """Additions beside every weight that is larger than they are, in place; rank 0 changes nothing."""
    if rank == 0:
        return net
    for name, module in list(net.named_modules()):
        if isinstance(module, ADAPTED) and min(len(module.weight), module.weight[0].numel()) > rank:
            addition = LowRank(module.weight, rank, generator("cpu", seed, "lora", name))
            parametrize.register_parametrization(module, "weight", addition.to(module.weight.device))
    return net


def owners(net: nn.Module, every: Owners, whole: Owners) -> Owners:
    """Of the owners of the plain network: those in `whole` are trained themselves, of the others the additions.

    Additions belong to every site; beside a weight that is owned slice by slice none is trained.
    """
    there = dict(net.named_parameters())
    found: dict[str, Owner | Cut] = {}
    for name, owner in every.items():
        base = name.removesuffix(".weight")
        if name in whole:
            found[name if name in there else base + _ORIGINAL] = owner
        elif owner == SHARED and base + _UP in there:
            found[base + _UP] = SHARED
    return found


def plain_name(name: str) -> str:
    """The name in a network without additions."""
    return name.replace(_ORIGINAL, ".weight")


def merged(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The weights of the same network without additions, which are in them when they are asked for."""
    named = {plain_name(name): name for name in weights if not name.endswith((_UP, _DOWN))}

    def plain(name: str) -> Tensor:
        value = weights[named[name]]
        if not named[name].endswith(_ORIGINAL):
            return value
        base = named[name].removesuffix(_ORIGINAL)
        return value + (weights[base + _UP] @ weights[base + _DOWN]).view_as(value)

    return WorkedOut(named, plain)


def split(plain: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`plain` weights in the names of `like`, whose additions are taken as they are."""
    return {name: value if name.endswith((_UP, _DOWN)) else plain[plain_name(name)] for name, value in like.items()}
