from pathlib import Path

import numpy as np
import pytest

from shared.base.errors import DataError
from shared.data import volumes
from shared.data.phantom import anatomy

pytestmark = pytest.mark.slow  # left out of `make fast`

EDGE = anatomy.EDGE


def volume_ml(brain: anatomy.Anatomy, region: str) -> float:
    return float((brain.region_DHW == anatomy.REGIONS.index(region)).sum()) / 1000


def write_label_map(path: Path, labels_DHW: np.ndarray) -> None:
    volumes.write(path, labels_DHW, np.diag([1.0, 1.0, 1.0, 1.0]), dtype=np.int16)


def ball_labels(edge: int = 60) -> np.ndarray:
    """White matter in cortex in fluid in skull, with a ventricle in the middle."""
    radius = np.sqrt(sum((axis - (edge - 1) / 2) ** 2 for axis in np.ogrid[:edge, :edge, :edge]))
    labels = np.zeros((edge,) * 3, np.int16)
    for reach, label in ((28, 515), (26, 24), (24, 3), (20, 2), (6, 4)):
        labels[radius < reach] = label
    return labels


def test_mni_needs_no_network_and_has_the_volumes_of_a_brain(mni_cache: Path) -> None:
    """The fixture refuses every connection."""
    brain = anatomy.load(anatomy.prepare(None, mni_cache)[0])
    tissue = (brain.region_DHW > 0) & (brain.fluid_DHW < 128)
    white = tissue & (brain.white_DHW >= 128)
    assert 1000 < tissue.sum() / 1000 < 1600
    assert 0.25 < white.sum() / tissue.sum() < 0.5
    for region, least, most in (
        ("thalamus", 6, 18),
        ("striatum", 8, 30),
        ("hippocampus", 4, 16),
        ("brainstem", 10, 45),
    ):
        assert least < volume_ml(brain, region) < most, region
    mirrored = brain.region_DHW[:, :, ::-1]
    assert (brain.region_DHW == mirrored).mean() > 0.97


def test_prepared_once_then_only_loaded(mni_cache: Path) -> None:
    (path,) = anatomy.prepare(None, mni_cache)
    before = path.stat().st_mtime_ns
    assert anatomy.prepare(None, mni_cache) == [path]
    assert path.stat().st_mtime_ns == before
    assert not list(mni_cache.glob(".*"))
    brain = anatomy.load(path)
    assert brain.region_DHW.shape == (EDGE,) * 3
    assert brain.pull_3DHW.shape == (3, *(EDGE // anatomy.PULL_STEP,) * 3)


def test_label_maps_give_regions_and_levels_around_the_middle(tmp_path: Path) -> None:
    (tmp_path / "maps").mkdir()
    write_label_map(tmp_path / "maps" / "a.nii.gz", ball_labels())
    (path,) = anatomy.prepare(tmp_path / "maps", tmp_path / "cache")
    brain = anatomy.load(path)
    middle = EDGE // 2
    along = (middle, middle, slice(middle, None))
    assert anatomy.REGIONS[brain.region_DHW[middle, middle, middle]] == "ventricle"
    assert brain.fluid_DHW[along][[0, 25, 40]].min() > 250  # ventricle, sulci, skull
    assert brain.fluid_DHW[along][15] < 10
    assert brain.white_DHW[along][12] > 250
    assert brain.white_DHW[along][22] < 5
    assert volume_ml(brain, "outside") + volume_ml(brain, "cerebrum") + volume_ml(brain, "ventricle") == EDGE**3 / 1000
    assert all(abs(edge - 23.5) < 1 for edge in brain.half_mm)  # fluid and skull do not count


def test_the_pull_points_to_the_ventricle(tmp_path: Path) -> None:
    write_label_map(tmp_path / "a.nii.gz", ball_labels())
    brain = anatomy.from_labels(tmp_path / "a.nii.gz")
    middle = EDGE // anatomy.PULL_STEP // 2
    toward_x = brain.pull_3DHW[2, middle, middle]
    assert toward_x[middle + 2] < -0.1
    assert toward_x[middle - 3] > 0.1


@pytest.mark.parametrize("content", ["nothing", "no brain"])
def test_a_folder_that_can_not_be_used_is_named(tmp_path: Path, content: str) -> None:
    if content == "no brain":
        write_label_map(tmp_path / "skull.nii.gz", np.full((8, 8, 8), 515))
    with pytest.raises(DataError, match=r"anatomy.*label"):
        anatomy.prepare(tmp_path, tmp_path / "cache")
