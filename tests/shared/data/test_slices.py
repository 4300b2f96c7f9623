"""Batches out of a prepared cohort."""

from collections.abc import Iterator
from contextlib import closing
from threading import enumerate as enumerate_threads
from threading import get_ident
from time import sleep

import numpy as np
import pytest
import torch
from support.cohort.cohorts import cohort_of

from shared.base.errors import DataError
from shared.base.records import Batch
from shared.data import slices as slices_module
from shared.data.cohort import Cohort, prepare
from shared.data.slices import Slices, prefetch, read_ahead
from shared.data.volumes import Grid

PATTERNS = [("T1", "T2"), ("T2",), ("T1", "FLAIR", "CT"), ("CT",)]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    folder = cohort_of(tmp_path_factory.mktemp("cohort"), PATTERNS)
    (folder / "participants.tsv").write_text(
        "participant_id\tsplit\tage\nsub-01\ttrain\t60\nsub-02\ttrain\t61\nsub-03\ttest\t62\nsub-04\ttrain\t63\n"
    )
    return prepare(folder, Grid(height=16, width=12), workers=0).cohort


@pytest.fixture
def slices(cohort: Cohort) -> Slices:
    return Slices(cohort, ("FLAIR", "T1", "T2", "TOF"), split=None)


def test_a_batch_follows_the_asked_order_and_absent_modalities_are_zeros(cohort: Cohort, slices: Slices) -> None:
    assert [subject.name for subject in slices.subjects] == ["sub-01", "sub-02", "sub-03"]  # sub-04 has only CT
    batch = slices.batch(range(len(slices)))
    assert batch.images_BMHW.shape == (len(slices), 4, 16, 12)
    assert batch.images_BMHW.dtype == torch.float32
    assert not batch.images_BMHW[~batch.exists_BM].any()
    assert batch.images_BMHW[batch.exists_BM].flatten(1).any(dim=1).all()
    assert torch.equal(batch.exists_BM, batch.shown_BM)
    assert batch.shown_BM.data_ptr() != batch.exists_BM.data_ptr()
    assert batch.exists_BM[0].tolist() == [False, True, True, False]
    assert batch.exists_BM[-1].tolist() == [True, True, False, False]
    assert batch.clinical[0] == {"age": 60.0}
    first = cohort.subjects[0]
    stored = np.load(cohort.folder / "sub-01" / "vol.npy")
    assert np.array_equal(batch.images_BMHW[0, 1:3], stored[first.brain_slices[0]])


def test_in_order_gives_every_brain_slice_once(cohort: Cohort, slices: Slices) -> None:
    batches = list(slices.in_order(5))
    subjects = torch.cat([batch.subject_B for batch in batches]).tolist()
    assert len(slices) == len(subjects) == sum(len(subject.brain_slices) for subject in cohort.subjects[:3])
    assert sorted(subjects) == subjects
    assert len(batches[0].images_BMHW) == 5


def test_subject_numbers_are_those_of_the_whole_cohort(cohort: Cohort) -> None:
    batch = next(Slices(cohort, ("FLAIR",), split="test").in_order(4))
    assert batch.subject_B.tolist() == [2] * 4


def test_draws_are_balanced_over_subjects_and_repeatable(slices: Slices) -> None:
    batch = slices.draw(3000, torch.Generator().manual_seed(0))
    again = slices.draw(3000, torch.Generator().manual_seed(0))
    assert torch.equal(batch.images_BMHW, again.images_BMHW)
    shares = torch.bincount(batch.subject_B, minlength=3) / 3000
    assert torch.allclose(shares, torch.full((3,), 1 / 3), atol=0.03)
    kinds = torch.unique(batch.images_BMHW.flatten(1), dim=0)
    assert len(kinds) == len(slices)  # every brain slice comes, and no other


def test_a_split_is_a_split(cohort: Cohort) -> None:
    assert [s.name for s in Slices(cohort, ("T1", "CT"), split="train").subjects] == ["sub-01", "sub-04"]
    assert [s.name for s in Slices(cohort, ("T1", "CT"), split="test").subjects] == ["sub-03"]


def test_nothing_to_draw_is_told_without_a_name(cohort: Cohort) -> None:
    empty = Slices(cohort, ("TOF",), split=None)
    assert len(empty) == 0
    assert list(empty.in_order(4)) == []
    with pytest.raises(DataError, match="no subject of this split has any of TOF"):
        empty.draw(1, torch.Generator())


def test_an_index_outside_is_an_index_error(slices: Slices) -> None:
    for index in (-1, len(slices)):
        with pytest.raises(IndexError):
            slices.batch([index])


