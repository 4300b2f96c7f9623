"""One subject's files to its part of the cache, in any process: equal files give equal bytes.

A file that can't be used costs its modality, with a remark; a subject without any usable volume is excluded.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.base import files
from shared.base.errors import DataError
from shared.base.files import new_folder, write_text
from shared.base.options import build, plain
from shared.base.vocabulary import Modality
from shared.data.bids import Remark, Sources
from shared.data.intensities import Scaling, find_brain, find_scaling, judged_scaling, rules_version
from shared.data.volumes import LEAST_SHARE, Grid, Placement, Volume, read, within

PIPELINE = "3"  # raise it when the same files would give other bytes
BRAIN_SLICE = 1 / 6  # of the largest slice's brain area; 5 % of BraTS's field is that (docs/methods/amm_diff.md)
MISPLACED = 0.25  # of a voxel: how far the corners of two volumes of a subject may lie apart


Leave = Callable[[Path, str], None]  # (file, why it is left aside)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """One subject on the grid, in [0, 1], with its way back."""

    images_MDHW: NDArray[np.float32]
    brain_DHW: NDArray[np.bool_]
    own_brain_DHW: NDArray[np.bool_]  # the same in the subject's whole volume
    lesion_DHW: NDArray[np.uint8] | None
    scalings: Mapping[Modality, Scaling]  # of the modalities present, in the order of the images
    judged: Mapping[Modality, Scaling]  # on which each is judged as a truth
    placement: Placement
    affine: NDArray[np.float64]  # of the subject's whole RAS volume
    reference: Path | None  # the file whose geometry the others share; None: the affine alone says it

    def brought_back(self, stack_DHW: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """What was made on the grid, in the subject's whole volume, and the brain as far as the grid says it there."""
        share = self.placement.from_grid(self.brain_DHW)
        inside = self.own_brain_DHW & (share > LEAST_SHARE)
        made_DHW = within(self.placement.from_grid(np.where(self.brain_DHW, stack_DHW, 0)), share)
        return np.where(inside, made_DHW, 0), inside


