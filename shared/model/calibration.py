"""How wide an interval about a mean of samples must be to hold nine truths in ten; told from how far samples differ.

Samples of a network differ less, or more, than truths do: by how much depends on the modality and on the spread itself
(where samples agree, the network's own error is what is left), and on how many modalities are shown. So voxels of
subjects whom nobody trained on are counted by their samples' standard deviation and by how far the truth was from the
samples' mean. The ninth decile of the second
for a value of the first is the interval's half width. Counts add up over subjects, cohorts and sites, and nothing else
of a subject is in them.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shared.base.errors import DataError
from shared.base.options import build, plain, require
from shared.base.vocabulary import Modality
from shared.diffusion.samplers import Sampler

COVER = 0.9  # of the truths
COVERED, CALIBRATED = "covered", "calibrated"  # by the interval that samples tell, and by the calibrated one
NORMAL = 1.6449  # sds of a normal distribution that hold as many
FIRST, PER_OCTAVE, SPREADS = 1 / 512, 2, 17  # bins of spread: from nothing, then half octaves, to a half and more
ERRORS = 1024  # bins of error, over [0, 1]
LEAST = 500  # voxels that tell a decile: a bin with fewer is told from its neighbours too


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Half widths by modality, number of shown ones and bin of spread, for one sampler with its samples."""

    sampler: Sampler
    widths: Mapping[str, tuple[float, ...]]  # by `row`
    source: str  # whose subjects it was told from

    def __post_init__(self) -> None:
        require(self.sampler.samples > 1, "sampler.samples", self.sampler.samples, "2 or more")
        for name, widths in self.widths.items():
            fits = len(widths) == SPREADS and all(0 < width <= 1 for width in widths)
            require(fits, f"widths.{name}", list(widths), f"{SPREADS} numbers in (0, 1]")

    def knows(self, modality: Modality, shown: int) -> bool:
        return row(modality, shown) in self.widths

    def half_width(self, modality: Modality, shown: int, sd: Tensor) -> Tensor:
        """Of the interval that holds COVER of the truths; in between the bins it goes from one to the next."""
        width_S = torch.tensor(self.widths[row(modality, shown)], dtype=sd.dtype, device=sd.device)
        at = (_place(sd) - 0.5).clamp(0, SPREADS - 1)  # a bin's own width is at its middle
        low = at.floor().long().clamp(max=SPREADS - 2)
        share = at - low
        return width_S[low] * (1 - share) + width_S[low + 1] * share

    def sd(self, modality: Modality, shown: int, sd: Tensor) -> Tensor:
        """What stands for a standard deviation: NORMAL times it is the half width."""
        return self.half_width(modality, shown, sd) / NORMAL

    def record(self) -> dict[str, Any]:
        found = plain(self)
        assert isinstance(found, dict)
        return found


def row(modality: Modality, shown: int) -> str:
    """A modality that is made from so many others."""
    return f"{modality} from {shown}"


def read(record: Any) -> Calibration | None:
    """Of a bundle or a run; None where there is none."""
    return None if record is None else build(Calibration, record, "calibration")


def squares(samples: int) -> float:
    """How many variances the squares about the mean of so many add up to: pairs are mirror images, so their mean is
    known, and an odd one out has its own share in it.
    """
    return samples if samples % 2 == 0 else samples - 1 / samples


def uncalibrated(sd: Tensor, samples: int) -> Tensor:
    """Half width if truths were drawn as the samples are: exact (Student's t) for normal ones in pairs, near else."""
    from scipy.stats import t  # takes a second to import

    draws = samples - samples // 2
    alone = math.sqrt(1 + samples % 2 / samples**2)  # an odd one moves the mean
    return float(t.ppf((1 + COVER) / 2, draws)) * alone * sd


def count(truth: Tensor, mean: Tensor, sd: Tensor) -> Tensor:
    """Voxels of one modality by spread and error: SPREADS x ERRORS, fp64. Counts of several may be added."""
    spread = _place(sd.flatten()).floor().long().clamp(0, SPREADS - 1)
    error = ((truth - mean).abs().flatten() * ERRORS).long().clamp(0, ERRORS - 1)
    return torch.bincount(spread * ERRORS + error, minlength=SPREADS * ERRORS).reshape(SPREADS, ERRORS).double()


def widths_of(counts_SE: Tensor) -> tuple[float, ...]:
    """The decile of the error in each bin of spread, with as many neighbours as it takes to tell it."""
    voxels_S = counts_SE.sum(1)
    if voxels_S.sum() < LEAST:
        raise DataError(f"calibration: {int(voxels_S.sum())} voxels; {LEAST} are needed to tell an interval")
    return tuple(_decile(counts_SE[a:b].sum(0)) for a, b in _told_by(voxels_S.tolist()))


def _told_by(voxels: Sequence[float]) -> Iterator[tuple[int, int]]:
    for s in range(len(voxels)):
        a, b = s, s + 1
        while sum(voxels[a:b]) < LEAST:
            a, b = max(0, a - 1), min(len(voxels), b + 1)
        yield a, b


def _decile(counts_E: Tensor) -> float:
    """Where COVER of the counts lie below; within a bin they are spread evenly."""
    wanted = COVER * float(counts_E.sum())
    below = torch.cat([counts_E.new_zeros(1), counts_E.cumsum(0)])
    e = min(int(torch.searchsorted(below, wanted).item()), ERRORS) - 1
    inside = (wanted - float(below[e])) / max(float(counts_E[e]), 1e-12)
    return (e + inside) / ERRORS


def _place(sd: Tensor) -> Tensor:
    """The spread in bins: the first ends at FIRST, each further one is half an octave."""
    return 1 + PER_OCTAVE * (sd / FIRST).clamp(min=1e-6).log2()
