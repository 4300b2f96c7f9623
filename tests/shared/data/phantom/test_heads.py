"""Made heads: their brain is known, equal keys make equal heads, and a scan is one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support.cohort.label_maps import ball_head, write_heads

from shared.base.errors import DataError
from shared.data import volumes
from shared.data.phantom import contrasts, heads, scans

pytestmark = pytest.mark.slow  # left out of `make fast`

SHAPE = (48, 48, 48)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> heads.Head:
    folder = tmp_path_factory.mktemp("heads")
    (path,) = heads.prepare(write_heads(folder / "maps", 1), folder / "cache")
    before = path.stat().st_mtime_ns
    assert heads.prepare(folder / "maps", folder / "cache") == [path]
    assert path.stat().st_mtime_ns == before
    return heads.load(path)


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def test_the_brain_is_tissue_ventricles_and_a_thin_coat(head: heads.Head) -> None:
    inside = slice(heads.MARGIN, heads.MARGIN + 96)
    brain = head.brain_DHW[:96, inside, inside] > 0
    labels = ball_head()
    assert brain[np.isin(labels, (2, 3, 4))].all()
    assert not brain[np.isin(labels, (0, 506, 507, 511, 515))].any()
    assert 0.2 < brain[labels == 24].mean() < 0.8
    assert head.centre_zyx == pytest.approx((47.5, 53.5, 53.5))


def test_eyes_and_nose_are_known_and_outside_of_the_brain(head: heads.Head) -> None:
    assert (head.face_DHW == 1).sum() == (ball_head() == 506).sum()
    assert (head.face_DHW == 2).any()
    assert not (head.brain_DHW.astype(bool) & (head.face_DHW > 0)).any()


def test_equal_keys_make_equal_heads_and_others_make_others(head: heads.Head) -> None:
    one, again, other = (heads.make(head, "a", n, shape=SHAPE) for n in (1, 1, 2))
    assert torch.equal(one.image_DHW, again.image_DHW)
    assert torch.equal(one.brain_DHW, again.brain_DHW)
    assert not torch.equal(one.brain_DHW, other.brain_DHW)


def test_a_halved_head_is_the_same_head(head: heads.Head) -> None:
    half = heads.halved(head)
    for number in range(3):
        whole, other = (heads.make(one, number, shape=SHAPE, face=True) for one in (head, half))
        assert dice((whole.brain_DHW > 0.5).numpy(), (other.brain_DHW > 0.5).numpy()) > 0.97
        assert other.face_DHW.max() <= 2


def test_age_widens_fluid_and_leaves_the_mask(head: heads.Head) -> None:
    fluid = [contrasts.INDEX[name] for name in ("csf", "ventricle")]
    before = np.isin(head.class_DHW, fluid).sum()
    after = [np.isin(heads.age(head, number).class_DHW, fluid).sum() for number in range(8)]
    assert min(after) >= before
    assert max(after) > 1.05 * before


@pytest.mark.parametrize("kind", contrasts.KINDS)
def test_every_contrast_has_a_value_for_each_class(kind: str) -> None:
    for seed in range(5):
        drawn = contrasts.draw(np.random.default_rng(seed), kind)
        assert np.isfinite(drawn.values_K).all()
        air, bone = (drawn.values_K[contrasts.INDEX[name]] for name in ("air", "bone"))
        assert (air == -1000 and bone > 500) if drawn.ct else drawn.values_K.min() >= 0
    assert abs(sum(contrasts.KINDS.values()) - 1) < 1e-9


def test_slices_are_means_and_come_back_as_they_were() -> None:
    """A constant stays one, and thick slices blur."""
    rng = np.random.default_rng(0)
    line = torch.zeros(60)
    line[30] = 1
    for thick in (2.0, 5.0):
        down, up = scans._slices(60, 2.0, thick, rng)
        assert torch.allclose(up @ (down @ torch.ones(60)), torch.ones(60), atol=1e-5)
        assert float((up @ (down @ line)).max()) <= 1.05 * 2.0 / thick + 0.3


def test_maps_that_are_no_whole_heads_are_refused(tmp_path: Path) -> None:
    labels = np.where(ball_head() < 500, ball_head(), 0)
    volumes.write(tmp_path / "brain.nii.gz", labels, np.eye(4), dtype=np.int16)
    with pytest.raises(DataError, match="no skull"):
        heads.prepare(tmp_path, tmp_path / "cache")
    with pytest.raises(DataError, match="holds no"):
        heads.prepare(tmp_path / "cache", tmp_path / "cache")
