"""Angiograms against closed forms: projections, trees that are cut, twigs that are lost."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from shared.base.errors import ConfigError
from shared.model.angiograms import (
    VIEWS,
    Mask,
    Threshold,
    cldice,
    dice,
    image_scores,
    mip,
    skeleton,
    vessel_scores,
    vessels,
)
from shared.model.metrics import PSNR_CAP

SHAPE = (20, 24, 28)  # D H W, all different


def tube(radius: float = 2.2, *, at: tuple[int, int] = (10, 12), gap: int = 0) -> Mask:
    """Along W through (z, y), cut in the middle by `gap` voxels."""
    z, y, x = np.indices(SHAPE)
    whole = ((z - at[0]) ** 2 + (y - at[1]) ** 2 <= radius**2) & (x >= 3) & (x < 25)
    return np.asarray(whole & ~((x >= 14) & (x < 14 + gap)), dtype=bool)


def brain() -> torch.Tensor:
    return torch.ones(SHAPE, dtype=torch.bool)


def image(mask: NDArray[np.bool_], level: float = 0.8) -> torch.Tensor:
    return torch.from_numpy(mask).float() * level


def test_each_view_projects_its_own_axis() -> None:
    point_DHW = torch.zeros(SHAPE)
    point_DHW[5, 11, 23] = 1.0
    seen = {view: mip(point_DHW, view) for view in VIEWS}
    assert {view: tuple(one.shape) for view, one in seen.items()} == {
        "axial": (24, 28),
        "sagittal": (20, 24),
        "coronal": (20, 28),
    }
    assert {view: tuple(one.nonzero()[0].tolist()) for view, one in seen.items()} == {
        "axial": (11, 23),
        "sagittal": (5, 11),
        "coronal": (5, 23),
    }


def test_a_constant_error_has_a_closed_form() -> None:
    truth_DHW = 0.2 + 0.5 * torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))
    found = image_scores(truth_DHW + 0.03, truth_DHW, brain())
    for place in ("volume", *VIEWS):
        assert found[f"{place} rmse"] == pytest.approx(3.0, rel=1e-4)
        assert found[f"{place} psnr"] == pytest.approx(-20 * math.log10(0.03), rel=1e-4)
        assert 0.9 < found[f"{place} ssim"] < 1


def test_the_truth_is_perfect_and_one_wrong_voxel_weighs_more_in_its_projection() -> None:
    truth_DHW = image(tube())
    found = image_scores(truth_DHW, truth_DHW, brain())
    assert all(found[f"{place} psnr"] == PSNR_CAP and found[f"{place} rmse"] == 0 for place in ("volume", *VIEWS))
    wrong_DHW = truth_DHW.clone()
    wrong_DHW[1, 1, 1] = 1.0
    found = image_scores(wrong_DHW, truth_DHW, brain())
    assert found["volume rmse"] == pytest.approx(100 / math.sqrt(math.prod(SHAPE)))
    assert found["axial rmse"] == pytest.approx(100 / math.sqrt(24 * 28))
    assert found["sagittal rmse"] == pytest.approx(100 / math.sqrt(20 * 24))
    assert found["coronal rmse"] == pytest.approx(100 / math.sqrt(20 * 28))


def test_nothing_outside_the_brain_is_looked_at() -> None:
    """Neither by the volume's metrics, nor through a projection, nor by the threshold."""
    inside_DHW = brain()
    inside_DHW[:, :, :3] = False
    truth_DHW = image(tube())
    poisoned_DHW = truth_DHW.clone()
    poisoned_DHW[:, :, :3] = 1.0
    assert image_scores(poisoned_DHW, truth_DHW, inside_DHW) == image_scores(truth_DHW, truth_DHW, inside_DHW)
    assert np.array_equal(vessels(poisoned_DHW, inside_DHW, Threshold()), tube())


