"""What `synthesize` and `reconstruct` write for a subject: volumes in its own grid, each with a sidecar, and a preview.

    OUT/sub-X/anat/sub-X_desc-synthetic_FLAIR.nii.gz     mean of the samples, in the inputs' grid and affine
                   sub-X_desc-uncertainty_FLAIR.nii.gz   their standard deviation, where there are several
                   sub-X_desc-synthetic_FLAIR.json       says that it is synthetic, from what, by which model
        sub-X_desc-preview.png

The sidecar comes last: where it is, with the key of the same inputs, the volumes are whole.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from shared.base.files import hash_file, make_folder, move, write_json
from shared.base.options import plain
from shared.base.vocabulary import Modality
from shared.data.intensities import RULES, Scaling
from shared.data.modalities import MODALITIES, Window
from shared.data.preparation import PIPELINE, Loaded
from shared.data.volumes import write, write_like
from shared.diffusion.samplers import Sampler
from shared.model.bundle import Bundle
from shared.trust.claims import NOT_STATED

WARNING = "Synthetic image. Not a measurement of this subject, and not for primary diagnosis."
PREVIEW_SLICES, PREVIEW_SD = 5, 0.2  # columns; the spread that is drawn white

Planes = Sequence[tuple[str, NDArray[Any]]]  # label and volume on the grid, in [0, 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What a method says of one modality, on the grid, and what its [0, 1] means in the volume's own values."""

    mean_DHW: Tensor
    sd_DHW: Tensor | None
    scaling: Scaling
    facts: Mapping[str, Any]  # of its sidecar


class Files:
    """Where a target's files belong; the sidecar is what says that they are whole."""

    def __init__(
        self, out: Path, subject: str, modality: Modality, what: str = "synthetic", sd: str = "uncertainty"
    ) -> None:
        form = MODALITIES[modality]
        *entities, suffix = form.ending.split("_")
        folder, stem = out / subject / form.folder, "_".join([subject, *entities])
        self.modality = modality
        self.mean = folder / f"{stem}_desc-{what}_{suffix}.nii.gz"
        self.sd = folder / f"{stem}_desc-{sd}_{suffix}.nii.gz"
        self.sidecar = folder / f"{stem}_desc-{what}_{suffix}.json"

    def are_whole(self, key: str) -> bool:
        try:
            sidecar = json.loads(self.sidecar.read_text(encoding="utf-8"))
            return bool(sidecar["Key"] == key) and all(
                hash_file(self.mean.parent / name) == digest for name, digest in sidecar["Files"].items()
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False  # made anew

    def read_sidecar(self) -> dict[str, Any]:
        """Of files that are whole."""
        return dict(json.loads(self.sidecar.read_text(encoding="utf-8")))


def write_volumes(files: Files, partial: Path, loaded: Loaded, made: Made) -> None:
    """Volumes into `partial`, then each to its place; the old sidecar goes first and the new one comes last."""
    scaling = made.scaling
    mean_DHW, brain_DHW = loaded.brought_back(made.mean_DHW.numpy())
    volumes = {files.mean: scaling.invert(mean_DHW, brain_DHW)}
    if made.sd_DHW is not None:
        sd_DHW, _ = loaded.brought_back(made.sd_DHW.numpy())
        volumes[files.sd] = sd_DHW * np.float32(scaling.high - scaling.low)
    for path, data_DHW in volumes.items():
        if loaded.reference is None:
            write(partial / path.name, data_DHW, loaded.affine)
        else:
            write_like(partial / path.name, data_DHW, loaded.reference)
    digests = {path.name: hash_file(partial / path.name) for path in volumes}
    make_folder(files.mean.parent)
    for path in (files.sidecar, files.sd):
        path.unlink(missing_ok=True)
    for path in volumes:
        move(partial / path.name, path)
    rule = RULES[files.modality]
    sidecar = {
        "Synthetic": True,
        "Description": WARNING,
        "Modality": files.modality,
        "Units": rule.unit if isinstance(rule, Window) else "arbitrary",
        "IntensityRange": [scaling.low, scaling.high],
        "OutsideTheBrain": 0,
        "Uncertainty": "standard deviation over samples, in the same units" if files.sd in volumes else None,
        **made.facts,
        "Files": digests,
    }
    write_json(files.sidecar, sidecar)


def inputs_facts(inputs: Mapping[Modality, Path]) -> dict[str, Any]:
    return {m: {"File": path.name, "SHA256": hash_file(path)} for m, path in inputs.items()}


def model_facts(bundle: Bundle, sampler: Sampler, seed: int) -> dict[str, Any]:
    return {
        "Model": bundle.model.name,
        "Bundle": {
            "SHA256": bundle.digest,
            "Run": bundle.record["provenance"].get("run"),
            "SignedBy": bundle.signer,
            "SignerTrusted": bundle.trusted,
        },
        "Privacy": bundle.record.get("privacy", {}).get("short", NOT_STATED),
        "Sampler": plain(sampler),
        "Samples": sampler.samples,
        "Seed": seed,
        "LacunaVersion": version("lacuna"),
    }


def made_from(bundle: Bundle, inputs: Mapping[Modality, Path], sampler: Sampler, seed: int) -> dict[str, Any]:
    """Everything that decides the result but its target."""
    return {
        "bundle": bundle.digest,
        "inputs": {m: hash_file(path) for m, path in inputs.items()},
        "sampler": plain(sampler),
        "seed": seed,
        "pipeline": PIPELINE,
        "lacuna": version("lacuna"),
    }


def key_of(source: Mapping[str, Any], target: Modality) -> str:
    return hashlib.sha256(json.dumps({**source, "target": target}, sort_keys=True).encode()).hexdigest()


def reached(loaded: Loaded) -> list[int]:
    """The slices that the brain reaches."""
    return [int(z) for z in np.flatnonzero(loaded.brain_DHW.any(axis=(1, 2)))]


def draw(loaded: Loaded, given: Planes, made: Mapping[str, Made], warning: str) -> Any:
    """A contact sheet: what was given, then what was made, by label, with its spread."""
    from shared.base import pictures  # draws with libraries that only this needs

    brain = loaded.brain_DHW
    slices = reached(loaded)
    shares = np.linspace(0.2, 0.8, PREVIEW_SLICES) * (len(slices) - 1)
    chosen = [slices[n] for n in shares.round().astype(int)]
    rows: list[list[NDArray[Any]]] = [[image[z] for z in chosen] for _, image in given]
    labels = [label for label, _ in given]
    for label, one in made.items():
        rows.append([np.where(brain[z], one.mean_DHW[z].numpy(), 0) for z in chosen])
        labels.append(label)
        if one.sd_DHW is not None:
            sd_DHW = one.sd_DHW.numpy() / PREVIEW_SD
            rows.append([np.where(brain[z], sd_DHW[z].clip(0, 1), 0) for z in chosen])
            labels.append(f"{label.partition(',')[0]}, spread")
    columns = [f"slice {loaded.placement.slice_at(z)}" for z in chosen]
    return pictures.mosaic(rows, labels, columns, warning)


def preview_path(out: Path, subject: str) -> Path:
    return out / subject / f"{subject}_desc-preview.png"


def describe(out: Path) -> None:
    """What BIDS wants of a folder of derived data."""
    described = {
        "Name": "Synthetic volumes made by Lacuna",
        "BIDSVersion": "1.9.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "lacuna", "Version": version("lacuna")}],
    }
    write_json(out / "dataset_description.json", described)
