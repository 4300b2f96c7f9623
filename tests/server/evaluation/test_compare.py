"""`lacuna evaluate`: held-out cohorts and subjects of split test together, nobody of whom was trained on."""

import dataclasses
import shutil
from pathlib import Path

import pytest
from support.cohort.worlds import prepare_here, write_cohort
from support.model.models import AMM_TINY, release
from support.rounds import federation

from server.evaluation.compare import compare
from server.evaluation.ways import Asked
from shared.base.errors import DataError
from shared.plan.settings import Choice

pytestmark = pytest.mark.slow  # left out of `make fast`

NAMES = ("T1", "T2", "FLAIR")


def world(root: Path, *, heldout: bool, splits: str) -> Path:
    for site, seed in (("north", 1), ("south", 2)):
        bids = write_cohort(root / "sites" / site, site, [NAMES] * 3, seed=seed)
        table = bids / "participants.tsv"
        head, *rows = table.read_text().splitlines()
        own = splits.split() if site == "north" else ["train"] * 3
        lines = [f"{head}\tsplit", *(f"{row}\t{split}" for row, split in zip(rows, own, strict=True))]
        table.write_text("\n".join(lines) + "\n")
        if heldout:
            prepare_here(write_cohort(root / "heldout" / site, f"{site}heldout", [NAMES], seed=seed + 5))
    return root


def run_on(root: Path) -> Asked:
    config = dataclasses.replace(federation.config(root), method=Choice(name="amm_diff", options=AMM_TINY), training={})
    release(federation.write(root / "runs" / "one", config) / "final", "amm_diff", AMM_TINY)
    return Asked(names=("one",), runs=root / "runs", device="cpu")


@pytest.mark.parametrize(
    ("heldout", "splits", "subjects"),
    [(True, "train train train", 2), (True, "train test test", 4), (False, "train train test", 1)],
)
def test_held_out_cohorts_and_subjects_of_split_test_are_scored(
    heldout: bool, splits: str, subjects: int, tmp_path: Path
) -> None:
    lines, _ = compare(run_on(world(tmp_path, heldout=heldout, splits=splits)), every=6)
    hidden = lines.query("task == 'one hidden, all others shown' and region == 'brain' and model == 'federated'")
    assert hidden["n"].tolist() == [subjects]


def test_a_copy_of_a_trained_subject_and_an_empty_world_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither heldout/ nor a subject of split test to score on"):
        compare(run_on(world(tmp_path / "none", heldout=False, splits="train train train")), every=6)
    root = world(tmp_path / "copied", heldout=False, splits="train train test")
    bids = root / "sites" / "north"
    for path in (bids / "sub-northsecret000").rglob("*.nii.gz"):
        shutil.copy(path, bids / "sub-northsecret002" / "anat" / path.name.replace("secret000", "secret002"))
    with pytest.raises(DataError, match="3 image files are among those that the models were trained on"):
        compare(run_on(root), every=6)
