"""One series to one NIfTI volume with its sidecar, by dcm2niix, and checked: HU for CT, uptake for PET.

A tilted CT is taken as dcm2niix's `_Tilt` output (its slices pushed back to a box), one of uneven slices as `_Eq`.
A conversion is done once: its folder is named by the files that it came from, and appears whole or not at all.
"""

import hashlib
import json
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dcm2niix
import numpy as np
from numpy.typing import NDArray

from client.ingest.arrive.records import read_sidecar
from client.ingest.image.resample import is_sheared
from client.ingest.image.suv import uptake
from client.ingest.recognise.series import Series
from shared.base.errors import DataError
from shared.base.files import make_folder, new_folder, write_text
from shared.base.vocabulary import Modality
from shared.data.volumes import read, read_stored, shape_and_affine, write

VERSION = "1"  # raise it when the same files would give another volume
PATIENCE = 900.0  # seconds for one series
MEMORY = 8 * 2**30  # bytes of address space for dcm2niix
AIR = -400.0  # HU: a CT in Hounsfield units has voxels below this, be they air or padding
_NO_VOLUME = ("_ROI", "_ph", "_real", "_imaginary", "_fieldmaphz", "_MoCo")


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """A volume that dcm2niix made of a series, and what it says of it."""

    nifti: Path
    sidecar: Mapping[str, Any]
    why: str  # what was done with its values


def estimate(series: Series) -> int:
    """Bytes on the private disk, an upper bound."""
    voxels = (series.first.real("Rows") or 0) * (series.first.real("Columns") or 0) * max(series.slices, 1)
    return int(voxels * (4 if series.kind == "PT" else 2))


def convert(series: Series, modality: Modality, folder: Path) -> Converted:
    """The volume of a whole series, in `folder`/<key>; DataError with one line for what can't be one."""
    target = folder / _key(series, modality)
    stored = _stored(target)
    if stored is not None:
        return stored
    with new_folder(target) as made:
        (made / "in").mkdir()
        for number, path in enumerate(series.paths):
            (made / "in" / f"{number:06d}.dcm").symlink_to(path.resolve())
        said = _run(made)
        nifti, sidecar = _choose(made, series, said)
        why = _check(nifti, series)
        if series.kind == "PT":
            why = _to_uptake(nifti, series, sidecar)
        elif series.kind == "CT":
            sidecar["Units"] = "HU"
        _keep(made, nifti, sidecar, why)
    found = _stored(target)
    assert found is not None
    return found


def decode(path: Path, folder: Path) -> NDArray[Any] | None:
    """One file's frames, as dcm2niix decodes them: it knows more compressions than pydicom does here."""
    make_folder(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".", suffix=".partial") as name:
        scratch = Path(name)
        (scratch / "in").mkdir()
        (scratch / "in" / "0.dcm").symlink_to(path.resolve())
        try:
            _run(scratch)
            made = sorted((scratch / "out").glob("*.nii"))
            return read_stored(made[0])[:, ::-1] if made else None  # NIfTI's rows begin below
        except DataError:  # the conversion of the series will name it
            return None


def is_converted(series: Series, modality: Modality, folder: Path) -> bool:
    return _stored(folder / _key(series, modality)) is not None


