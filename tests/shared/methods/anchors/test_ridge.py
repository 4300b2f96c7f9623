import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from shared.base.records import Batch
from shared.methods.anchors.ridge import MeanImage, PatchRidge

M = 3


def batch_of(exists: list[list[int]], seed: int = 0, side: int = 12) -> Batch:
    """Modalities that are smooth mixtures of common fields, so that one tells of another."""
    g = torch.Generator().manual_seed(seed)
    fields = torch.rand(len(exists), 4, side, side, generator=g)
    mixture = torch.tensor([[0.6, 0.3, 0.1, 0.0], [0.1, 0.3, 0.6, 0.0], [0.4, 0.1, 0.4, 0.1]])
    images = torch.einsum("mf,bfhw->bmhw", mixture, fields) * 0.8 + 0.1
    images[:, :, :3] = 0
    exists_BM = torch.tensor(exists).bool()
    images[~exists_BM] = float("nan")
    return Batch(images_BMHW=images, exists_BM=exists_BM, shown_BM=exists_BM, subject_B=torch.arange(len(exists)))


def part(batch: Batch, rows: slice) -> Batch:
    return Batch(
        images_BMHW=batch.images_BMHW[rows],
        exists_BM=batch.exists_BM[rows],
        shown_BM=batch.shown_BM[rows],
        subject_B=batch.subject_B[rows],
    )


def settled(batch: Batch, **options: float) -> PatchRidge:
    ridge = PatchRidge(M, **options)  # type: ignore[arg-type]
    ridge.settle(ridge.sums(batch))
    return ridge


