"""The mean volume and the regression that volumes are told from, against closed forms."""

import math

import pytest
import torch
from torch import Tensor

from shared.methods.nets.anchor import RIDGE, Anchor

SHAPE = (6, 5, 7)


def brains(n: int, modalities: int = 3, seed: int = 0) -> Tensor:
    """Images whose modalities go together, in brains that fill all but a rim."""
    g = torch.Generator().manual_seed(seed)
    one = torch.rand(n, 1, *SHAPE, generator=g)
    images = 0.2 + 0.5 * one + 0.2 * torch.rand(n, modalities, *SHAPE, generator=g)
    images[..., 0] = 0
    return images


def pooled(anchor: Anchor, parts: list[tuple[Tensor, Tensor]], *, noise: float = 0.0) -> Anchor:
    held_M = torch.stack([exists for _, exists in parts]).any(0).any(0)
    for make, settle in (
        (anchor.mean_sums, lambda sums: anchor.settle_mean(sums, held_M)),
        (anchor.relation_sums, anchor.settle_relation),
    ):
        sums = [make(images, exists) for images, exists in parts]
        total = {name: sum((s[name] for s in sums[1:]), sums[0][name]) for name in sums[0]}
        settle({name: value + noise * torch.randn_like(value) for name, value in total.items()})
    return anchor


ALL = torch.ones(200, 3).bool()


def test_nothing_pooled_is_the_image_itself_and_expects_nothing() -> None:
    anchor = Anchor(3, SHAPE, 2)
    images = brains(2)
    differences, brain = anchor.differences(images, ALL[:2])
    assert torch.equal(
        differences[brain[:, None].expand_as(images)], (2 * images - 1)[brain[:, None].expand_as(images)]
    )
    assert not anchor.expected(0, differences, ALL[:2]).any()


@pytest.mark.parametrize("shown", [(1,), (2,), (1, 2)])
def test_one_cube_for_all_is_ridge_regression_in_closed_form(shown: tuple[int, ...]) -> None:
    images = brains(200)
    anchor = pooled(Anchor(3, SHAPE, 7), [(images, ALL)])  # the cube holds the whole volume
    differences, brain = anchor.differences(images, ALL)
    x = differences.movedim(1, -1)[brain].double()
    cov = x.T @ x / len(x)
    at = list(shown)
    ridge = RIDGE * torch.diag(cov.diagonal())
    weights = torch.linalg.solve((cov + ridge)[at][:, at], cov[at, 0])
    wanted = (x[:, at] * weights).sum(1)
    shown_BM = torch.zeros_like(ALL)
    shown_BM[:, at] = True
    found = anchor.expected(0, differences, shown_BM)
    torch.testing.assert_close(found[brain].double(), wanted, rtol=1e-3, atol=1e-4)
    assert not found[~brain].any()


def test_the_regression_tells_more_than_the_mean_of_subjects_it_has_not_seen() -> None:
    anchor = pooled(Anchor(3, SHAPE, 2), [(brains(200), ALL)])
    differences, _ = anchor.differences(brains(50, seed=1), ALL[:50])
    shown = torch.tensor([[True, True, False]]).expand(50, 3)
    left = differences[:, 2] - anchor.expected(2, differences, shown)
    assert left.square().mean() < 0.5 * differences[:, 2].square().mean()


def test_sites_sums_add_up_to_those_of_all_subjects_in_one_place() -> None:
    images, exists = brains(12), ALL[:12].clone()
    exists[:4, 1] = False
    exists[4:8, 2] = False
    images[~exists] = math.nan
    whole = pooled(Anchor(3, SHAPE, 2), [(images, exists)])
    sites = pooled(Anchor(3, SHAPE, 2), [(images[a : a + 4], exists[a : a + 4]) for a in (0, 4, 8)])
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(sites.state_dict()[name], value)
    assert torch.isfinite(whole.covariance_MMDHW).all()


def test_what_is_not_shown_and_what_is_asked_for_are_not_looked_at() -> None:
    anchor = pooled(Anchor(3, SHAPE, 2), [(brains(20), ALL[:20])])
    differences, _ = anchor.differences(brains(2, seed=3), ALL[:2])
    shown = torch.tensor([[True, True, False], [True, False, True]])
    wanted = anchor.expected(0, differences, shown)
    spoilt = differences.clone()
    spoilt[:, 0] = math.nan
    spoilt[0, 2] = spoilt[1, 1] = math.nan
    assert torch.equal(anchor.expected(0, spoilt, shown), wanted)
    for b in range(2):
        torch.testing.assert_close(anchor.expected(0, differences[b : b + 1], shown[b : b + 1])[0], wanted[b])