def _key(series: Series, modality: Modality) -> str:
    stats = [(header.sop, header.size) for header in series.headers]
    tags = sorted((name, str(value)) for name, value in series.tags.items())
    text = json.dumps([VERSION, modality, series.key, stats, tags], default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _stored(target: Path) -> Converted | None:
    nifti = target / "image.nii"
    try:
        content = json.loads((target / "image.json").read_text(encoding="utf-8"))
        if nifti.stat().st_size != content["bytes"]:
            return None
        return Converted(nifti=nifti, sidecar=content["sidecar"], why=content["why"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _run(folder: Path) -> str:
    """dcm2niix in its own process, with a limit on its time and memory and a look at what it says."""
    folder = folder.resolve()  # it becomes the working directory, from which a relative path would lead elsewhere
    out = folder / "out"
    out.mkdir()
    command = [dcm2niix.bin, "-g", "i", "-b", "y", "-ba", "y", "-z", "n", "-w", "1", "-f", "image"]
    command += ["-l", "n", "-o"]  # unsigned voxels as signed ones: it pushes back the tilt of no others
    process = subprocess.Popen(
        [*command, str(out), str(folder / "in")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=folder,
        env={"PATH": "", "HOME": str(folder), "LC_ALL": "C"},
    )
    try:
        resource.prlimit(process.pid, resource.RLIMIT_AS, (MEMORY, MEMORY))
        said = process.communicate(timeout=PATIENCE)[0].decode("utf-8", "replace")
    except ProcessLookupError:
        said = process.communicate()[0].decode("utf-8", "replace")
    except subprocess.TimeoutExpired:
        raise DataError(f"dcm2niix did not end within {PATIENCE:.0f} s") from None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if process.returncode < 0:
        raise DataError(f"dcm2niix died on it (signal {-process.returncode})")
    return said


def _choose(folder: Path, series: Series, said: str) -> tuple[Path, dict[str, Any]]:
    """The one volume among what dcm2niix wrote."""
    made = sorted((folder / "out").glob("*.nii"))
    tilted = [path for path in made if "_Tilt" in path.name]
    pool = tilted or made
    pool = [path for path in pool if "_Eq" in path.name] or pool
    pool = [path for path in pool if not any(word in path.name for word in _NO_VOLUME)]
    if not pool:
        known = "compressed in a way" if "transfer syntax" in said.lower() or "compress" in said.lower() else "a form"
        raise DataError(f"dcm2niix made no volume of it: {known} that it does not read")
    if len(pool) > 1:
        raise DataError(f"dcm2niix made {len(pool)} volumes of it: it holds more than one")
    sidecars = sorted((folder / "out").glob("*.json"), key=lambda path: len(path.name))
    return pool[0], read_sidecar(sidecars[0]) if sidecars else {}


def _check(nifti: Path, series: Series) -> str:
    """A volume of the slices that went in, finite, not blank, at right angles, and CT in Hounsfield units."""
    shape, affine = shape_and_affine(nifti)
    if is_sheared(affine):
        raise DataError("its slices do not stand at a right angle, and dcm2niix did not push them back")
    resampled = "_Tilt" in nifti.name or "_Eq" in nifti.name
    if not resampled and series.slices and series.slices not in shape:
        raise DataError(f"dcm2niix made a volume of {' x '.join(map(str, shape))} of {series.slices} slices")
    data_DHW = read(nifti).data_DHW
    low, high = float(data_DHW.min()), float(data_DHW.max())
    if not high > low:
        raise DataError(f"blank: every voxel is {low:g}")
    if series.kind == "CT" and low > AIR:
        raise DataError(f"CT with values from {low:g} to {high:g}: not in Hounsfield units, it holds no air")
    how = [name for name, mark in (("tilt corrected", "_Tilt"), ("slices evened", "_Eq")) if mark in nifti.name]
    return ", ".join(how)


def _to_uptake(nifti: Path, series: Series, sidecar: dict[str, Any]) -> str:
    found = uptake(series.headers)
    if found.factor != 1.0:
        volume = read(nifti)
        write(nifti, volume.data_DHW * np.float32(found.factor), volume.affine)
    sidecar["Units"] = found.unit
    return found.why


def _keep(folder: Path, nifti: Path, sidecar: Mapping[str, Any], why: str) -> None:
    """Leave the volume and its record alone in the folder."""
    nifti.rename(folder / "image.nii")
    shutil.rmtree(folder / "in")
    shutil.rmtree(folder / "out")
    content = {"sidecar": sidecar, "why": why, "bytes": (folder / "image.nii").stat().st_size}
    write_text(folder / "image.json", json.dumps(content, indent=1), durable=False)
