"""The floors of whole volumes: sums that pool, least squares at every voxel, and what few subjects need."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from support.cohort.worlds import write_world
from torch import Tensor

from shared.base.errors import DataError
from shared.data.cohort import Cohort, cache_folder
from shared.data.slices import Slices
from shared.data.volumes import Grid
from shared.methods.baselines.voxelwise import MEAN_VOLUME, VOXELWISE, MeanVolume, VoxelRegression, floors_3d

M, SHAPE = 3, (4, 6, 5)
BLANK = 2  # so many first rows are no brain


def subjects(count: int, seed: int = 0, noise: float = 0.05) -> Tensor:
    """N M D H W: each voxel has its own linear law among modalities, near one that all voxels share."""
    g = torch.Generator().manual_seed(seed)
    law = torch.Generator().manual_seed(99)
    mixture = torch.tensor([[0.5, 0.2], [0.2, 0.5], [0.4, 0.35]])[:, :, None, None, None]
    mixture = mixture + 0.05 * torch.randn(M, 2, *SHAPE, generator=law)
    causes = torch.rand(count, 2, *SHAPE, generator=g, dtype=torch.float64)
    images = 0.1 + torch.einsum("mfdhw,nfdhw->nmdhw", mixture.double(), causes)
    images = (images + noise * torch.randn(images.shape, generator=g, dtype=torch.float64)).clamp(0.01, 0.99)
    images[:, :, :, :BLANK] = 0
    return images


def settled(images: Tensor, exists: list[list[int]] | None = None, **strength: float) -> VoxelRegression:
    found = VoxelRegression(**strength)
    found.settle(pooled(found, images, exists or [[1] * M] * len(images)))
    return found


def pooled(one: MeanVolume | VoxelRegression, images: Tensor, exists: list[list[int]]) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for image, there in zip(images, exists, strict=True):
        for name, value in one.sums(image, torch.tensor(there).bool()).items():
            total[name] = total.get(name, torch.zeros_like(value)) + value
    return total


def shown_of(*shown: int) -> Tensor:
    return torch.tensor([m in shown for m in range(M)])


@pytest.mark.parametrize("shown", [(0,), (2,), (0, 1), (1, 2)])
def test_with_many_subjects_it_is_numpys_least_squares(shown: tuple[int, ...]) -> None:
    images = subjects(15)
    floor = settled(images, voxel=0, near=0)
    target = next(m for m in range(M) if m not in shown)
    made = floor.fill(images[0].float(), shown_of(*shown))[target]
    for d, h, w in itertools.product(range(SHAPE[0]), range(BLANK, SHAPE[1]), range(SHAPE[2])):
        x = np.c_[images[:, list(shown), d, h, w].numpy(), np.ones(15)]
        weights = np.linalg.lstsq(x, images[:, target, d, h, w].numpy(), rcond=None)[0]
        assert made[d, h, w].item() == pytest.approx(float(np.clip(x[0] @ weights, 0, 1)), abs=2e-5)


def test_sums_of_two_sites_with_different_gaps_are_the_pooled_sums() -> None:
    images, exists = subjects(6), [[1, 1, 0], [1, 1, 0], [0, 1, 1], [1, 0, 1], [1, 1, 1], [0, 0, 1]]
    for one in (MeanVolume(), VoxelRegression()):
        both = pooled(one, images, exists)
        parts = pooled(one, images[:2], exists[:2]), pooled(one, images[2:], exists[2:])
        for name, value in both.items():
            assert value.dtype == torch.float64
            torch.testing.assert_close(parts[0][name] + parts[1][name], value, rtol=1e-14, atol=0)


def test_few_subjects_gain_from_their_neighbours() -> None:
    """Five subjects fit a line at one voxel worse than at all: drawn together they come nearer the truth."""
    few, unseen = subjects(5, seed=1), subjects(20, seed=2)

    def error(floor: VoxelRegression) -> float:
        made = torch.stack([floor.fill(x.float(), shown_of(0, 1))[2] for x in unseen])
        return (made.double() - unseen[:, 2]).square().mean().item()

    assert error(settled(few)) < 0.7 * error(settled(few, voxel=0, near=0))


def test_pairs_alone_give_what_no_subject_has() -> None:
    images = subjects(30, seed=3)
    floor = settled(images, [[1, 1, 0]] * 10 + [[0, 1, 1]] * 10 + [[1, 0, 1]] * 10)
    unseen = subjects(20, seed=4)
    errors = {
        shown: np.mean([(floor.fill(x.float(), shown_of(*shown))[2] - x[2]).square().mean() for x in unseen])
        for shown in ((0,), (1,), (0, 1))
    }
    assert errors[0, 1] < min(errors[0,], errors[1,])


def test_sites_that_contradict_each_other_stay_harmless() -> None:
    images = subjects(9, noise=0.3)
    images[:3, 1], images[3:6, 2], images[6:, 2] = images[:3, 0], images[3:6, 1], 1.05 - images[6:, 0]
    images[:, :, :, :BLANK] = 0
    floor = settled(images, [[1, 1, 0]] * 3 + [[0, 1, 1]] * 3 + [[1, 0, 1]] * 3)
    weights, offset = floor.coefficients((0, 1), 2)
    assert bool(weights.isfinite().all())
    assert bool(offset.isfinite().all())
    assert weights.abs().max() < 5


def test_hidden_garbage_leaves_every_bit_and_the_shown_stay_themselves() -> None:
    images = subjects(8)
    mean = MeanVolume()
    mean.settle(pooled(mean, images, [[1] * M] * 8))
    for floor in (mean, settled(images)):
        for pattern in itertools.product([False, True], repeat=M):
            shown = torch.tensor(pattern)
            x = images[0].float()
            outs = [floor.fill(torch.where(shown[:, None, None, None], x, bad), shown) for bad in (0.3, torch.nan, 1e9)]
            assert torch.equal(outs[0], outs[1])
            assert torch.equal(outs[0], outs[2])
            assert torch.equal(outs[0][shown], x[shown])
            assert not outs[0][:, :, :BLANK].any()  # outside the brain
            assert 0 <= outs[0].min() <= outs[0].max() <= 1


def test_the_mean_is_of_the_brains_that_reach_a_voxel() -> None:
    images = subjects(3)
    images[1, :, :, 3] = 0  # one brain is smaller
    images[:, :, 3] = 0  # and none comes this far
    mean = MeanVolume()
    mean.settle(pooled(mean, images, [[1, 1, 0], [1, 1, 0], [1, 0, 0]]))
    made = mean.fill(torch.ones(M, *SHAPE), shown_of(2)).double()
    torch.testing.assert_close(made[0, 0, 4], images[:, 0, 0, 4].mean(0), atol=1e-6, rtol=0)
    torch.testing.assert_close(made[0, 0, 3], images[[0, 2], 0, 0, 3].mean(0), atol=1e-6, rtol=0)
    torch.testing.assert_close(made[1, 0, 3], images[0, 1, 0, 3], atol=1e-6, rtol=0)
    brain = (images[:, 0] > 0).sum()
    assert made[0, 3, 0, 0].item() == pytest.approx(images[:, 0].sum().item() / brain.item(), abs=1e-6)


def test_a_modality_nobody_had_weighs_nothing_and_one_nobody_made_is_blank() -> None:
    images = subjects(8)
    floor = settled(images, [[1, 1, 0]] * 8)
    weights, _ = floor.coefficients((0, 2), 1)
    assert not weights[1].any()
    assert weights[0].abs().max() > 0.1
    assert not floor.fill(images[0].float(), shown_of(0, 1))[2].any()


def test_floors_of_cohorts_of_differing_depth(tmp_path: Path) -> None:
    write_world(tmp_path, {"north": [("T1", "T2")] * 3, "south": [("T1",), ("T1", "T2")]})
    grid = Grid(height=16, width=16)
    cohorts = [Cohort.open(cache_folder(tmp_path / "sites" / site, grid)) for site in ("north", "south")]
    deepest = max(subject.depth for cohort in cohorts for subject in cohort.subjects)
    made = floors_3d(cohorts, ("T1", "T2"), deepest + 3)
    assert list(made) == [MEAN_VOLUME, VOXELWISE]
    stack = Slices(cohorts[1], ("T1", "T2"), split=None).volume(1)
    for fill in made.values():
        out = fill(
            torch.where(shown_of(0)[:2, None, None, None], stack.images_MDHW, torch.nan), shown_of(0)[:2], (), {}
        )
        assert out.shape == stack.images_MDHW.shape
        assert torch.equal(out[0], stack.images_MDHW[0])
        assert out[1].any()
    with pytest.raises(DataError, match="depth=3"):
        floors_3d(cohorts, ("T1", "T2"), 3)
    with pytest.raises(DataError, match="no subject of split train"):
        floors_3d(cohorts, ("FDG", "CT"), 20)