def load(sources: Sources, grid: Grid, leave: Leave, *, grow: bool = False) -> Loaded:
    """A subject's usable volumes on the grid; a file that can't be used is left aside, none at all is a DataError.

    `grow`: on a larger grid, where the brain is too large for it.
    """
    volumes, scalings = _read_volumes(sources, leave)
    reference = next(iter(volumes))
    brain = find_brain({modality: volume.data_DHW for modality, volume in volumes.items()})
    placement = grid.place(brain, volumes[reference].affine, grow=grow)
    share = placement.to_grid(brain)
    inside = share >= 0.5
    images = [
        np.where(inside, within(placement.to_grid(scalings[modality].apply(volume.data_DHW, brain)), share), 0)
        for modality, volume in volumes.items()
    ]
    return Loaded(
        images_MDHW=np.stack(images),
        brain_DHW=inside,
        own_brain_DHW=brain,
        lesion_DHW=_read_lesion(sources.lesion, volumes[reference], placement, leave),
        scalings=scalings,
        judged={modality: judged_scaling(modality, volume.data_DHW) for modality, volume in volumes.items()},
        placement=placement,
        affine=volumes[reference].affine,
        reference=sources.files[reference],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of one subject."""

    subject: str
    entry: Mapping[str, Any] | None  # for cohort.json; None: excluded
    remarks: tuple[Remark, ...]
    renewed: bool


def prepare_subject(sources: Sources, *, grid: Grid, folder: Path, root: Path) -> Result:
    """One subject's folder in the cache, made anew if its files changed; `root` is the cohort's folder."""
    remarks = list(sources.remarks)

    def leave(path: Path, why: str) -> None:
        file = path.relative_to(root).as_posix()
        remarks.append(Remark(subject=sources.subject, file=file, done="skipped modality", why=why))

    def result(entry: Mapping[str, Any] | None, *, renewed: bool) -> Result:
        return Result(subject=sources.subject, entry=entry, remarks=tuple(remarks), renewed=renewed)

    if any(remark.done == "excluded" for remark in remarks):
        return result(None, renewed=False)
    hashes = {path.name: hash_file(path) for path in _files(sources)}
    key = hash_json([PIPELINE, rules_version(sources.files), plain(grid), hashes, [plain(r) for r in remarks]])
    target = folder / sources.subject
    stored = _stored(target, key)
    if stored is not None:
        remarks[:] = [build(Remark, remark, "remark") for remark in stored["remarks"]]
        return result(_entry(stored, target), renewed=False)
    try:
        loaded = load(sources, grid, leave)
    except (DataError, MemoryError) as error:
        why = str(error) or "not enough memory"
        remarks.append(Remark(subject=sources.subject, file="", done="excluded", why=why))
        return result(None, renewed=False)
    made = {"pipeline": PIPELINE, "key": key, "name": sources.subject, "read": hashes}
    meta = _write_subject(target, loaded, {**made, "remarks": [plain(remark) for remark in remarks]})
    return result(_entry(meta, target), renewed=True)


def brain_slices(brain_DHW: NDArray[np.bool_]) -> list[int]:
    """The slices that count as brain, from the neck up."""
    area_D = brain_DHW.sum(axis=(1, 2))
    return [int(z) for z in np.flatnonzero(area_D >= BRAIN_SLICE * area_D.max())]


def _read_volumes(sources: Sources, leave: Leave) -> tuple[dict[Modality, Volume], dict[Modality, Scaling]]:
    """The volumes that share the geometry most volumes of this subject have."""
    volumes: dict[Modality, Volume] = {}
    scalings: dict[Modality, Scaling] = {}
    for modality, path in sources.files.items():
        try:
            volume = read(path)
            scalings[modality] = find_scaling(modality, volume.data_DHW)
            volumes[modality] = volume
        except (DataError, MemoryError) as error:
            leave(path, str(error) or "not enough memory")
    if not volumes:
        raise DataError("no usable volume")
    agreeing = {m: sum(_why_apart(v, w) is None for w in volumes.values()) for m, v in volumes.items()}
    reference = max(volumes, key=lambda m: agreeing[m])  # the first of the canonical order among equals
    for modality in [m for m in volumes if m != reference]:
        why = _why_apart(volumes[modality], volumes[reference])
        if why is not None:
            leave(sources.files[modality], f"{why} than {reference}: must be registered to one grid")
            del volumes[modality], scalings[modality]
    return volumes, scalings


def _why_apart(one: Volume, other: Volume) -> str | None:
    """Why two volumes do not lie on one grid, or None."""
    if one.data_DHW.shape != other.data_DHW.shape:
        return f"another shape {one.data_DHW.shape}, not {other.data_DHW.shape},"
    corners_XYZ1 = np.array([[*np.multiply(c, one.data_DHW.shape[::-1]), 1] for c in np.ndindex(2, 2, 2)])
    apart = float(np.linalg.norm((corners_XYZ1 @ (one.affine - other.affine).T)[:, :3], axis=1).max())
    voxel = float(np.linalg.norm(other.affine[:3, :3], axis=0).min())
    return f"lies up to {apart:.3g} mm elsewhere" if apart > MISPLACED * voxel else None


def _read_lesion(path: Path | None, reference: Volume, placement: Placement, leave: Leave) -> NDArray[np.uint8] | None:
    if path is None:
        return None
    try:
        labels = read(path)
        why = _why_apart(labels, reference)
        if why is not None:
            raise DataError(f"{why} than the volumes")
        values = np.unique(labels.data_DHW)
        if values.min() < 0 or values.max() > 255 or (values != np.rint(values)).any():
            raise DataError(f"no label map: its values are {values[:4].tolist()} ...")
        return placement.labels_to_grid(labels.data_DHW)
    except DataError as error:
        leave(path, f"lesion map: {error}")
        return None


def _write_subject(target: Path, loaded: Loaded, made: Mapping[str, Any]) -> dict[str, Any]:
    """The whole folder appears at once; of a killed process only a hidden folder stays, swept by the next run."""
    images_DMHW = loaded.images_MDHW.swapaxes(0, 1).astype(np.float16, order="C")
    arrays: dict[str, NDArray[Any]] = {"vol.npy": images_DMHW, "brain.npy": loaded.brain_DHW.astype(np.uint8)}
    if loaded.lesion_DHW is not None:
        arrays["lesion.npy"] = loaded.lesion_DHW
    with new_folder(target) as new:
        for name, array in arrays.items():
            np.save(new / name, array)
        meta = {
            **made,
            "modalities": list(loaded.scalings),
            "shape": list(images_DMHW.shape),
            "brain_slices": brain_slices(loaded.brain_DHW),
            "placement": plain(loaded.placement),
            "affine": loaded.affine.tolist(),
            "scalings": plain(loaded.scalings),
            "judged": plain(loaded.judged),
            "written": {
                name: {"sha256": hash_file(new / name), "bytes": (new / name).stat().st_size} for name in arrays
            },
        }
        write_text(new / "meta.json", json.dumps(meta, indent=1, sort_keys=True), durable=False)
    return meta


def _stored(target: Path, key: str) -> dict[str, Any] | None:
    """The subject's meta.json, when it was made from the same files in the same way and all is there."""
    try:
        meta: dict[str, Any] = json.loads((target / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(meta, dict) and meta.get("key") == key and has_sizes(target, meta)
    return meta if whole else None


def _entry(meta: Mapping[str, Any], target: Path) -> dict[str, Any]:
    """A subject's part of cohort.json; split and clinical come from participants.tsv."""
    return {
        "name": meta["name"],
        "modalities": meta["modalities"],
        "depth": meta["shape"][0],
        "brain_slices": meta["brain_slices"],
        "lesion": "lesion.npy" in meta["written"],
        "bytes": sum(file["bytes"] for file in meta["written"].values()),
        "meta": hash_file(target / "meta.json"),
    }


def has_sizes(target: Path, meta: Mapping[str, Any]) -> bool:
    try:
        return all((target / name).stat().st_size == file["bytes"] for name, file in meta["written"].items())
    except (OSError, KeyError):
        return False


def _files(sources: Sources) -> Iterator[Path]:
    yield from sources.files.values()
    if sources.lesion is not None:
        yield sources.lesion


def hash_file(path: Path) -> str:
    """Empty when it can't be read: the reason comes when its content is wanted."""
    try:
        return files.hash_file(path)
    except OSError:
        return ""


def hash_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True).encode()).hexdigest()