def test_a_volume_is_the_whole_stack_with_its_way_back(cohort: Cohort, slices: Slices) -> None:
    stack = slices.volume(2)
    assert stack.subject == "sub-03"
    assert stack.images_MDHW.shape == (4, cohort.subjects[2].depth, 16, 12)
    assert stack.exists_M.tolist() == [True, True, False, False]
    assert not stack.images_MDHW[:, ~stack.brain_DHW].any()
    assert stack.lesion_DHW is None
    assert set(stack.geometry.scalings) == {"T1", "FLAIR", "CT"}
    assert stack.geometry.placement.from_grid(stack.images_MDHW.numpy()).shape == (4, 10, 14, 12)
    assert stack.clinical == {"age": 62.0}


def test_few_open_files_change_nothing(cohort: Cohort, slices: Slices, monkeypatch: pytest.MonkeyPatch) -> None:
    before = slices.draw(50, torch.Generator().manual_seed(1))
    monkeypatch.setattr(slices_module, "OPEN_FILES", 1)
    fresh = Slices(cohort, slices.modalities, split=None)
    assert torch.equal(fresh.draw(50, torch.Generator().manual_seed(1)).images_BMHW, before.images_BMHW)


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")),
    ],
)
def test_prefetch_keeps_the_batches_and_their_order(slices: Slices, device: str) -> None:
    plain = list(slices.in_order(4))
    moved = list(prefetch(slices.in_order(4), device))
    assert len(plain) == len(moved)
    for one, other in zip(plain, moved, strict=True):
        assert other.images_BMHW.device.type == device
        assert torch.equal(one.images_BMHW, other.images_BMHW.cpu())
        assert torch.equal(one.subject_B, other.subject_B.cpu())


def counted(n: int, made: list[int], fail: int | None = None) -> Iterator[Batch]:
    for i in range(n):
        if i == fail:
            raise DataError(f"batch {i} can't be read")
        made.append(i)
        yield Batch(
            images_BMHW=torch.full((1, 1, 1, 1), float(i)),
            exists_BM=torch.ones(1, 1, dtype=torch.bool),
            shown_BM=torch.ones(1, 1, dtype=torch.bool),
            subject_B=torch.tensor([i]),
        )


def test_what_is_read_ahead_comes_in_order_from_one_thread_before_it_is_asked_for() -> None:
    made: list[int] = []
    threads: set[int] = set()

    def watched() -> Iterator[Batch]:
        for batch in counted(6, made):
            threads.add(get_ident())
            yield batch

    ahead = read_ahead(watched(), 2)
    seen = [int(next(ahead).subject_B)]
    while len(made) < 3:  # the one that was given, and two more; it would hang if they were not made meanwhile
        sleep(0.001)
    sleep(0.02)
    assert made == [0, 1, 2], "and no more than that"
    seen += [int(batch.subject_B) for batch in ahead]
    assert seen == made == list(range(6))
    assert threads.isdisjoint({get_ident()})
    assert len(threads) == 1


def test_an_error_of_the_reader_comes_in_its_turn() -> None:
    ahead = read_ahead(counted(6, [], fail=3), 2)
    assert [int(next(ahead).subject_B) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match="batch 3 can't be read"):
        next(ahead)


def test_work_that_ends_early_leaves_no_reader_behind() -> None:
    made: list[int] = []
    with closing(read_ahead(counted(99, made), 2)) as ahead:
        next(ahead)
    assert len(made) <= 4
    assert not [thread for thread in enumerate_threads() if thread.name.startswith("read-ahead")]


def test_a_slab_is_a_slice_with_its_neighbours_moved_inside_at_the_ends(cohort: Cohort) -> None:
    slabs = Slices(cohort, ("T2", "T1"), split="train", slab=5)
    subject = cohort.subjects[0]
    stored = np.load(cohort.folder / "sub-01" / "vol.npy").astype(np.float32)  # D, (T1, T2), H, W
    batch = slabs.batch(range(len(subject.brain_slices)))
    assert batch.images_BMHW.shape[1:] == (2, 5, 16, 12)
    for b, z in enumerate(subject.brain_slices):
        start = min(max(z - 2, 0), subject.depth - 5)
        assert start <= z < start + 5
        for m, of in enumerate((1, 0)):
            assert np.array_equal(batch.images_BMHW[b, m], stored[start : start + 5, of])


def test_a_volume_thinner_than_a_slab_is_filled_up_with_nothing(cohort: Cohort) -> None:
    subject = cohort.subjects[0]
    slabs = Slices(cohort, ("T1",), split="train", slab=subject.depth + 3)
    image = slabs.batch([0]).images_BMHW[0, 0]
    assert image[: subject.depth].any()
    assert not image[subject.depth :].any()


def test_only_subjects_of_use_are_drawn(cohort: Cohort) -> None:
    both = Slices(cohort, ("T1", "T2"), split=None, only=lambda held: held == {"T1", "T2"})
    assert [subject.name for subject in both.subjects] == ["sub-01"]
