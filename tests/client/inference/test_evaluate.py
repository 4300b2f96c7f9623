"""A site scores a bundle by itself: whom, beside which floors, and never on images that were trained on."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.cohort.worlds import prepare_here, write_cohort
from support.model.models import AMM_TINY, release

from client.inference.evaluate import evaluate_here
from client.inference.floors import floors_here
from shared.base.errors import DataError
from shared.data.cohort import Cohort, cache_folder
from shared.data.slices import Slices
from shared.data.volumes import Grid
from shared.methods.baselines.voxelwise import floors_3d
from shared.model.bundle import Bundle
from shared.model.evaluation import MEAN, RIDGE, floors
from shared.model.model import read_model

pytestmark = pytest.mark.slow  # left out of `make fast`

NAMES = ("T1", "T2", "FLAIR")
ACA = {"modalities": list(NAMES), "depth": 16, "height": 16, "width": 16, "times": 20, "size": "tiny"}


def opened(bids: Path) -> Cohort:
    prepare_here(bids)
    return Cohort.open(cache_folder(bids, Grid(height=16, width=16)))


def bundle_of(folder: Path, method: str = "amm_diff", options: dict[str, Any] = AMM_TINY) -> Bundle:
    model = read_model(release(folder / "final", method, {**options, "precision": "fp32"}))
    return Bundle(model=model, digest="d" * 64, signer="s" * 16, trusted=True, record=model.record)


def with_splits(bids: Path, *splits: str) -> Path:
    table = bids / "participants.tsv"
    head, *rows = table.read_text().splitlines()
    lines = [f"{head}\tsplit", *(f"{row}\t{split}" for row, split in zip(rows, splits, strict=True))]
    table.write_text("\n".join(lines) + "\n")
    return bids


@pytest.mark.parametrize("method", ["amm_diff", "aca_diff"])
def test_a_subjects_floors_are_those_of_a_cohort_without_it(method: str, tmp_path: Path) -> None:
    bids = write_cohort(tmp_path / "all", "north", [NAMES, NAMES[:2], NAMES, NAMES[1:]], seed=3)
    bundle = bundle_of(tmp_path, method, AMM_TINY if method == "amm_diff" else ACA)
    cohort = opened(bids)
    held = Slices(cohort, NAMES, split=None)
    found = floors_here(bundle.model, cohort, split=None)
    for number in (2, 0):
        shutil.copytree(bids, tmp_path / f"but-{number}", ignore=shutil.ignore_patterns("derivatives"))
        shutil.rmtree(tmp_path / f"but-{number}" / held.subjects[number].name)
        others = [opened(tmp_path / f"but-{number}")]
        wanted = floors(others, NAMES) if method == "amm_diff" else floors_3d(others, NAMES, 16)
        assert found.keys() == wanted.keys()
        images, shown = held.volume(number).images_MDHW, torch.tensor([True, True, False])
        for name, fill in wanted.items():
            made = found[name](images, shown, ("evaluate", "here", number, "T1+T2"), {})
            assert torch.allclose(made, fill(images, shown, (), {}), atol=1e-5)
            assert not torch.allclose(made[2], images[2], atol=1e-2)


def test_what_the_bundles_own_network_is_told_is_a_floor_too(tmp_path: Path) -> None:
    cohort = opened(write_cohort(tmp_path / "all", "north", [NAMES] * 2))
    bundle = bundle_of(tmp_path, options={**AMM_TINY, "anchor": "ridge"})
    done = evaluate_here(bundle, cohort, tmp_path / "out", every=4)
    assert set(done.scores["model"]) == {"amm_diff", MEAN, RIDGE, "the bundle's patch ridge"}
    alone = opened(write_cohort(tmp_path / "one", "south", [NAMES]))
    assert list(floors_here(bundle.model, alone, split=None)) == ["the bundle's patch ridge"]


def test_subjects_of_split_test_are_scored_alone_where_there_are_any(tmp_path: Path) -> None:
    bids = with_splits(write_cohort(tmp_path / "all", "north", [NAMES] * 4), "train", "test", "val", "test")
    done = evaluate_here(bundle_of(tmp_path), opened(bids), tmp_path / "out", every=4)
    assert done.split == "test"
    with (tmp_path / "out" / "subjects.csv").open() as file:
        assert {row["subject"] for row in csv.DictReader(file)} == {"sub-northsecret001", "sub-northsecret003"}
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["how"]["split"] == "test"
    hidden = done.lines.query("task == 'one hidden, all others shown' and region == 'brain'").set_index("model")
    assert set(hidden.index) == {"amm_diff", MEAN, RIDGE}
    assert (hidden["fitted"] > hidden["mean"]).all()
    assert (hidden["n"] == 2).all()


def test_a_site_that_lacks_a_modality_is_told_of_what_it_has(tmp_path: Path) -> None:
    done = evaluate_here(
        bundle_of(tmp_path), opened(write_cohort(tmp_path / "c", "east", [NAMES[:2]] * 2)), tmp_path / "o"
    )
    assert done.split is None
    assert set(done.lines["task"]) == {"one hidden, all others shown"}


def test_a_trained_subject_is_not_scored_under_another_name(tmp_path: Path) -> None:
    bids = with_splits(write_cohort(tmp_path / "all", "north", [NAMES] * 3), "train", "train", "test")
    trained, copy = bids / "sub-northsecret000", bids / "sub-northsecret002"
    for path in trained.rglob("*.nii.gz"):
        shutil.copy(path, copy / "anat" / path.name.replace("secret000", "secret002"))
    with pytest.raises(DataError, match=r"split test: 0 subjects by name and 3 image files are among those that"):
        evaluate_here(bundle_of(tmp_path), opened(bids), tmp_path / "out")
    assert not (tmp_path / "out").exists()
