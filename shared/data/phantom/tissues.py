"""What a phantom is made of: tissues with the physical constants that every scanner sees in its own way.

Relaxation times, densities and uptakes are of the usual order of magnitude at 3 T (docs/methods/data.md), not fitted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from typing import cast

import numpy as np

from shared.data.phantom.fields import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Tissue:
    """Proton density, relaxation times (ms), CT number, PET uptakes (SUVR), and what contrast agent it takes up."""

    pd: float
    t1: float
    t2: float
    t2s: float
    hu: float
    fdg: float
    amyloid_free: float
    amyloid_full: float
    gd_mM: float


def _tissue(
    pd: float, t1: float, t2: float, t2s: float, hu: float, fdg: float, free: float, full: float, gd: float
) -> Tissue:
    return Tissue(pd=pd, t1=t1, t2=t2, t2s=t2s, hu=hu, fdg=fdg, amyloid_free=free, amyloid_full=full, gd_mM=gd)


TISSUES: Mapping[str, Tissue] = {
    # PD, T1, T2, T2*, HU, FDG, AV45 without and with plaques, Gd
    "white": _tissue(0.70, 820, 78, 50, 28, 0.38, 1.20, 1.25, 0.02),
    "cortex": _tissue(0.82, 1450, 96, 58, 38, 1.22, 0.85, 1.55, 0.04),
    "striatum": _tissue(0.82, 1230, 84, 42, 38, 1.12, 0.92, 1.45, 0.04),
    "pallidum": _tissue(0.75, 960, 66, 24, 40, 0.72, 1.05, 1.20, 0.03),
    "thalamus": _tissue(0.77, 1080, 82, 50, 35, 1.02, 1.02, 1.20, 0.03),
    "hippocampus": _tissue(0.84, 1500, 106, 60, 36, 0.78, 0.92, 1.05, 0.03),
    "cerebellar white": _tissue(0.70, 850, 75, 48, 29, 0.42, 1.15, 1.15, 0.02),
    "cerebellar cortex": _tissue(0.82, 1420, 95, 56, 38, 0.90, 0.88, 0.90, 0.04),
    "brainstem": _tissue(0.74, 970, 82, 48, 30, 0.56, 1.25, 1.25, 0.02),
    "csf": _tissue(1.00, 4200, 700, 330, 7, 0.06, 0.35, 0.40, 0.0),
    "oedema": _tissue(0.88, 1420, 150, 90, 21, 0.25, 1.00, 1.00, 0.02),
    "non-enhancing": _tissue(0.90, 1600, 145, 100, 30, 0.48, 0.90, 0.90, 0.06),
    "enhancing": _tissue(0.88, 1400, 112, 40, 38, 1.00, 0.90, 0.90, 0.75),
    "necrosis": _tissue(0.97, 2700, 330, 190, 15, 0.07, 0.50, 0.50, 0.05),
    "white matter lesion": _tissue(0.82, 1230, 122, 85, 22, 0.25, 1.10, 1.10, 0.02),
    "lacune": _tissue(1.00, 3900, 600, 300, 10, 0.06, 0.40, 0.40, 0.0),
    "microbleed": _tissue(0.65, 1100, 60, 4, 46, 0.35, 1.00, 1.00, 0.0),
    "calcification": _tissue(0.45, 1000, 50, 5, 160, 0.35, 1.00, 1.00, 0.0),
    "vessel": _tissue(0.25, 1650, 110, 35, 44, 0.30, 0.60, 0.60, 2.2),
}
INDEX: Mapping[str, int] = {name: k for k, name in enumerate(TISSUES)}
GREY = ("cortex", "striatum", "pallidum", "thalamus", "hippocampus", "cerebellar cortex")
WHITE = ("white", "cerebellar white")
PARENCHYMA = (*GREY, *WHITE, "brainstem")  # what a lesion may take the place of


def constants() -> Mapping[str, Array]:
    """One array over the tissues per constant."""
    names = [f.name for f in fields(Tissue)]
    columns = np.array([astuple(tissue) for tissue in TISSUES.values()], np.float32).T
    return dict(zip(names, columns, strict=True))


class Fractions:
    """How much of each voxel each tissue takes: `array` is K D H W, and sums to 1 in the brain and to 0 outside."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.array = np.zeros((len(TISSUES), *shape), np.float32)

    def __getitem__(self, name: str) -> Array:
        return cast(Array, self.array[INDEX[name]])

    def __setitem__(self, name: str, share_DHW: Array) -> None:
        self.array[INDEX[name]] = share_DHW

    def total(self, names: Sequence[str]) -> Array:
        return cast(Array, sum((self[name] for name in names), np.float32(0)))

    def turn(self, into: str, share_DHW: Array, within: Sequence[str] = PARENCHYMA, at: tuple[slice, ...] = ()) -> None:
        """A share (0 to 1) of the tissues `within` becomes `into`; `at` is the box of voxels that the share covers."""
        share = np.clip(share_DHW, 0, 1)
        where = at or (slice(None),) * 3
        for name in within:
            part = self[name][where]
            taken = part * share
            part -= taken
            self[into][where] += taken
