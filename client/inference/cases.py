"""A subject with raw data, on the model's grid: its clean volumes, its scans, its brain and its geometry.

Clean volumes give the geometry and the brain; a subject with raw data alone has both from an image without any prior
(CG-SENSE) and the file's header, or a spacing that is given.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.inference.measurements import OnGrid, Scan, Simulation, frame_of, from_file, scaling_from, simulated
from client.inference.sources import load_all
from shared.base.errors import DataError
from shared.base.options import require
from shared.base.vocabulary import Modality
from shared.data.bids import Sources
from shared.data.intensities import find_scaling
from shared.data.limits import SPACING_LIMITS
from shared.data.modalities import in_order
from shared.data.preparation import Loaded
from shared.data.volumes import Volume, read
from shared.model.bundle import Bundle

APART = 1.0  # voxels: how far a scan's header may place it from the subject's volumes


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw:
    """What is given besides the volumes."""

    measured: Mapping[Modality, Path] = field(default_factory=dict)  # k-space
    maps: Mapping[Modality, Path] = field(default_factory=dict)  # its coil maps, where they are not in the same file
    simulate: tuple[Modality, ...] = ()  # volumes of the subject to be measured and hidden
    simulation: Simulation = field(default_factory=Simulation)
    spacing_mm: tuple[float, float, float] | None = None  # x, y, z, where neither a volume nor a header says it

    def __post_init__(self) -> None:
        for modality in self.maps:
            require(modality in self.measured, "maps", modality, "of a modality that is measured")
        for modality in self.simulate:
            require(modality not in self.measured, "simulate", modality, "of a modality that is not measured already")
        if self.spacing_mm is not None:
            fits = all(SPACING_LIMITS[0] <= mm <= SPACING_LIMITS[1] for mm in self.spacing_mm)
            require(fits, "spacing", self.spacing_mm, f"{SPACING_LIMITS[0]} to {SPACING_LIMITS[1]} mm each")

    @property
    def modalities(self) -> tuple[Modality, ...]:
        return in_order({*self.measured, *self.simulate})


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A subject on the grid, with its raw data."""

    loaded: Loaded
    scans: Mapping[Modality, OnGrid]
    sense: Mapping[Modality, NDArray[np.float32]]  # on the subject's own grid
    truths: Mapping[Modality, Volume]  # of what was simulated
    geometry: str
    brain: str


def load_case(bundle: Bundle, sources: Sources, raw: Raw, inputs: Mapping[Modality, Path], seed: int) -> Case:
    truths = {m: _read(sources.files[m]) for m in raw.simulate}
    volumes = dataclasses.replace(sources, files=inputs, lesion=None)
    loaded = load_all(volumes, bundle, own_slices=True) if inputs else None  # k-space is measured slice by slice
    scans = {m: from_file(path, raw.maps.get(m), m) for m, path in raw.measured.items()}
    for m, truth in truths.items():
        with_name = f"{sources.files[m].name}: "
        try:
            scans[m] = simulated(truth, m, find_scaling(m, truth.data_DHW), raw.simulation, seed)
        except DataError as error:
            raise DataError(f"{with_name}{error}") from None
    scans = {m: scans[m] for m in in_order(scans)}
    reached = range(*loaded.placement.z) if loaded is not None else None
    first = next(iter(scans.values()))
    sense = {
        m: scan.sense(reached if reached is not None and _check_fits(scan, loaded) else range(scan.slices))
        for m, scan in scans.items()
    }
    if loaded is not None:
        geometry, brain = "of the subject's volumes", "what the subject's volumes show"
    else:
        loaded, geometry = _frame(bundle, sources, raw, first, sense[first.modality])
        brain = f"largest bright object of a CG-SENSE image of {first.modality}; a skull is not taken away"
        for scan in scans.values():
            _check_fits(scan, loaded)
    placed = {
        m: OnGrid(scan=scan, loaded=loaded, scaling=scaling_from(m, sense[m], loaded.own_brain_DHW))
        for m, scan in scans.items()
    }
    return Case(loaded=loaded, scans=placed, sense=sense, truths=truths, geometry=geometry, brain=brain)


def _read(path: Path) -> Volume:
    try:
        return read(path)
    except DataError as error:
        raise DataError(f"{path.name}: {error}") from None


def _check_fits(scan: Scan, loaded: Loaded | None) -> bool:
    """Refuse a scan of another matrix or, where its header says one, another place."""
    assert loaded is not None
    shape = (scan.slices, *scan.image_HW)
    if shape != loaded.placement.shape_DHW:
        have, need = (" x ".join(map(str, s)) for s in (shape, loaded.placement.shape_DHW))
        raise DataError(
            f"raw data of {scan.modality}: {have} (slices, rows, columns), and the subject's volumes have "
            f"{need}: must be registered to the scan's grid"
        )
    if scan.affine is not None:
        corners = np.array([[*np.multiply(c, shape[::-1]), 1] for c in np.ndindex(2, 2, 2)])
        apart = float(np.linalg.norm((corners @ (scan.affine - loaded.affine).T)[:, :3], axis=1).max())
        if apart > APART * float(np.linalg.norm(loaded.affine[:3, :3], axis=0).min()):
            raise DataError(
                f"raw data of {scan.modality}: lie up to {apart:.3g} mm from the subject's volumes: "
                "must be registered to the scan's grid"
            )
    return True


def _frame(
    bundle: Bundle, sources: Sources, raw: Raw, scan: Scan, sense_DHW: NDArray[np.float32]
) -> tuple[Loaded, str]:
    if scan.affine is not None:
        affine, geometry = scan.affine, f"header of the {scan.modality} scan"
    elif raw.spacing_mm is not None:
        affine, geometry = np.diag([*raw.spacing_mm, 1.0]), "spacing as given; place and directions are unknown"
        affine[:3, 3] = [-mm * (n - 1) / 2 for mm, n in zip(raw.spacing_mm, sense_DHW.shape[::-1], strict=True)]
    else:
        raise DataError(
            f"raw data of {scan.modality}: neither a volume of the subject nor the file's header says how "
            "large a voxel is; give its spacing"
        )
    loaded = frame_of(sense_DHW, affine, dataclasses.replace(bundle.model.grid, slice_mm=None))
    if scan.modality in raw.simulate:
        loaded = dataclasses.replace(loaded, reference=sources.files[scan.modality])
        geometry = f"of the hidden volume of {scan.modality}"
    return loaded, geometry
