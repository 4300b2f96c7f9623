"""Adaptive fusion of source latents (docs/methods/aca_diff.md): one source goes through a convolution of its own,
several through cross-attention between pooled tokens, laid back over each of them as a residual.

Never one token: a softmax over a single key is 1, and nothing would be learned of what to ask. What is built is
symmetric: sources are known by their modality, never by the order in which they come.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.base.vocabulary import Modality
from shared.methods.nets.volumetric import attend, conv3, zeroed

TOKENS = 4  # along each edge of the pooled latent
HEADS = 4


class Fusion(nn.Module):
    """z_BSCDHW and which are shown -> one latent. Rows with one source take its `alone` path, the others `beside`."""

    def __init__(self, sources: Sequence[Modality], channels: int, width: int) -> None:
        super().__init__()
        self.sources = tuple(sources)
        self.alone = nn.ModuleDict({m: conv3(channels, channels) for m in sources})
        self.beside = nn.ModuleDict({m: Beside(channels, width) for m in sources})
        self.cross = Cross(width)

    def forward(self, z_BSCDHW: Tensor, shown_BS: Tensor, *, skip: bool = True) -> Tensor:
        """`skip`: a path that no row takes is not run, so that it gets no gradient."""
        joint_B = shown_BS.sum(1) > 1
        if not skip:
            ways = (self._alone(z_BSCDHW, shown_BS, skip=False), self._beside(z_BSCDHW, shown_BS))
            return torch.where(joint_B[:, None, None, None, None], ways[1], ways[0])
        if bool(joint_B.all()):
            return self._beside(z_BSCDHW, shown_BS)
        if not bool(joint_B.any()):
            return self._alone(z_BSCDHW, shown_BS, skip=True)
        alone, joint = (~joint_B).nonzero().flatten(), joint_B.nonzero().flatten()
        made = torch.cat(
            [
                self._alone(z_BSCDHW[alone], shown_BS[alone], skip=True),
                self._beside(z_BSCDHW[joint], shown_BS[joint]),
            ]
        )
        return made[torch.cat([alone, joint]).argsort()]

    def _alone(self, z_BSCDHW: Tensor, shown_BS: Tensor, *, skip: bool) -> Tensor:
        total = torch.zeros_like(z_BSCDHW[:, 0])
        for s, m in enumerate(self.sources):
            rows_B = shown_BS[:, s]
            if not skip or bool(rows_B.any()):
                made = self.alone[m](z_BSCDHW[:, s]).to(total.dtype)
                total = total + torch.where(rows_B[:, None, None, None, None], made, 0.0)
        return total

    def _beside(self, z_BSCDHW: Tensor, shown_BS: Tensor) -> Tensor:
        _, _, _, D, H, W = z_BSCDHW.shape
        edges = (min(TOKENS, D), min(TOKENS, H), min(TOKENS, W))
        tokens_BSLE = torch.stack([self._part(m).tokens(z_BSCDHW[:, s], edges) for s, m in enumerate(self.sources)], 1)
        L = tokens_BSLE.shape[2]
        total = torch.zeros_like(z_BSCDHW[:, 0])
        for s, m in enumerate(self.sources):
            others_BS = shown_BS.clone()
            others_BS[:, s] = False
            # with nothing to ask, it asks itself: -inf for all would make nan, and the row is not used
            nothing_B = ~others_BS.any(1)
            hidden_BS = ~others_BS & ~nothing_B[:, None]
            heard_BLE = self.cross(tokens_BSLE[:, s], tokens_BSLE.flatten(1, 2), hidden_BS.repeat_interleave(L, dim=1))
            made = self._part(m)(z_BSCDHW[:, s], heard_BLE.transpose(1, 2).unflatten(2, edges)).to(total.dtype)
            total = total + torch.where(shown_BS[:, s, None, None, None, None], made, 0.0)
        return total

    def _part(self, modality: Modality) -> "Beside":
        part = self.beside[modality]
        assert isinstance(part, Beside)
        return part


class Beside(nn.Module):
    """What a modality brings to a fusion of several: its tokens, and its share of the fused latent."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.token = nn.Linear(channels, width)  # its offset tells the modality
        self.own = conv3(channels, channels)
        self.back = zeroed(nn.Conv3d(width, channels, 1))
        self.mix = nn.Conv3d(channels, channels, 1, bias=False)  # this modality's slice of the last 1x1

    def tokens(self, z_BCDHW: Tensor, edges: tuple[int, int, int]) -> Tensor:
        out: Tensor = self.token(pooled(z_BCDHW, edges).flatten(2).transpose(1, 2))
        return out

    def forward(self, z_BCDHW: Tensor, heard_BEdhw: Tensor) -> Tensor:
        """The residual is made small, then laid over the latent by trilinear interpolation."""
        heard = F.interpolate(self.back(heard_BEdhw).float(), size=z_BCDHW.shape[2:], mode="trilinear")
        out: Tensor = self.mix(self.own(z_BCDHW) + heard)
        return out


def pooled(x_BCDHW: Tensor, edges: tuple[int, int, int]) -> Tensor:
    """Adaptive average pooling in fp32, edge by edge: the operator of three has no bf16 kernel on a CPU, nor ONNX."""
    x = x_BCDHW.float()
    for dim, count in enumerate(edges, start=2):
        n = x.shape[dim]
        bounds = [(i * n // count, -(-(i + 1) * n // count)) for i in range(count)]
        x = torch.cat([x.narrow(dim, a, b - a).mean(dim, keepdim=True) for a, b in bounds], dim)
    return x


class Cross(nn.Module):
    """One modality's tokens ask those of the others."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, asking_BLE: Tensor, told_BKE: Tensor, hidden_BK: Tensor) -> Tensor:
        keys, values = self.key_value(self.norm(told_BKE)).chunk(2, dim=-1)
        heard = attend(self.query(self.norm(asking_BLE)), keys, values, HEADS, hidden_BK)
        out: Tensor = self.out(heard)
        return out
