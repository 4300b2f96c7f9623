"""The mixture of tissues: closed forms, and what it is for: a joint that no subject has (docs/methods/amm_diff.md)."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from shared.base.records import Batch
from shared.methods.anchors.mixture import LEAST, Mixture, _lattice, _products, features
from shared.methods.anchors.ridge import PatchRidge

M = 3
TISSUES = torch.tensor([[0.2, 0.8, 0.3], [0.5, 0.5, 0.7], [0.8, 0.2, 0.9], [0.5, 0.8, 0.15]])


def batch_of(exists: list[list[int]], seed: int = 0, side: int = 24, noise: float = 0.03) -> Batch:
    """Blocks of four tissues with noise; the last modality is no linear function of the first two."""
    g = torch.Generator().manual_seed(seed)
    kinds = torch.randint(4, (len(exists), side // 4, side // 4), generator=g)
    kinds = kinds.repeat_interleave(4, 1).repeat_interleave(4, 2)
    images = TISSUES[kinds].movedim(-1, 1) + noise * torch.randn(len(exists), M, side, side, generator=g)
    images = images.clamp(0.01, 1)
    exists_BM = torch.tensor(exists).bool()
    images[~exists_BM] = float("nan")  # what does not exist may hold anything
    return Batch(images_BMHW=images, exists_BM=exists_BM, shown_BM=exists_BM, subject_B=torch.arange(len(exists)))


def part(batch: Batch, rows: slice) -> Batch:
    return Batch(
        images_BMHW=batch.images_BMHW[rows],
        exists_BM=batch.exists_BM[rows],
        shown_BM=batch.shown_BM[rows],
        subject_B=batch.subject_B[rows],
    )


def fitted(batch: Batch, components: int, iterations: int, seed: int = 0) -> Mixture:
    torch.manual_seed(seed)
    mixture = Mixture(M, components)
    for _ in range(1 + iterations):
        mixture.settle(mixture.sums(batch))
    return mixture


def pixels(batch: Batch) -> Tensor:
    images = torch.nan_to_num(batch.images_BMHW)
    return features(images).movedim(1, -1)[:, _lattice(images)].flatten(0, 1).double()


def test_one_component_on_complete_data_is_the_mean_and_covariance() -> None:
    batch = batch_of([[1] * M] * 6)
    x_ND, mixture = pixels(batch), fitted(batch, 1, 1)
    torch.testing.assert_close(mixture.mean_KD[0].double(), x_ND.mean(0), rtol=1e-5, atol=1e-6)
    expected = torch.cov(x_ND.T, correction=0) + LEAST**2 * torch.eye(x_ND.shape[1])
    torch.testing.assert_close(mixture.cov_KDD[0].double(), expected, rtol=1e-4, atol=1e-6)


def test_one_component_tells_what_a_linear_regression_tells() -> None:
    batch = batch_of([[1] * M] * 6)
    mixture, shown = fitted(batch, 1, 1), torch.tensor([[True, True, False]] * 6)
    x_ND = pixels(batch)
    cov = torch.cov(x_ND.T, correction=0) + LEAST**2 * torch.eye(x_ND.shape[1])
    gain = torch.linalg.solve(cov[:4, :4], cov[:4, 4])
    seen = features(batch.images_BMHW)[:, :4].movedim(1, -1).double()
    expected = x_ND[:, 4].mean() + (seen - x_ND[:, :4].mean(0)) @ gain
    told = mixture(batch.images_BMHW, shown)[:, 2]
    torch.testing.assert_close(told.double(), expected.clamp(0, 1), rtol=1e-4, atol=1e-4)


def test_sites_sums_are_the_sums_over_all_in_every_iteration() -> None:
    batch = batch_of([[1, 1, 0], [0, 1, 1], [1, 0, 1], [1, 1, 1]])
    torch.manual_seed(0)
    mixture = Mixture(M, 4)
    for _ in range(3):
        whole = mixture.sums(batch)
        parts = [mixture.sums(part(batch, slice(i, i + 1))) for i in range(4)]
        for name, value in whole.items():
            assert value.dtype == torch.float64
            torch.testing.assert_close(sum(one[name] for one in parts), value, rtol=1e-6, atol=1e-6)
        mixture.settle(whole)


def test_no_iteration_makes_what_is_seen_less_likely() -> None:
    batch = batch_of([[1, 1, 0], [0, 1, 1], [1, 0, 1]] * 3)
    torch.manual_seed(1)
    mixture = Mixture(M, 4)
    mixture.settle(mixture.sums(batch))
    found = []
    for _ in range(12):
        found.append(likelihood(mixture, batch))
        mixture.settle(mixture.sums(batch))
    slack = 2e-3  # the floor under every covariance is not part of the law
    assert all(after >= before - slack for before, after in itertools.pairwise(found))
    assert found[-1] > found[0] + 0.5


def likelihood(mixture: Mixture, batch: Batch) -> float:
    images = torch.where(batch.exists_BM[:, :, None, None], batch.images_BMHW, 0.0)
    all_features, inside = features(images).movedim(1, -1), _lattice(images)
    total, count = 0.0, 0
    for row, exists in enumerate(batch.exists_BM):
        seen = (exists.nonzero().flatten()[:, None] * 2 + torch.arange(2)).flatten()
        x = all_features[row][inside][:, seen]
        total += float(torch.logsumexp(mixture.given(seen).score(_products(x.double().T)), 0).sum())
        count += len(x)
    return total / count


def test_a_joint_that_no_subject_has_is_told_far_better_than_by_pairs() -> None:
    """The first and the last with the target, never both: together they say which of two tissues it is."""
    trained = batch_of([[1, 0, 1], [0, 1, 1]] * 8, seed=3)
    test = batch_of([[1] * M] * 4, seed=9)
    shown = torch.tensor([[True, True, False]] * 4)
    mixture = fitted(trained, 6, 40)
    ridge = PatchRidge(M)
    ridge.settle(ridge.sums(trained))
    errors = [
        float((made(test.images_BMHW, shown)[:, 2] - test.images_BMHW[:, 2]).square().mean())
        for made in (mixture, ridge)
    ]
    assert 10 * math.log10(errors[1] / errors[0]) > 3


@pytest.mark.parametrize("garbage", [0.0, float("nan"), 1e9])
def test_what_is_hidden_is_never_looked_at(garbage: float) -> None:
    batch = batch_of([[1] * M] * 2)
    mixture, shown = fitted(batch, 3, 4), torch.tensor([[True, False, True], [False, True, False]])
    seen = torch.where(shown[:, :, None, None], batch.images_BMHW, garbage)
    told = mixture(seen, shown)
    assert torch.equal(told, mixture(torch.where(shown[:, :, None, None], batch.images_BMHW, 0.5), shown))
    assert torch.equal(told[shown], batch.images_BMHW[shown])
    assert bool(((told >= 0) & (told <= 1)).all())


def test_before_its_first_sums_it_says_nothing() -> None:
    batch = batch_of([[1] * M])
    told = Mixture(M, 2)(batch.images_BMHW, torch.tensor([[True, False, False]]))
    assert not told[:, 1:].any()


def test_a_component_that_explains_nobody_stays_as_it_was() -> None:
    batch = batch_of([[1] * M] * 2)
    mixture = fitted(batch, 2, 2)
    mixture.mean_KD[1] = 50.0
    before = mixture.cov_KDD[1].clone()
    mixture.settle(mixture.sums(batch))
    assert torch.equal(mixture.mean_KD[1], torch.full_like(mixture.mean_KD[1], 50.0))
    assert torch.equal(mixture.cov_KDD[1], before)
    assert bool(mixture(batch.images_BMHW, torch.tensor([[True, False, True]] * 2)).isfinite().all())


def test_what_is_kept_of_the_components_goes_when_they_change() -> None:
    batch, shown = batch_of([[1] * M] * 2), torch.tensor([[True, True, False]] * 2)
    one, other = fitted(batch, 3, 2), fitted(batch, 3, 6, seed=5)
    first = one(batch.images_BMHW, shown)
    assert torch.equal(one(batch.images_BMHW, shown), first)
    one.load_state_dict(other.state_dict())
    assert torch.equal(one(batch.images_BMHW, shown), other(batch.images_BMHW, shown))
    assert not torch.equal(one(batch.images_BMHW, shown), first)


@pytest.mark.parametrize("wrong", [1e30, -1e30])
def test_wrong_sums_of_one_site_leave_components_that_can_be_worked_with(wrong: float) -> None:
    batch = batch_of([[1] * M] * 2)
    mixture = fitted(batch, 3, 2)
    sums = mixture.sums(batch)
    mixture.settle({**sums, "x": sums["x"] + wrong, "xx": sums["xx"] + wrong})
    told = mixture(batch.images_BMHW, torch.tensor([[True, True, False]] * 2))
    assert bool(told.isfinite().all())
    mixture.settle(mixture.sums(batch))


def test_shares_and_spread_are_those_of_the_conditional_mixture() -> None:
    """Against the definition, pixel by pixel, in fp64."""
    batch = batch_of([[1] * M] * 2)
    mixture, shown = fitted(batch, 3, 6), torch.tensor([True, True, False])
    told = mixture.tell(batch.images_BMHW, shown.expand(2, -1))
    mean_KD, cov_KDD = mixture.mean_KD.double(), mixture.cov_KDD.double()
    x = features(batch.images_BMHW)[1, :4, 7, 9].double()
    logs, means, variances = [], [], []
    for weight, mean_D, cov_DD in zip(mixture.weight_K.double(), mean_KD, cov_KDD, strict=True):
        seen = torch.distributions.MultivariateNormal(mean_D[:4], cov_DD[:4, :4])
        gain = torch.linalg.solve(cov_DD[:4, :4], cov_DD[:4, 4])
        logs.append(weight.log() + seen.log_prob(x))
        means.append(mean_D[4] + (x - mean_D[:4]) @ gain)
        variances.append(cov_DD[4, 4] - gain @ cov_DD[:4, 4])
    share_K, each_K = torch.softmax(torch.stack(logs), 0), torch.stack(means)
    mean = share_K @ each_K
    spread = (share_K @ (torch.stack(variances) + each_K.square()) - mean.square()).sqrt()
    torch.testing.assert_close(told.share_BKHW[1, :, 7, 9].double(), share_K, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(told.mean_BMHW[1, 2, 7, 9].double(), mean, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(told.sd_BMHW[1, 2, 7, 9].double(), spread, rtol=1e-2, atol=1e-3)
    assert not told.sd_BMHW[:, :2].any()


def test_moved_shares_are_a_posterior_under_another_prior() -> None:
    """Nothing said is the mean; a component that is insisted on is its own regression; what is shown stays."""
    batch = batch_of([[1] * M] * 2)
    mixture, shown = fitted(batch, 3, 6), torch.tensor([[True, True, False], [True, True, True]])
    told = mixture.tell(batch.images_BMHW, shown)
    silent = told.weighed(torch.zeros_like(told.share_BKHW))
    torch.testing.assert_close(silent.clamp(0, 1), told.mean_BMHW, rtol=0, atol=1e-4)
    insisted = torch.zeros_like(told.share_BKHW)
    insisted[:, 1] = 100.0
    row = told.rows[0]
    assert row is not None
    alone_N = (row.gain_KTC[1] @ row.seen_CN)[0]
    torch.testing.assert_close(told.weighed(insisted)[0, 2].flatten()[row.inside_N], alone_N, rtol=0, atol=1e-5)
    assert torch.equal(told.weighed(insisted)[1], batch.images_BMHW[1])
    assert told.rows[1] is None


def test_an_image_is_told_the_same_bits_whatever_is_beside_it() -> None:
    batch = batch_of([[1] * M] * 3)
    mixture, shown = fitted(batch, 3, 4), torch.tensor([[True, False, True]] * 3)
    together, alone = mixture.tell(batch.images_BMHW, shown), mixture.tell(batch.images_BMHW[1:2], shown[1:2])
    assert torch.equal(together.mean_BMHW[1:2], alone.mean_BMHW)
    assert torch.equal(together.share_BKHW[1:2], alone.share_BKHW)
