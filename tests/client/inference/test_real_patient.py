"""A patient's scan of 1 mm through a bundle of phantoms' 3 mm: taken as it is, and brought back to its own voxels."""

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from support.cohort.shared_data import shared
from support.model.models import release

from client.inference.evaluate import evaluate_here
from client.inference.job import Asked
from client.inference.synthesize import synthesize
from shared.data.bids import find_files
from shared.data.cohort import Cohort, cache_folder, prepare
from shared.data.modalities import lesion_path
from shared.data.preparation import load
from shared.data.volumes import Grid, write
from shared.model.bundle import Bundle
from shared.model.model import read_model

pytestmark = pytest.mark.slow  # left out of `make fast`

GRID = Grid(spacing_mm=3.0, slice_mm=3.0, height=64, width=64)
OPTIONS = {"modalities": ["T1", "T1CE", "T2", "FLAIR"], "size": "tiny", "pretext": False, "precision": "fp32"}
DEMO = {  # ranges of the demo's bundle: the coordinator's three phantoms
    "version": 1,
    "from": "the coordinator's 3 subjects",
    "subjects": 3,
    "limits": {
        "geometry": {
            "brain volume in ml": [1530.0, 1660.0],
            "slice distance in mm": [3.0, 3.0],
            "pixel size in mm": [3.0, 3.0],
            "width in mm": [126.0, 135.0],
            "length in mm": [168.0, 186.0],
        },
        "T1": dict(
            zip(
                ("5 % quantile", "25 % quantile", "50 % quantile", "75 % quantile", "95 % quantile"),
                ([0.0753, 0.104], [0.341, 0.434], [0.485, 0.567], [0.702, 0.743], [0.873, 0.908]),
                strict=True,
            )
        ),
        "T2": dict(
            zip(
                ("5 % quantile", "25 % quantile", "50 % quantile", "75 % quantile", "95 % quantile"),
                ([0.0418, 0.0439], [0.115, 0.124], [0.224, 0.24], [0.398, 0.435], [0.821, 0.846]),
                strict=True,
            )
        ),
    },
}


def bundle_of(folder: Path) -> Bundle:
    final = release(folder / "final", "amm_diff", OPTIONS)
    record = json.loads((final / "model.json").read_text())
    record["grid"] = {"spacing_mm": 3.0, "slice_mm": 3.0, "height": 64, "width": 64}
    (final / "model.json").write_text(json.dumps(record))
    model = read_model(final)
    return Bundle(model=model, digest="d" * 64, signer="s" * 16, trusted=True, record={**model.record, "ranges": DEMO})


@pytest.fixture
def patient(tmp_path: Path) -> Path:
    folder = tmp_path / "bids" / "sub-07" / "anat"
    folder.mkdir(parents=True)
    for name, ending in {"T1w": "T1w", "T1ce": "ce-gd_T1w", "T2w": "T2w", "FLAIR": "FLAIR"}.items():
        shutil.copy(shared(f"nifti/ms-ljubljana/sub-07_{name}.nii.gz"), folder / f"sub-07_{ending}.nii.gz")
    shutil.copy(shared("nifti/ms-ljubljana/sub-07_lesion.nii.gz"), tmp_path / "bids" / lesion_path("07"))
    return folder.parent


def test_a_real_patient_goes_through_without_force_and_comes_back_in_its_own_voxels(
    patient: Path, tmp_path: Path
) -> None:
    done = synthesize(bundle_of(tmp_path), patient, tmp_path / "out", Asked(targets=("FLAIR",)))
    assert done.unusual is not None
    assert done.unusual.startswith("brain smaller, T1 brighter, T2 of another contrast than what the bundle")
    truth, made = nibabel.load(patient / "anat/sub-07_FLAIR.nii.gz"), nibabel.load(done.made["FLAIR"])
    assert made.shape == truth.shape
    assert np.array_equal(made.affine, truth.affine)
    brain = np.any(
        [nibabel.load(patient / f"anat/sub-07_{e}.nii.gz").get_fdata() for e in ("T1w", "ce-gd_T1w", "T2w")], 0
    )
    values = made.get_fdata()
    assert (values[brain] > 0).mean() > 0.98  # up to the last voxel of the brain but for slivers thinner than the grid
    assert (values[~brain] > 0).mean() < 0.01  # holes that the brain encloses
    sidecar = json.loads(done.made["FLAIR"].with_name("sub-07_desc-synthetic_FLAIR.json").read_text())
    assert not sidecar["Guard"]["Forced"]


def test_a_site_scores_a_bundle_on_it(patient: Path, tmp_path: Path) -> None:
    prepare(patient.parent, GRID, workers=0)
    cohort = Cohort.open(cache_folder(patient.parent, GRID))
    assert cohort.subjects[0].depth == 42
    done = evaluate_here(bundle_of(tmp_path), cohort, tmp_path / "out", every=8)
    hidden = done.lines.query("model == 'amm_diff' and region == 'brain'")
    assert (hidden["fitted"] > hidden["mean"]).all()


@pytest.mark.parametrize("sizes", [(1.0, 1.0, 1.0), (5.0, 0.8, 1.3), (3.0, 3.0, 3.0)])
def test_a_constant_comes_back_as_it_is_in_all_of_the_brain_and_nowhere_else(
    sizes: tuple[float, float, float], tmp_path: Path
) -> None:
    z, y, x = (np.arange(round(130 / mm)) * mm - 65 for mm in sizes)
    brain = (z[:, None, None] / 55) ** 2 + (y[:, None] / 60) ** 2 + (x / 50) ** 2 < 1
    folder = tmp_path / "sub-01" / "anat"
    folder.mkdir(parents=True)
    affine = np.diag([*sizes[::-1], 1.0])
    bright = np.where(brain, 100 + np.arange(brain.size).reshape(brain.shape) % 7, 0)
    write(folder / "sub-01_T1w.nii.gz", bright.astype(np.float32), affine)
    loaded = load(find_files(tmp_path, tmp_path / "sub-01"), GRID, lambda *_: None)
    made, inside = loaded.brought_back(np.where(loaded.brain_DHW, 0.7, 5.0).astype(np.float32))
    assert inside.shape == made.shape == brain.shape
    assert np.allclose(made[inside], 0.7, atol=1e-5)  # what lies outside of the grid's brain is not mixed in
    assert not made[~inside].any()
    assert not inside[~brain].any()
    assert inside[brain].mean() > 0.995
