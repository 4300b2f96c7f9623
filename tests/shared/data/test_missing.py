"""Random subsets and all subsets."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.data.missing import all_patterns, random_shown, randomly_less, suppress


@given(
    rows=st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=8),
    seed=st.integers(0, 99),
    proper=st.booleans(),
)
def test_shown_is_a_part_of_what_exists_and_never_empty(rows: list[list[bool]], seed: int, proper: bool) -> None:
    exists_BM = torch.tensor(rows)
    shown_BM = random_shown(exists_BM, torch.Generator().manual_seed(seed), proper=proper)
    assert not (shown_BM & ~exists_BM).any()
    held_B, shown_B = exists_BM.sum(dim=1), shown_BM.sum(dim=1)
    assert (shown_B >= held_B.clamp(max=1)).all()
    assert (shown_B <= torch.where(held_B > 1, held_B - int(proper), held_B)).all()


def test_a_proper_part_leaves_one_out_where_there_are_several() -> None:
    have_BM = torch.tensor([[True, True, False, True]]).expand(6000, -1)
    sizes = random_shown(have_BM, torch.Generator().manual_seed(1), proper=True).sum(1).bincount(minlength=5)
    torch.testing.assert_close(sizes / 6000, torch.tensor([0, 1 / 2, 1 / 2, 0, 0]), rtol=0, atol=0.03)
    alone_BM = torch.tensor([[False, True, False, False]])
    assert torch.equal(random_shown(alone_BM, torch.Generator().manual_seed(1), proper=True), alone_BM)


def test_a_share_of_the_samples_has_less_and_the_others_all() -> None:
    have_BM = torch.tensor([[True, True, True, False]]).expand(6000, -1)
    less_BM = randomly_less(have_BM, 0.4, torch.Generator().manual_seed(2))
    assert not (less_BM & ~have_BM).any()
    sizes = less_BM.sum(1).bincount(minlength=4) / 6000  # of the 0.4 a third has 2, a third 1, and a third again 1
    torch.testing.assert_close(sizes, torch.tensor([0, 0.8 / 3, 0.4 / 3, 0.6]), rtol=0, atol=0.03)
    alone_BM = torch.tensor([[False, True, False, False]])
    assert torch.equal(randomly_less(alone_BM, 1.0, torch.Generator().manual_seed(2)), alone_BM)


def test_every_number_of_shown_is_as_likely_and_every_subset_of_that_number() -> None:
    exists_BM = torch.tensor([[True, False, True, True]]).expand(30000, 4)
    shown_BM = random_shown(exists_BM, torch.Generator().manual_seed(0))
    counts = Counter(tuple(row) for row in shown_BM.int().tolist())
    assert len(counts) == 7
    for pattern, count in counts.items():
        subsets = {1: 3, 2: 3, 3: 1}[sum(pattern)]
        assert count / 30000 == pytest.approx(1 / 3 / subsets, abs=0.01)


def test_the_same_generator_gives_the_same_draw() -> None:
    exists_BM = torch.ones(64, 4, dtype=torch.bool)
    one, other = (random_shown(exists_BM, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(one, other)


def test_all_patterns_are_the_non_empty_subsets_smallest_first() -> None:
    patterns = all_patterns(("T1", "T2", "FLAIR"))
    assert len(set(patterns)) == 7
    assert patterns[0] == ("T1",)
    assert patterns[-1] == ("T1", "T2", "FLAIR")


def test_small_cells_say_only_that_they_are_small() -> None:
    patterns = {("T1",): 1, ("T2",): 4, ("T1", "T2"): 5, ("CT",): 0}
    assert suppress(patterns, 5) == {("T1",): -5, ("T2",): -5, ("T1", "T2"): 5}
    assert suppress(patterns, 1) == {("T1",): 1, ("T2",): 4, ("T1", "T2"): 5}
