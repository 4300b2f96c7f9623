"""What is no brain is refused, whatever its name says; real brains pass; noise and ghosts show in their figures."""

from pathlib import Path

import numpy as np
import pytest
from support.cohort.heads import fruit, grid_phantom, head
from support.cohort.shared_data import shared, unpacked

from client.ingest.arrive.collect import collect
from client.ingest.image import atlas, brain, quality, template
from client.ingest.image.convert import convert
from client.ingest.image.preparation import Preparation, _find_brain, prepare
from client.ingest.image.quality import Limits
from client.ingest.recognise.series import group
from shared.base.errors import ConfigError, DataError
from shared.data.volumes import Volume, read

pytestmark = pytest.mark.slow  # left out of `make fast`


def verdict(volume: Volume, modality: str = "T1") -> str | None:
    """What the preparation says of a reference volume."""
    try:
        found, fit = _find_brain(volume, modality, Preparation(), None)
    except DataError as error:
        return str(error)
    return quality.why_no_brain(quality.of_brain(volume, found.mask_DHW, fit), Limits())


@pytest.mark.parametrize("modality", ["T1", "T2", "FLAIR", "FDG"])
def test_a_brain_is_a_brain_in_any_contrast(modality: str) -> None:
    assert verdict(head(modality), modality) is None


def test_a_fruit_as_large_as_a_brain_is_none() -> None:
    """Its size and outline would pass: its insides do not."""
    volume = fruit()
    mask = brain.stripped_before(volume, "T1")
    assert mask is not None
    figures = quality.of_brain(volume, mask, template.fit(volume, mask))
    limits = Limits()
    assert limits.brain_ml[0] <= figures.ml <= limits.brain_ml[1]
    assert figures.overlap > limits.min_overlap
    assert figures.tissue < 0.5 * limits.min_tissue
    assert "no brain" in str(quality.why_no_brain(figures, limits))


def test_the_outline_of_a_brain_full_of_noise_is_none() -> None:
    mask = atlas.load().brain_DHW
    noise = 100 + 20 * np.random.default_rng(0).standard_normal(mask.shape)
    assert "no brain" in str(
        verdict(Volume(data_DHW=np.where(mask, noise, 0).astype(np.float32), affine=head("T1").affine))
    )


@pytest.mark.slow
def test_a_grid_phantom_is_no_brain() -> None:
    assert "no brain" in str(verdict(grid_phantom()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "modality"),
    [
        ("ms-ljubljana/sub-07_T1w", "T1"),
        ("ms-ljubljana/sub-07_FLAIR", "FLAIR"),
        ("stroke-cstar/T2", "T2"),
        ("stroke-cstar/FLAIR", "FLAIR"),
    ],
)
def test_real_brains_pass(file: str, modality: str) -> None:
    assert verdict(read(shared(f"nifti/{file}.nii.gz")), modality) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("archive", "says"),
    [
        ("ge_t1", "BRAIN"),  # a grid phantom, whatever its header says
        ("deident", ""),  # a fruit
    ],
)
def test_a_real_series_of_what_is_no_brain_is_refused(archive: str, says: str, tmp_path: Path) -> None:
    (series,) = group(collect(unpacked(f"dicom/{archive}.tar.xz"))[0])[0]
    assert series.first.text("BodyPartExamined") == says
    ready = prepare({"T1": convert(series, "T1", tmp_path).nifti}, Preparation())
    assert "no brain" in str(ready.why)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ml": 300.0}, "holds 300 ml"),
        ({"length_mm": 90.0}, "length of 90 mm"),
        ({"overlap": 0.5}, "outline"),
        ({"tissue": 0.05}, "explain 5%"),
        ({}, None),
    ],
)
def test_each_bound_has_its_line(change: dict[str, float], says: str | None) -> None:
    usual = {"ml": 1300.0, "length_mm": 165.0, "width_mm": 135.0, "height_mm": 130.0, "overlap": 0.95, "tissue": 0.5}
    why = quality.why_no_brain(quality.BrainFigures(**{**usual, "cut": 0.0, **change}), Limits())
    assert (why is None) if says is None else says in str(why)


def test_snr_follows_the_noise() -> None:
    mask = np.ones((30, 30, 30), np.bool_)
    rng = np.random.default_rng(0)
    z = np.indices(mask.shape)[0]
    for noise in (5.0, 10.0, 20.0):
        image = (200 + z + noise * rng.standard_normal(mask.shape)).astype(np.float32)
        assert quality.snr(image, mask) == pytest.approx(215 / noise, rel=0.1)


def test_a_ghost_shows_beside_the_head() -> None:
    rng = np.random.default_rng(0)
    image = np.abs(rng.standard_normal((20, 64, 64))).astype(np.float32)
    image[:, 24:40, 24:40] += 300
    clean = quality.ghost(image)
    image[:, 50:60, 24:40] += 15  # along the columns that hold the head
    ghosted = quality.ghost(image)
    assert clean is not None
    assert ghosted is not None
    assert clean < 1.2 < 2 < ghosted
    assert quality.ghost(np.where(image > 100, image, 0)) is None  # a blank background tells nothing


def test_bounds_must_be_bounds() -> None:
    with pytest.raises(ConfigError, match="brain_ml"):
        Limits(brain_ml=(2000.0, 100.0))
