"""What is hidden, told by kinds of tissue: a mixture of Gaussians over all modalities, fitted where some are missing.

Each component is a kind of tissue: a mean and a covariance of every modality's intensity and of its mean over 3 x 3
pixels. Given its component, what a pixel shows tells of the rest linearly; which component it is, every modality has a
say in. So subjects with T1, T2 and FLAIR and subjects with T1, T1CE and FLAIR together teach FLAIR from T1, T1CE and
T2, which nobody has: a regression knows pairs of modalities only (docs/methods/amm_diff.md, "The mixture").

Fitted by expectation and maximisation with what is missing integrated out. An iteration needs sums alone, so sites pool
them exactly: one round of a phase of sums each.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.base.records import Batch
from shared.methods.nets.spectral import brain
from shared.methods.threads import threads

COMPONENTS, ITERATIONS = 32, 30  # what it usually has, and rounds of sums after the first
FEATURES = 2  # of a modality: its intensity, and the mean around it
LEAST = 0.02  # standard deviation that every component has at least, in intensity
FEW = 20.0  # pixels: a component of fewer stays as it was
LATTICE = (2, 5)  # of the pixels those are used whose row + 2 column is a multiple of 5
START = 0.8  # of the pooled standard deviation: how far apart the components begin


CELLS = dict.fromkeys(("pixels", "x", "xx", "seen"), ("seen", 1))  # a component, with all that fills it


class Mixture(nn.Module):
    """Every modality from any shown subset, in the brain; a shown one is itself.

    Holds agreed constants only (buffers): `settle` fills them, before that all hidden is blank.
    """

    weight_K: Tensor
    mean_KD: Tensor  # before the first sums: where each component will begin, in standard deviations
    cov_KDD: Tensor  # all 0 before the first sums

    def __init__(self, modalities: int, components: int) -> None:
        super().__init__()
        self.modalities, D = modalities, modalities * FEATURES
        self.register_buffer("weight_K", torch.full((components,), 1 / components))
        self.register_buffer("mean_KD", torch.randn(components, D))
        self.register_buffer("cov_KDD", torch.zeros(components, D, D))
        self._kept: dict[tuple[int, ...], Given] = {}
        self._of: tuple[object, ...] = ()

    @property
    def fitted(self) -> bool:
        return bool(self.cov_KDD.any())

    # --- one iteration -------------------------------------------------------------------------------------------

    def sums(self, batch: Batch) -> dict[str, Tensor]:
        """Total what each component explains of the batch: pixels, features and their products, the missing expected.

        At first, when there are no components yet, the same of what is seen, evenly: the scale they begin at.
        """
        with threads(1):
            return self._sums(batch)

    def _sums(self, batch: Batch) -> dict[str, Tensor]:
        K, D = self.mean_KD.shape
        exists_BM = batch.exists_BM
        images = torch.where(exists_BM[:, :, None, None], batch.images_BMHW.float(), 0.0)
        inside_BHW = brain(images, exists_BM)[:, 0] & _lattice(images)
        features = _features(images)
        zeros = images.new_zeros
        total = {
            "pixels": zeros(K).double(),
            "x": zeros(K, D).double(),
            "xx": zeros(K, D, D).double(),
            "seen": zeros(K, D).double(),
        }
        for pattern in torch.unique(exists_BM, dim=0):
            here = (exists_BM == pattern).all(dim=1)
            seen = _places(pattern)
            x_NO = features[here].movedim(1, -1)[inside_BHW[here]][:, seen]
            if len(seen) == 0 or len(x_NO) == 0:
                continue
            if not self.fitted:
                total["seen"][:, seen] += len(x_NO) / K
                total["x"][:, seen] += x_NO.double().sum(0) / K
                total["xx"][:, seen, seen] += x_NO.double().square().sum(0) / K
                continue
            self._explain(total, x_NO, seen)
        return total

    def _explain(self, total: dict[str, Tensor], x_NO: Tensor, seen: Tensor) -> None:
        """Given a component, the missing is linear in the seen: so sums over the seen alone say it all."""
        given = self.given(seen)
        part_KN = given.posterior(x_NO).double()
        x_NO = x_NO.double()
        n_K, x_KO = part_KN.sum(1), part_KN @ x_NO
        xx_KOO = torch.einsum("kn,no,np->kop", part_KN, x_NO, x_NO)
        total["pixels"] += n_K
        total["seen"][:, seen] += n_K[:, None]
        mean_KD = torch.einsum("kdo,ko->kd", given.gain_KDO, x_KO)
        total["x"] += mean_KD + given.offset_KD * n_K[:, None]
        cross_KDD = mean_KD[:, :, None] * given.offset_KD[:, None]
        square_KDD = given.offset_KD[:, :, None] * given.offset_KD[:, None] + given.left_KDD
        total["xx"] += given.gain_KDO @ xx_KOO @ given.gain_KDO.transpose(1, 2)
        total["xx"] += cross_KDD + cross_KDD.transpose(1, 2) + square_KDD * n_K[:, None, None]

    def settle(self, sums: Mapping[str, Tensor]) -> None:
        """Take the step: components are what they explain."""
        n_K, x_KD, xx_KDD = (sums[name].double().cpu() for name in ("pixels", "x", "xx"))
        K, D = x_KD.shape
        if not self.fitted:
            seen_D = sums["seen"].double().cpu().sum(0)
            mean_D = x_KD.sum(0) / seen_D.clamp(min=1)
            var_D = (xx_KDD.sum(0).diagonal() / seen_D.clamp(min=1) - mean_D.square()).clamp(min=LEAST**2)
            begin_KD = mean_D + START * var_D.sqrt() * self.mean_KD.double().cpu()
            self.mean_KD.copy_(torch.where(seen_D > 0, begin_KD, 0.5))  # what nobody summed tells components apart ...
            self.cov_KDD.copy_(torch.diag(torch.where(seen_D > 0, var_D / 2, 1.0)).expand(K, D, D))  # ... in nothing
            return
        enough_K = n_K >= FEW
        n_K1 = n_K.clamp(min=FEW)[:, None]
        mean_KD = (x_KD / n_K1).clamp(-1, 2)  # of images in [0, 1]: only wrong sums lie beyond
        cov_KDD = xx_KDD / n_K1[..., None] - mean_KD[:, :, None] * mean_KD[:, None]
        cov_KDD = _positive((cov_KDD + cov_KDD.transpose(1, 2)) / 2) + LEAST**2 * torch.eye(D, dtype=torch.float64)
        self.mean_KD.copy_(torch.where(enough_K[:, None], mean_KD, self.mean_KD.double().cpu()))
        self.cov_KDD.copy_(torch.where(enough_K[:, None, None], cov_KDD, self.cov_KDD.double().cpu()))
        self.weight_K.copy_((n_K.clamp(min=0) + 1) / (n_K.clamp(min=0) + 1).sum())

    # --- what it says --------------------------------------------------------------------------------------------

    def forward(self, images_BMHW: Tensor, shown_BM: Tensor) -> Tensor:
        """All modalities in [0, 1]; 0 outside the brain. What is hidden is never looked at."""
        with torch.autocast(images_BMHW.device.type, enabled=False), threads(1):  # many small sums: more only wait
            images = torch.where(shown_BM[:, :, None, None], images_BMHW.float(), 0.0)
            out = images.clone()
            if not self.fitted:
                return out
            inside_BHW = brain(images, shown_BM)[:, 0]
            features = _features(images).movedim(1, -1)
            for pattern in torch.unique(shown_BM, dim=0):
                seen, hidden = _places(pattern), (~pattern).nonzero().flatten()
                if len(seen) == 0 or len(hidden) == 0:
                    continue
                given = self.given(seen)
                for b in (shown_BM == pattern).all(dim=1).nonzero().flatten().tolist():  # alone: no bit of another's
                    x_NO = features[b][inside_BHW[b]][:, seen]
                    told_TN = given.told(x_NO, hidden * FEATURES).clamp(0, 1)  # of the intensities themselves
                    for m, told_N in zip(hidden.tolist(), told_TN, strict=True):
                        out[b, m][inside_BHW[b]] = told_N
            return out

    def given(self, seen: Tensor) -> "Given":
        """What each component makes of features `seen`; worked out once for as long as the components stay."""
        of = tuple((v.data_ptr(), v.device, v._version) for v in (self.weight_K, self.mean_KD, self.cov_KDD))
        if of != self._of:
            self._kept, self._of = {}, of
        key = tuple(seen.tolist())
        if key not in self._kept:
            self._kept[key] = self._given(seen)
        return self._kept[key]

    def _given(self, seen: Tensor) -> "Given":
        mean_KD, cov_KDD = self.mean_KD.double(), self.cov_KDD.double()
        eye = torch.eye(len(seen), dtype=torch.float64, device=seen.device)
        seen_KOO, all_KDO = cov_KDD[:, seen][:, :, seen], cov_KDD[:, :, seen]
        gain_KDO = torch.linalg.solve(seen_KOO, all_KDO.transpose(1, 2)).transpose(1, 2)
        gain_KDO[:, seen] = eye
        offset_KD = mean_KD - (gain_KDO @ mean_KD[:, seen, None])[..., 0]
        offset_KD[:, seen] = 0.0
        left_KDD = cov_KDD - gain_KDO @ all_KDO.transpose(1, 2)
        left_KDD[:, seen] = 0.0
        left_KDD[:, :, seen] = 0.0
        root_KOO = torch.linalg.cholesky(seen_KOO)
        size_K = root_KOO.diagonal(dim1=1, dim2=2).log().sum(1) + len(seen) / 2 * math.log(2 * math.pi)
        white_KOO = torch.linalg.solve_triangular(root_KOO, eye, upper=False)
        return Given(
            gain_KDO=gain_KDO,
            offset_KD=offset_KD,
            left_KDD=left_KDD,
            white_KOO=white_KOO,
            shift_KO=(white_KOO @ mean_KD[:, seen, None])[..., 0],
            constant_K=self.weight_K.double().log() - size_K,
        )


class Given(NamedTuple):
    """The components, once some features are seen."""

    gain_KDO: Tensor  # every feature is expected to be gain x + offset ...
    offset_KD: Tensor
    left_KDD: Tensor  # ... with this covariance
    white_KOO: Tensor  # white x - shift is standard normal
    shift_KO: Tensor
    constant_K: Tensor  # of the log density

    def score(self, x_NO: Tensor) -> Tensor:
        """log(weight) + log density of each component, K N."""
        white, shift, constant = (v.to(x_NO.dtype) for v in (self.white_KOO, self.shift_KO, self.constant_K))
        score_KN: Tensor = constant[:, None] - (white @ x_NO.T - shift[:, :, None]).square().sum(1) / 2
        return score_KN

    def posterior(self, x_NO: Tensor) -> Tensor:
        """How likely each component is, K N."""
        return torch.softmax(self.score(x_NO), dim=0)

    def told(self, x_NO: Tensor, features: Tensor) -> Tensor:
        """The expectation of these features, T N."""
        gain, offset = (v[:, features].to(x_NO.dtype) for v in (self.gain_KDO, self.offset_KD))
        return (self.posterior(x_NO)[:, None] * (gain @ x_NO.T + offset[:, :, None])).sum(0)


def _features(images_BMHW: Tensor) -> Tensor:
    """Intensity and mean over 3 x 3 pixels of each modality, side by side: B D H W."""
    return torch.stack([images_BMHW, F.avg_pool2d(images_BMHW, 3, stride=1, padding=1)], dim=2).flatten(1, 2)


def _places(pattern_M: Tensor) -> Tensor:
    """Which features a pattern of modalities has."""
    first = pattern_M.nonzero().flatten()[:, None] * FEATURES
    return (first + torch.arange(FEATURES, device=pattern_M.device)).flatten()


def _lattice(images_BMHW: Tensor) -> Tensor:
    """A fifth of the pixels, evenly spread, the same wherever they are summed."""
    rows, columns = (torch.arange(n, device=images_BMHW.device) for n in images_BMHW.shape[-2:])
    step, every = LATTICE
    return (rows[:, None] + step * columns[None]) % every == 0


def _positive(matrix_KDD: Tensor) -> Tensor:
    """The nearest positive semi-definite matrices, no wider than images in [0, 1] can be; wrong sums need not be so."""
    values, vectors = torch.linalg.eigh(matrix_KDD)
    nearest: Tensor = (vectors * values.clamp(0, len(values[0]))[:, None]) @ vectors.transpose(1, 2)
    return nearest
