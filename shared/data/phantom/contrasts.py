"""What a made head's tissues look like: constants of everything in a head, and contrasts drawn from them or at random.

The brain's constants are those of tissues.py; what lies around it is added here. One value per class makes an image.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from shared.data.phantom.fields import Rng
from shared.data.phantom.tissues import TISSUES, Tissue

Values = NDArray[np.float32]

# FreeSurfer's labels of the brain, both sides, and SynthSeg's of the rest of the head.
HEAD_LABELS: Mapping[str, tuple[int, ...]] = {
    "white": (2, 41, 25, 57, 77, 85, 136, 163, 27, 59),
    "cortex": (3, 42, 137, 164),
    "striatum": (11, 50, 12, 51, 26, 58),
    "pallidum": (13, 52),
    "thalamus": (9, 10, 28, 48, 49, 60),
    "hippocampus": (17, 18, 53, 54),
    "cerebellar white": (7, 46),
    "cerebellar cortex": (8, 47),
    "brainstem": (16,),
    "ventricle": (4, 5, 14, 15, 43, 44, 72),
    "plexus": (30, 31, 62, 63),
    "csf": (24,),
    "eye": (506,),
    "muscle": (502, 507, 508),
    "mucosa": (509,),
    "skin": (511,),
    "cord": (512,),
    "dura": (514, 530),
    "bone": (515,),
    "marrow": (516,),
}


def _around(pd: float, t1: float, t2: float, t2s: float, hu: float, gd: float = 0.0) -> Tissue:
    return Tissue(pd=pd, t1=t1, t2=t2, t2s=t2s, hu=hu, fdg=0.2, amyloid_free=0.4, amyloid_full=0.4, gd_mM=gd)


CLASSES: Mapping[str, Tissue] = {
    "air": _around(0.0, 1000, 10, 1, -1000),
    **{name: TISSUES[name] for name in HEAD_LABELS if name in TISSUES},
    "ventricle": TISSUES["csf"],
    "plexus": _around(0.85, 1500, 150, 60, 40, 0.6),
    "eye": _around(0.98, 3600, 480, 200, 10),
    "muscle": _around(0.75, 1100, 38, 25, 52, 0.08),
    "fat": _around(0.90, 370, 68, 28, -95),
    "mucosa": _around(0.88, 1200, 110, 40, 35, 0.5),
    "skin": _around(0.75, 700, 40, 18, 20, 0.1),
    "cord": _around(0.74, 970, 82, 48, 32, 0.02),
    "dura": _around(0.60, 1300, 60, 20, 55, 1.2),
    "bone": _around(0.06, 600, 3, 0.8, 1150),
    "marrow": _around(0.70, 420, 60, 10, 350, 0.05),
}
INDEX: Mapping[str, int] = {name: k for k, name in enumerate(CLASSES)}
_FATTY = ("fat", "marrow", "skin")
RELAXIVITY = 4.5e-3  # of the contrast agent, 1 / (ms mM)
KINDS = {"T1": 0.13, "MPRAGE": 0.09, "T2": 0.13, "FLAIR": 0.12, "PD": 0.04, "T2S": 0.06, "CT": 0.13, "random": 0.30}


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """One value for each class; MR about 0 to 1, CT in HU."""

    kind: str
    values_K: Values

    @property
    def ct(self) -> bool:
        return self.kind == "CT"


def draw(rng: Rng, kind: str | None = None) -> Contrast:
    """A contrast by a signal equation, CT numbers, or values that follow nothing."""
    kind = kind or str(rng.choice(list(KINDS), p=list(KINDS.values())))
    if kind == "random":
        return Contrast(kind=kind, values_K=_at_random(rng))
    if kind == "CT":
        hu = _column("hu")
        soft = np.abs(hu) < 200
        values = hu * rng.normal(1, 0.12, len(hu)) + np.where(soft, rng.normal(0, 2.5, len(hu)), 0)
        return Contrast(kind=kind, values_K=np.where(hu < -900, -1000, values).astype(np.float32))
    signal = _signal(rng, kind)
    return Contrast(kind=kind, values_K=(signal / max(float(np.quantile(signal, 0.9)), 1e-6)).astype(np.float32))


def _signal(rng: Rng, kind: str) -> NDArray[np.float64]:
    between = rng.uniform
    spread = rng.uniform(0.03, 0.2)
    size = len(CLASSES)
    pd, t1, t2, t2s = (_column(name) * np.exp(rng.normal(0, spread, size)) for name in ("pd", "t1", "t2", "t2s"))
    t1 = t1 * between(0.6, 1.15)  # 1 T to 7 T
    if kind in ("T1", "MPRAGE") and rng.random() < 0.4:
        t1 = 1 / (1 / t1 + RELAXIVITY * _column("gd_mM") * between(0.5, 2))
    if kind == "T1":  # spoiled gradient echo, or spin echo
        if rng.random() < 0.5:
            tr, te, angle = between(6, 30), between(2, 8), np.deg2rad(between(12, 40))
            e1 = np.exp(-tr / t1)
            signal = pd * np.sin(angle) * (1 - e1) / (1 - np.cos(angle) * e1) * np.exp(-te / t2s)
        else:
            signal = pd * (1 - np.exp(-between(350, 800) / t1)) * np.exp(-between(8, 20) / t2)
    elif kind == "MPRAGE":
        signal = pd * np.abs(1 - 2 * np.exp(-between(700, 1150) / t1) / (1 + np.exp(-between(1800, 2600) / t1)))
    elif kind == "T2":
        signal = pd * (1 - np.exp(-between(2500, 8000) / t1)) * np.exp(-between(70, 140) / t2)
    elif kind == "FLAIR":
        recovered = np.abs(1 - 2 * np.exp(-between(1700, 2700) / t1) + np.exp(-between(6000, 12000) / t1))
        signal = pd * recovered * np.exp(-between(70, 150) / t2)
    elif kind == "PD":
        signal = pd * (1 - np.exp(-between(1500, 5000) / t1)) * np.exp(-between(8, 40) / t2)
    else:
        tr, te, angle = between(20, 900), between(8, 40), np.deg2rad(between(8, 40))
        e1 = np.exp(-tr / t1)
        signal = pd * np.sin(angle) * (1 - e1) / (1 - np.cos(angle) * e1) * np.exp(-te / t2s)
    if rng.random() < 0.25:  # fat is saturated
        signal[[INDEX[name] for name in _FATTY]] *= between(0.05, 0.4)
    if kind in ("T2", "PD", "T2S", "FLAIR") and rng.random() < 0.5:  # turbo spin echoes show fat bright
        signal[[INDEX[name] for name in _FATTY]] *= between(1.0, 2.2)
    return cast(NDArray[np.float64], signal)


def _at_random(rng: Rng) -> Values:
    """Every class its own value, some of them alike; air is mostly dark."""
    values = rng.uniform(0, 1, len(CLASSES))
    alike = rng.random()
    if alike < 0.4:  # one grey, one white, one fluid: as in an image
        grey, white, fluid = rng.uniform(0, 1, 3)
        for names, value in (
            (("cortex", "striatum", "thalamus", "hippocampus", "cerebellar cortex"), grey),
            (("white", "cerebellar white", "brainstem", "pallidum", "cord"), white),
            (("csf", "ventricle", "eye"), fluid),
        ):
            for name in names:
                values[INDEX[name]] = value + rng.normal(0, 0.04)
    if rng.random() < 0.85:
        values[INDEX["air"]] = rng.uniform(0, 0.05)
    return np.clip(values, 0, 1).astype(np.float32)


def _column(name: str) -> NDArray[np.float64]:
    return np.array([getattr(tissue, name) for tissue in CLASSES.values()], np.float64)
