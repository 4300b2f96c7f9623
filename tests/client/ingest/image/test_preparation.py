"""A subject's images on one grid, brain only; what can't be used costs itself alone; equal options, equal digest."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.cohort.heads import fruit, head, moved, put, random_pose

from client.ingest.image import atlas
from client.ingest.image.preparation import Preparation, prepare
from client.ingest.image.quality import Limits
from shared.base.errors import ConfigError, DataError
from shared.base.options import build, plain
from shared.data.intensities import find_scaling
from shared.data.modalities import MODALITIES
from shared.data.volumes import read

pytestmark = pytest.mark.slow  # left out of `make fast`


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(6)
    flair, fdg = (moved(head(m), random_pose(rng, mm=8, degrees=8)) for m in ("FLAIR", "FDG"))
    return {
        "T1": put(head("T1"), folder / "t1.nii.gz"),
        "FLAIR": put(flair, folder / "flair.nii.gz"),
        "FDG": put(fdg, folder / "fdg.nii.gz"),
        "T2": put(fruit(), folder / "fruit.nii.gz"),
    }


def test_a_subject_comes_out_on_its_references_grid(images: dict[str, Path]) -> None:
    ready = prepare(images, Preparation())
    assert ready.why is None
    assert set(ready.volumes) == {"T1", "FLAIR", "FDG"}
    assert "registration score" in ready.left["T2"]  # the fruit, excluded and not forced
    own = read(images["T1"])
    assert np.allclose(ready.affine, own.affine)
    for modality, data in ready.volumes.items():
        assert data.shape == own.data_DHW.shape
        assert (data[~ready.brain_DHW] == 0).all()
        assert (data[ready.brain_DHW] != 0).all()
        find_scaling(modality, data)  # raises where the cache would not take it
    inside = ready.brain_DHW & (atlas.load().grey_DHW > 0.9)
    still = head("FLAIR").data_DHW
    assert np.corrcoef(ready.volumes["FLAIR"][ready.brain_DHW], still[ready.brain_DHW])[0, 1] > 0.9
    assert ready.volumes["FDG"][inside].mean() == pytest.approx(
        1.0, abs=0.25
    )  # against the cerebellum's grey and white
    assert ready.quality.reference == "T1"
    assert ready.steps["FLAIR"]["LacunaPreparation"] == Preparation().digest
    assert ready.steps["FLAIR"]["SkullStripped"] is True


@pytest.mark.parametrize("options", [{"spacing_mm": 3.0}, {"to_template": True, "spacing_mm": 3.0}])
def test_a_grid_can_be_asked_for(images: dict[str, Path], options: dict[str, float]) -> None:
    ready = prepare({"T1": images["T1"]}, Preparation(**options))
    assert np.allclose(np.linalg.norm(ready.affine[:3, :3], axis=0), 3.0)
    ml = ready.brain_DHW.sum() * 27 / 1000
    assert ml == pytest.approx(atlas.load().brain_DHW.sum() * 8 / 1000, rel=0.05)


def test_a_reference_that_is_no_brain_is_left_and_the_next_one_taken(images: dict[str, Path]) -> None:
    ready = prepare({"T1": images["T2"], "FLAIR": images["FLAIR"]}, Preparation())
    assert ready.quality.reference == "FLAIR"
    assert "no brain" in ready.left["T1"]
    assert set(ready.volumes) == {"FLAIR"}


def test_no_brain_at_all_excludes_unless_a_person_accepted_it(images: dict[str, Path]) -> None:
    refused = prepare({"T1": images["T2"]}, Preparation())
    assert "no brain" in str(refused.why)
    accepted = prepare({"T1": images["T2"]}, Preparation(), accepted=True)
    assert accepted.why is None
    assert "a person accepted it" in accepted.quality.warnings[0]


def test_half_a_field_of_view_is_too_little(images: dict[str, Path], tmp_path: Path) -> None:
    whole = head("FLAIR")
    half = replace(whole, data_DHW=whole.data_DHW[:50])
    ready = prepare({"T1": images["T1"], "FLAIR": put(half, tmp_path / "half.nii.gz")}, Preparation())
    assert "covers" in ready.left["FLAIR"]


@pytest.mark.parametrize("content", [b"", b"no image"])
def test_a_file_that_is_no_image_is_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "t1.nii.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match="T1: "):
        prepare({"T1": path}, Preparation())


def test_the_digest_is_of_what_decides_the_images() -> None:
    usual = Preparation()
    assert usual.digest == Preparation().digest == build(Preparation, plain(usual), "preparation").digest
    changed = [
        Preparation(spacing_mm=1.0),
        Preparation(to_template=True),
        Preparation(n4=None),
        Preparation(limits=Limits(min_snr=3.0)),
        Preparation(order=tuple(reversed(MODALITIES))),
    ]
    assert len({usual.digest, *(one.digest for one in changed)}) == 1 + len(changed)


@pytest.mark.parametrize("options", [{"spacing_mm": 0.0}, {"order": ("T1",)}])
def test_a_wrong_option_fails_before_any_file_is_read(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Preparation(**options)  # type: ignore[arg-type]
