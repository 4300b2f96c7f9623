"""A small subject and its raw measurements, for tests of `reconstruct`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from support.cohort.raw import transform, write_fastmri

from shared.data.modalities import bids_path
from shared.data.volumes import write
from shared.diffusion.acquisition import birdcage

SHAPE = (5, 19, 22)  # the brain lies off the middle of it, and fits a grid of 16 x 16


AFFINE = np.array([[2.0, 0, 0, -14], [0, 1.5, 0, -16], [0, 0, 4.0, -8], [0, 0, 0, 1]])


def volumes(seed: int = 7) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    z, y, x = np.indices(SHAPE)
    brain = ((z - 2) / 2.4) ** 2 + ((y - 8) / 7.4) ** 2 + ((x - 12) / 6.4) ** 2 < 1
    inner = ((z - 2) / 2) ** 2 + ((y - 9) / 3.5) ** 2 + ((x - 11) / 4) ** 2 < 1
    levels = {"T1": (600, 900), "T2": (800, 400), "FLAIR": (500, 1000)}
    return {
        m: np.where(brain, np.where(inner, b, a) * (1 + 0.1 * rng.random(SHAPE)), 0).astype(np.float32)
        for m, (a, b) in levels.items()
    }


def subject(folder: Path, modalities: tuple[str, ...], name: str = "sub-07", affine: NDArray[Any] = AFFINE) -> Path:
    (folder / name).mkdir(parents=True, exist_ok=True)
    for modality in modalities:
        path = folder / bids_path(name, modality)
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, volumes()[modality], affine)
    return folder / name


def maps_of(coils: int = 4) -> NDArray[np.complex64]:
    return np.asarray(birdcage(coils, *SHAPE[1:])[0].numpy())


def kspace_of(data_DHW: NDArray[Any], coils: int = 4, noise: float = 0.0) -> NDArray[np.complex64]:
    rng = np.random.default_rng(1)
    y = transform(maps_of(coils) * data_DHW[:, None])
    return (y + noise / np.sqrt(2) * (rng.normal(size=y.shape) + 1j * rng.normal(size=y.shape))).astype(np.complex64)


def raw_file(path: Path, *, noise: float = 0.0, step: int = 1, maps: bool = True, extra: Any = 0.0) -> Path:
    mask = np.arange(SHAPE[2]) % step == SHAPE[2] // 2 % step
    others = {"sensitivity_maps": maps_of()} if maps else {}
    return write_fastmri(path, kspace_of(volumes()["FLAIR"] + extra, noise=noise), mask=mask, **others)


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def sidecar(out: Path, ending: str = "desc-reconstructed_FLAIR") -> dict[str, Any]:
    return dict(json.loads((out / f"sub-07/anat/sub-07_{ending}.json").read_text()))
