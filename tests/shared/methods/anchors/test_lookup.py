"""The look-up table: exact where there is something to look up, and never more than what somebody had."""

import pytest
import torch

from shared.base.records import Batch
from shared.methods.anchors.lookup import BINS, LookUp

M = 4


def batch_of(exists: list[list[int]], seed: int = 0, side: int = 24) -> Batch:
    """Intensities in the middle of bins; the last modality is a table of the first two, which no line fits."""
    g = torch.Generator().manual_seed(seed)
    images = (torch.randint(4, (len(exists), M, side, side), generator=g) + 0.5) / BINS
    images[:, 3] = torch.where(images[:, 0] > images[:, 1], 0.8, 0.3) + images[:, 2] / 10
    images[:, :, :3] = 0
    exists_BM = torch.tensor(exists).bool()
    images[~exists_BM] = float("nan")
    return Batch(images_BMHW=images, exists_BM=exists_BM, shown_BM=exists_BM, subject_B=torch.arange(len(exists)))


def settled(*batches: Batch) -> LookUp:
    table = LookUp(M)
    sums = [table.sums(batch) for batch in batches]
    table.settle({name: sum((one[name] for one in sums[1:]), sums[0][name]) for name in sums[0]})
    return table


def test_what_somebody_had_together_is_looked_up_exactly() -> None:
    test, shown = batch_of([[1] * M], seed=1), torch.tensor([[True, True, True, False]])
    told = settled(batch_of([[1] * M] * 6))(test.images_BMHW, shown)
    torch.testing.assert_close(told, test.images_BMHW, rtol=0, atol=1e-6)


def test_sites_with_different_gaps_pool_to_one_table_and_larger_sets_go_first() -> None:
    """Both pairs are known, never all three: told from them, by their pixels, and not from one alone."""
    trained = [batch_of([[1, 1, 0, 1]] * 4), batch_of([[0, 1, 1, 1]] * 4, seed=5)]
    test, shown = batch_of([[1] * M], seed=1), torch.tensor([[True, True, True, False]])
    table, inside = settled(*trained), test.images_BMHW[0, 0] > 0
    first, second = (settled(one) for one in trained)
    both = [float(one.pixels_PMC[code, 3].sum()) for one, code in ((first, 3), (second, 6))]
    assert min(both) > 0
    assert torch.equal(table.pixels_PMC[3], first.pixels_PMC[3])
    assert torch.equal(table.pixels_PMC[6], second.pixels_PMC[6])
    told = table(test.images_BMHW, shown)[0, 3][inside]
    between = [one(test.images_BMHW, shown)[0, 3][inside] for one in (first, second)]
    low, high = torch.minimum(*between), torch.maximum(*between)
    assert bool(((told >= low - 1e-6) & (told <= high + 1e-6)).all())


@pytest.mark.parametrize("garbage", [0.0, float("nan"), 1e9])
def test_what_is_hidden_is_never_looked_at(garbage: float) -> None:
    table, batch = settled(batch_of([[1] * M] * 2)), batch_of([[1] * M], seed=2)
    shown = torch.tensor([[True, False, True, False]])
    seen = torch.where(shown[:, :, None, None], batch.images_BMHW, garbage)
    assert torch.equal(table(seen, shown), table(batch.images_BMHW, shown))