def test_pairs_of_different_subjects_always_fit_together() -> None:
    """One with two is everything, two with three as well, one with three is the opposite: no subjects are like that."""
    anchor = Anchor(3, SHAPE, 2)
    voxels = torch.full((6, 3, 3, 4), 1e6, dtype=torch.float64)
    together = torch.tensor([1.0, 1.0, -1.0, 1.0, 1.0, 1.0]).double()[:, None, None, None]
    anchor.settle_relation({"products": together * voxels, "voxels": voxels})
    values = torch.linalg.eigvalsh(anchor.covariance_MMDHW.flatten(2).permute(2, 0, 1))
    assert values.min() > 0.05
    differences = torch.rand(1, 3, *SHAPE)
    assert anchor.expected(0, differences, ALL[:1]).abs().max() < 3


def test_noised_sums_give_finite_weights() -> None:
    torch.manual_seed(0)
    anchor = pooled(Anchor(3, SHAPE, 2), [(brains(4), ALL[:4])], noise=50.0)
    differences, _ = anchor.differences(brains(2), ALL[:2])
    assert torch.isfinite(anchor.expected(1, differences, ALL[:2])).all()


def test_a_modality_that_nobody_has_is_told_from_one_half_and_says_nothing() -> None:
    exists = ALL[:8].clone()
    exists[:, 1] = False
    anchor = pooled(Anchor(3, SHAPE, 2), [(brains(8), exists)])
    assert bool((anchor.mean_MDHW[1] == 0.5).all())
    differences, _ = anchor.differences(brains(2), ALL[:2])
    only = torch.tensor([[False, True, False]] * 2)
    assert anchor.expected(0, differences, only).abs().max() < 1e-6


# --- a subject of the sums, told from the others ----------------------------------------------------------------------


def test_whom_the_sums_hold_is_told_as_if_they_did_not() -> None:
    images, exists = brains(12), ALL[:12].clone()
    exists[:4, 1] = False
    anchor = pooled(Anchor(3, SHAPE, 2), [(images, exists)])
    left = anchor.left_out(images, exists)
    for b in range(12):
        others = torch.arange(12) != b
        without = Anchor(3, SHAPE, 2)
        without.load_state_dict(anchor.state_dict())
        without.settle_relation(anchor.relation_sums(images[others], exists[others]))  # told from the mean of all
        torch.testing.assert_close(left.covariance_BMMDHW[b], without.covariance_MMDHW, rtol=1e-4, atol=1e-6)
        sums = anchor.mean_sums(images[others], exists[others])
        without.settle_mean(sums, exists.any(0))
        wanted, _ = without.differences(images[[b]], exists[[b]])
        torch.testing.assert_close(left.differences_BMDHW[b], wanted[0], rtol=0, atol=5e-3)  # the usual value moves too
    in_sample, _ = anchor.differences(images, exists)
    assert (left.differences_BMDHW - in_sample).abs().max() > 0.02


def test_training_subjects_are_told_as_badly_as_new_ones_are() -> None:
    """In small cubes a dozen subjects are learnt by heart: half of the error was not seen before they were left out."""
    images, new = brains(6), brains(60, seed=1)
    anchor = pooled(Anchor(3, SHAPE, 1), [(images, ALL[:6])])
    shown = torch.tensor([[False, True, True]])

    def error(differences: Tensor, covariance: Tensor | None = None) -> float:
        told = anchor.expected(0, differences, shown.expand(len(differences), -1), covariance)
        return (differences[:, 0] - told).square().mean().item()

    left = anchor.left_out(images, ALL[:6])
    by_heart, honest = error(anchor.differences(images, ALL[:6])[0]), error(*left[::2])
    fresh = error(anchor.differences(new, ALL[:60])[0])
    assert by_heart < 0.75 * fresh
    assert honest == pytest.approx(fresh, rel=0.2)


def test_where_nothing_is_kept_of_the_sums_nothing_is_taken_out() -> None:
    images, exists = brains(12), ALL[:12]
    anchor = pooled(Anchor(3, SHAPE, 2), [(images, exists)])
    anchor.wipe()
    left = anchor.left_out(images, exists)
    assert torch.equal(left.differences_BMDHW, anchor.differences(images, exists)[0])
    assert all(torch.equal(own, anchor.covariance_MMDHW) for own in left.covariance_BMMDHW)


def test_of_clipped_sums_a_subject_takes_no_more_than_they_hold() -> None:
    """A private site's sums are a part of each subject's: its whole products are not among them."""
    images, exists = brains(3), ALL[:3]
    anchor = Anchor(3, SHAPE, 2)
    for make, settle in (
        (anchor.mean_sums, lambda sums: anchor.settle_mean(sums, exists.any(0))),
        (anchor.relation_sums, anchor.settle_relation),
    ):
        settle({name: 0.01 * value for name, value in make(images, exists).items()})
    left = anchor.left_out(images, exists)
    told = anchor.expected(0, left.differences_BMDHW, exists, left.covariance_BMMDHW)
    assert told.abs().max() < 3
