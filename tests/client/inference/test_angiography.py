"""TOF at a site, from any of its sequences: in the source's grid, by windows, whatever the size of the volume."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from support.cohort.worlds import subject_volumes
from support.model.models import release

from client.inference.job import Asked
from client.inference.synthesize import synthesize
from shared.base.errors import ConfigError, DataError
from shared.data.modalities import bids_path
from shared.data.volumes import write
from shared.diffusion.samplers import Sampler
from shared.model.bundle import Bundle
from shared.model.model import read_model

pytestmark = pytest.mark.slow  # left out of `make fast`

AFFINE = np.array([[-2.0, 0.1, 0, 14], [0.1, 2.0, 0, -16], [0, 0, 2.5, -20], [0, 0, 0, 1]])
OPTIONS = {"modalities": ["T1", "T2", "FLAIR", "TOF"], "size": "tiny", "slab": 5, "times": 50, "precision": "fp32"}
BRIDGE = Sampler(kind="bridge", steps=2, eta=1.0, samples=2)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    model = read_model(release(tmp_path_factory.mktemp("run") / "final", "mmdm", OPTIONS, edge=16))
    return Bundle(model=model, digest="d" * 64, signer="s" * 16, trusted=True, record=model.record)


def subject(folder: Path, modalities: tuple[str, ...], edge: int) -> Path:
    for modality, data in subject_volumes(7, modalities, edge).items():
        path = folder / bids_path("sub-07", modality)
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, data.astype(np.float32), AFFINE)
    return folder / "sub-07"


@pytest.mark.parametrize("edge", [16, 40])  # 40: a brain more than twice as wide as the grid that it was trained on
@pytest.mark.parametrize("held", [("T1", "T2", "FLAIR"), ("T2",)])
def test_it_lies_in_the_source_grid(bundle: Bundle, tmp_path: Path, edge: int, held: tuple[str, ...]) -> None:
    folder = subject(tmp_path, held, edge)
    done = synthesize(bundle, folder, tmp_path / "out", Asked(sampler=BRIDGE))
    assert set(done.made) == {"TOF"}  # and never FLAIR, which it can't make
    given, made = nibabel.load(folder / "anat" / "sub-07_T2w.nii.gz"), nibabel.load(done.made["TOF"])
    assert made.shape == given.shape
    assert np.array_equal(made.affine, given.affine)
    brain = given.get_fdata() > 0
    values = made.get_fdata()
    assert values[~brain].max() == 0
    reached = (values != 0) & brain
    assert reached.sum() > 0.9 * brain.sum()  # windows left nothing out


def test_a_source_is_no_target(bundle: Bundle, tmp_path: Path) -> None:
    folder = subject(tmp_path, ("T1", "T2"), 16)
    with pytest.raises(DataError, match="target FLAIR: the bundle makes TOF"):
        synthesize(bundle, folder, tmp_path / "out", Asked(targets=["FLAIR"]))


def test_a_sampler_that_is_no_bridge_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    folder = subject(tmp_path, ("T1", "T2"), 16)
    with pytest.raises(ConfigError, match="sampler=ddim: this method is a bridge from its source"):
        synthesize(bundle, folder, tmp_path / "out", Asked(sampler=Sampler(kind="ddim", steps=2)))


def test_no_noise_is_the_same_image_whatever_the_seed(bundle: Bundle, tmp_path: Path) -> None:
    folder = subject(tmp_path, ("T1", "T2"), 16)
    still = Sampler(kind="bridge", steps=3, eta=0.0)
    made = [
        nibabel.load(
            synthesize(bundle, folder, tmp_path / f"out{seed}", Asked(sampler=still, seed=seed)).made["TOF"]
        ).get_fdata()
        for seed in (1, 2)
    ]
    assert np.array_equal(*made)