def test_hysteresis_keeps_the_faint_end_of_a_vessel_and_no_faint_spot() -> None:
    truth = tube(at=(6, 12))
    faint = tube(at=(14, 12))
    levels_DHW = image(truth, 0.3)
    levels_DHW[:, :, 12:] *= 2
    levels_DHW += image(faint, 0.3)
    assert np.array_equal(vessels(levels_DHW, brain(), Threshold(low=0.25, high=0.5)), truth)
    assert np.array_equal(vessels(levels_DHW, brain(), Threshold(low=0.25, high=0.25)), truth | faint)
    for wrong in ({"low": 0.0}, {"low": 0.5, "high": 0.4}, {"high": 1.1}):
        with pytest.raises(ConfigError):
            Threshold(**wrong)


def test_a_broken_tube_has_one_component_more() -> None:
    whole, broken = tube(), tube(gap=2)
    found = vessel_scores(broken, whole)
    assert (found["components"], found["components_off"]) == (2, 1)
    assert vessel_scores(whole, whole)["components_off"] == 0
    assert vessel_scores(whole, broken)["components_off"] == 1
    assert vessel_scores(whole, whole)["largest_share"] == 1
    assert found["largest_share"] == pytest.approx(11 / 20)  # slices 3 to 13 and 16 to 24
    assert found["largest_covered"] == pytest.approx(11 / 22)


def test_parts_that_touch_at_a_corner_are_one() -> None:
    corner = np.zeros(SHAPE, bool)
    corner[4, 4, 4] = corner[5, 5, 5] = True
    assert vessel_scores(corner, corner)["components"] == 1


def test_cldice_of_itself_is_one_and_the_order_of_the_two_does_not_matter() -> None:
    whole, broken, other = tube(), tube(gap=3), tube(1.2, gap=8)
    for mask in (whole, broken, other, np.ones(SHAPE, bool)):
        assert cldice(mask, mask) == dice(mask, mask) == 1
    for one, two in ((whole, broken), (whole, other), (broken, other)):
        assert cldice(one, two) == pytest.approx(cldice(two, one))
        assert 0 < cldice(one, two) < 1
    assert cldice(whole, tube(at=(3, 4))) == 0


def test_cldice_misses_a_thin_twig_where_dice_does_not() -> None:
    trunk, twig = tube(3.2, at=(7, 8)), tube(0.5, at=(15, 17))
    truth, lost = trunk | twig, trunk
    assert dice(lost, truth) > 0.97
    assert cldice(lost, truth) < 0.75
    thick = trunk | tube(1.1, at=(15, 17))  # a twig too thick is no twig lost
    assert cldice(thick, truth) == 1 > dice(thick, truth)


def test_cldice_falls_by_the_length_of_a_gap() -> None:
    line = tube(0.5)
    assert cldice(tube(0.5, gap=4), line) == pytest.approx(2 * (18 / 22) / (1 + 18 / 22))


def test_a_skeleton_is_thin_inside_and_never_empty() -> None:
    for mask in (tube(0.5), tube(2.2), tube(3.2), np.ones(SHAPE, bool)):
        line = skeleton(mask)
        assert line.any()
        assert not (line & ~mask).any()
    assert np.array_equal(skeleton(tube(0.5)), tube(0.5))
    middle = skeleton(tube(3.2))[:, :, 8:20]
    assert middle.any(axis=(0, 1)).all()  # it runs through the whole tube
    assert middle.sum() < 0.2 * tube(3.2)[:, :, 8:20].sum()


def test_an_empty_prediction_scores_nothing_and_not_nan() -> None:
    nothing, whole = np.zeros(SHAPE, bool), tube()
    assert vessel_scores(nothing, whole) == {
        "dice": 0,
        "cldice": 0,
        "components": 0,
        "components_off": 1,
        "largest_share": 0,
        "largest_covered": 0,
    }
    assert vessel_scores(whole, nothing)["cldice"] == vessel_scores(whole, nothing)["largest_covered"] == 0
    both = vessel_scores(nothing, nothing)
    assert both["dice"] == both["cldice"] == both["largest_covered"] == 1
    assert not vessels(torch.zeros(SHAPE), brain(), Threshold()).any()