def by_hand(images: Tensor, shown: list[int], target: int, patch: int) -> Tensor:
    """Ordinary least squares with a constant, over the pixels of the brain."""
    x = F.unfold(images[:, shown].double(), patch, padding=patch // 2).permute(0, 2, 1).flatten(0, 1)
    y, inside = images[:, target].double().flatten(), (images > 0).any(1).flatten()
    x = torch.cat([x, torch.ones(len(x), 1)], dim=1)
    w = torch.linalg.lstsq(x[inside], y[inside, None], driver="gelsd").solution
    return torch.where(inside, (x @ w)[:, 0], 0.0).reshape(len(images), *images.shape[2:])


@pytest.mark.parametrize("patch", [1, 3])
def test_on_complete_data_it_is_least_squares(patch: int) -> None:
    batch = batch_of([[1] * M] * 12)
    ridge = settled(batch, patch=patch, strength=1e-9)
    for shown in ([0], [2], [0, 1], [1, 2]):
        target = next(m for m in range(M) if m not in shown)
        shown_BM = torch.zeros(12, M, dtype=torch.bool)
        shown_BM[:, shown] = True
        out = ridge(batch.images_BMHW, shown_BM)
        expected = by_hand(batch.images_BMHW, shown, target, patch).clamp(0, 1)
        torch.testing.assert_close(out[:, target].double(), expected, rtol=1e-3, atol=1e-3)


def test_with_hats_it_makes_any_curve_with_corners_at_the_levels() -> None:
    """A tent over an intensity has no slope on the whole: lines find nothing, five hats find it exactly."""
    batch = batch_of([[1] * M] * 12)
    images = batch.images_BMHW
    images[:, 1] = torch.where(images[:, 0] > 0, 0.9 - 1.4 * (images[:, 0] - 0.5).abs(), 0.0)
    shown = torch.tensor([[True, False, False]] * 12)
    errors = [
        float((settled(batch, levels=levels, strength=1e-9)(images, shown)[:, 1] - images[:, 1]).abs().max())
        for levels in (0, 5)
    ]
    assert errors[1] < 1e-3 < 0.1 < errors[0]


def test_sums_of_two_sites_with_different_gaps_are_the_pooled_sums() -> None:
    batch = batch_of([[1, 1, 0], [1, 1, 0], [0, 1, 1], [1, 0, 1]])
    ridge = PatchRidge(M)
    pooled = ridge.sums(batch)
    one, two = ridge.sums(part(batch, slice(0, 2))), ridge.sums(part(batch, slice(2, 4)))
    for name, value in pooled.items():
        torch.testing.assert_close(one[name] + two[name], value)


def test_each_pair_is_counted_where_both_exist() -> None:
    exists = [[1, 1, 0], [1, 1, 0], [0, 1, 1], [1, 0, 1], [1, 0, 0]]
    pixels = PatchRidge(M).sums(batch_of(exists))["pixels"] / (12 * 9)  # nine rows of brain
    expected = torch.tensor([[4, 2, 1], [2, 3, 1], [1, 1, 2]], dtype=torch.float64)
    assert torch.equal(pixels, expected)


def test_pairs_alone_give_what_no_subject_has() -> None:
    """No site sees all three modalities; the third from the other two still beats either alone."""
    complete = batch_of([[1] * M] * 30, seed=7)
    pairs = batch_of([[1, 1, 0]] * 30 + [[0, 1, 1]] * 30 + [[1, 0, 1]] * 30, seed=8)
    errors = {}
    for name, ridge in (("pairs", settled(pairs)), ("complete", settled(complete))):
        for shown in ([True, True, False], [True, False, False], [False, True, False]):
            out = ridge(complete.images_BMHW, torch.tensor([shown]).expand(30, -1))[:, 2]
            errors[name, sum(shown), shown[0]] = (out - complete.images_BMHW[:, 2]).square().mean()
    assert errors["pairs", 2, True] < min(errors["pairs", 1, True], errors["pairs", 1, False])
    assert errors["pairs", 2, True] < 1.5 * errors["complete", 2, True] + 1e-3


def test_blocks_that_do_not_fit_together_stay_harmless() -> None:
    """Three hospitals whose correlations contradict each other: no covariance has them all."""
    batch = batch_of([[1, 1, 0], [0, 1, 1], [1, 0, 1]])
    images = batch.images_BMHW.clone()
    images[0, 1], images[1, 2], images[2, 2] = images[0, 0], images[1, 1], 1 - images[2, 0]
    images[:, :, :3] = 0
    ridge = settled(
        Batch(images_BMHW=images, exists_BM=batch.exists_BM, shown_BM=batch.shown_BM, subject_B=batch.subject_B)
    )
    assert bool(ridge.weights_PMF.isfinite().all())
    assert ridge.weights_PMF.abs().max() < 3


def test_a_target_nobody_ever_had_is_blank() -> None:
    ridge = settled(batch_of([[1, 1, 0]] * 3))
    out = ridge(batch_of([[1, 1, 1]]).images_BMHW, torch.tensor([[True, True, False]]))
    assert not out[:, 2].any()


def test_hidden_garbage_leaves_every_bit_and_the_shown_stay_themselves() -> None:
    ridge = settled(batch_of([[1] * M] * 4))
    images = batch_of([[1] * M], seed=3).images_BMHW
    for pattern in itertools.product([False, True], repeat=M):
        shown = torch.tensor([pattern])
        outs = [ridge(torch.where(shown[:, :, None, None], images, bad), shown) for bad in (0.3, float("nan"), 1e9)]
        assert torch.equal(outs[0], outs[1])
        assert torch.equal(outs[0], outs[2])
        assert torch.equal(outs[0][shown], images[shown])
        assert not outs[0][:, :, :3].any()  # outside the brain


def test_it_holds_constants_only_and_they_travel_in_the_state() -> None:
    ridge = settled(batch_of([[1] * M] * 4))
    assert not list(ridge.parameters())
    other = PatchRidge(M)
    other.load_state_dict(ridge.state_dict())
    images, shown = batch_of([[1] * M], seed=3).images_BMHW, torch.tensor([[True, False, True]])
    assert torch.equal(other(images, shown), ridge(images, shown))


def test_the_mean_image_is_of_the_slices_that_exist() -> None:
    batch = batch_of([[1, 1, 0], [1, 0, 0], [1, 1, 0]])
    floor = MeanImage(M, 12, 12)
    floor.settle(floor.sums(batch))
    shown = torch.tensor([[True, False, False]])
    out = floor(batch.images_BMHW[:1], shown)
    torch.testing.assert_close(out[0, 0], batch.images_BMHW[0, 0])
    torch.testing.assert_close(out[0, 1], batch.images_BMHW[[0, 2], 1].mean(0))
    assert not out[0, 2].any()
