"""A prior at the paper's tasks: what is told, what is paired, what is written."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.cohort.worlds import prepare_here, write_cohort
from support.model.models import release
from support.rounds import federation
from torch import Tensor

from server.evaluation import tasks
from server.evaluation.generation import generate
from server.evaluation.restoration import printable, restore
from server.evaluation.tasks import Scan, Task, usual_tasks
from server.evaluation.ways import Asked
from shared.base.errors import ConfigError, DataError
from shared.data.cohort import Cohort, cache_folder
from shared.data.volumes import Grid
from shared.diffusion.samplers import Sampler
from shared.model.model import read_model
from shared.plan.settings import Choice

pytestmark = pytest.mark.slow  # left out of `make fast`

NAMES = ("T1", "T2", "FLAIR")
OPTIONS = {"modalities": list(NAMES), "size": "tiny", "precision": "fp32", "times": 50}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("restoration")
    for part, subjects in (("sites", 3), ("heldout", 4)):
        prepare_here(write_cohort(root / "world" / part / "north", f"{part}north", [NAMES] * subjects, seed=len(part)))
    import dataclasses

    config = federation.config(root / "world")
    config = dataclasses.replace(config, method=Choice(name="any2all", options=OPTIONS), training={})
    folder = federation.write(root / "runs" / "prior", config)
    release(folder / "final", "any2all", OPTIONS)
    return folder


def test_the_papers_tasks_grow_by_one_modality_each() -> None:
    found = usual_tasks(("T1", "FLAIR", "T2S", "CT", "AV45"))
    assert [t.name for t in found if t.group == "reconstruct FLAIR"] == [
        "y(FLAIR)",
        "T1 + y(FLAIR)",
        "T1 + T2S + y(FLAIR)",
        "T1 + T2S + CT + AV45 + y(FLAIR)",
    ]
    assert [t.name for t in found if t.group == "synthesise CT"] == ["T1", "T1 + T2S", "T1 + T2S + FLAIR"]
    assert [t.name for t in found if t.group.startswith("mixed")] == [
        "y(FLAIR)",
        "y(T1) + y(FLAIR) + y(T2S)",
        "T1 + T2S + y(FLAIR)",
    ]
    assert {t.target for t in found if t.group == "mixed, CT"} == {"CT"}, "fig. 4c makes what was not measured"
    for names in (("T1", "T1CE", "T2", "FLAIR"), ("T1", "FLAIR"), ("FLAIR", "CT")):
        tasks_ = usual_tasks(names)
        assert len(set(tasks_)) == len(tasks_)
        for t in tasks_:
            assert t.target not in t.clean
            assert (t.target in t.raw) == t.group.startswith("reconstruct")
    with pytest.raises(ConfigError, match="modalities"):
        usual_tasks(("CT", "AV45"))


def test_the_ridge_reads_raw_data_of_others_and_never_the_target(run: Path) -> None:
    held = tasks.pick([_heldout(run)], NAMES, 2, seed=0)
    given: list[tuple[Tensor, Tensor]] = []

    def ridge(images_MBHW: Tensor, shown_M: Tensor, *_: object) -> Tensor:
        given.append((images_MBHW, shown_M))
        return images_MBHW

    way = tasks.floors(held, NAMES, Scan(acceleration=1, noise=0.0), ridge, seed=0)["patch ridge"]
    assert way(Task(group="mixed, T2", target="T2", raw=("FLAIR",))) is not None
    (images_MBHW, shown_M), flair = given[0], list(NAMES).index("FLAIR")
    assert [m for m, shown in zip(NAMES, shown_M.tolist(), strict=True) if shown] == ["FLAIR"]
    off = (images_MBHW[flair] - held.images_BMHW[:, flair])[held.brain_BHW].abs().mean()
    assert 0 < off < 0.05, "everything measured without noise: what TV leaves is the image, but not its bits"
    assert way(Task(group="reconstruct FLAIR", target="FLAIR", raw=("FLAIR",))) is None


def test_no_way_is_told_its_target(run: Path) -> None:
    """Poison the target where it is neither clean nor measured, then where only other lines of it were measured."""
    held = tasks.pick([_heldout(run)], NAMES, 4, seed=0)
    model = read_model(run / "final")
    way = tasks.sampled(model, Sampler(kind="mds_fast", steps=2), held, Scan(), seed=0, device=torch.device("cpu"))
    task = Task(group="g", target="FLAIR", clean=("T1",))
    before = way(task)
    assert before is not None
    held.images_BMHW[:, 2] = torch.rand_like(held.images_BMHW[:, 2])
    after = way(task)
    assert torch.equal(before, after)  # type: ignore[arg-type]
    seen = way(Task(group="g", target="FLAIR", clean=("T1",), raw=("FLAIR",)))
    assert not torch.equal(before, seen)  # type: ignore[arg-type]


def test_the_scan_is_the_same_in_every_task(run: Path) -> None:
    held = tasks.pick([_heldout(run)], NAMES, 4, seed=0)
    one, two = (
        tasks.known(Task(group="g", target="FLAIR", raw=raw), held, NAMES, Scan(noise=0.05), seed=3)[2]
        for raw in (("FLAIR",), ("T1", "FLAIR"))
    )
    other = tasks.known(Task(group="g", target="FLAIR", raw=("FLAIR",)), held, NAMES, Scan(noise=0.05), seed=4)[2]
    assert one.y is not None
    assert torch.equal(one.y, two.y)  # type: ignore[arg-type]
    assert not torch.equal(one.y, other.y)  # type: ignore[arg-type]


def test_the_files_hold_what_the_table_shows(run: Path) -> None:
    outcomes = restore(asked(run), samplers=["mds_fast", "mean"], scan=Scan(), count=4)
    folder = run / "restoration"
    assert {p.name for p in folder.iterdir()} >= {"scores.csv", "gains.csv", "summary.json", "reconstruct-flair.png"}
    with (folder / "scores.csv").open() as file:
        lines = list(csv.DictReader(file))
    for o in outcomes:
        own = [
            float(line["value"])
            for line in lines
            if (line["task"], line["way"], line["metric"], line["group"]) == (o.task.name, o.way, "psnr", o.task.group)
        ]
        assert len(own) == 4
        assert np.mean(own) == pytest.approx(o.mean("psnr"), abs=1e-3)
    raw = {o.task.group: {p.way for p in outcomes if p.task == o.task} for o in outcomes if o.task.name == "y(FLAIR)"}
    assert raw == {  # `mean` takes no raw data, the ridge none of the target
        "reconstruct FLAIR": {"zero-filled", "CG-SENSE", "TV", "mds_fast"},
        "mixed, T2": {"patch ridge", "mds_fast"},
    }
    assert {o.way for o in outcomes if o.task.group == "synthesise T2"} >= {"patch ridge", "mds_fast", "mean"}
    columns, rows = printable(outcomes)
    assert all(len(row) == len(columns) for row in rows)
    assert sum(bool(row[-1]) for row in rows) > 3
    with (folder / "gains.csv").open() as file:
        gained = [line for line in csv.DictReader(file) if line["metric"] == "psnr"]
    first = next(line for line in gained if line["what"] == "mds_fast: T1 + y(FLAIR)" and "y(FLAIR)" in line["against"])
    means = {(o.way, o.task.name, o.task.group): o.mean("psnr") for o in outcomes}
    group = "reconstruct FLAIR"
    expected = means["mds_fast", "T1 + y(FLAIR)", group] - means["mds_fast", "y(FLAIR)", group]
    assert float(first["mean"]) == pytest.approx(expected, abs=1e-3)


def test_a_group_can_be_chosen_and_a_wrong_one_is_named(run: Path) -> None:
    outcomes = restore(asked(run), samplers=["mean"], scan=Scan(), count=2, groups=["synthesise"])
    assert {o.task.group for o in outcomes} == {"synthesise T2"}
    with pytest.raises(ConfigError, match="--group dream"):
        restore(asked(run), samplers=["mean"], scan=Scan(), count=2, groups=["dream"])


def test_too_few_complete_subjects_are_named() -> None:
    with pytest.raises(DataError, match="needed"):
        tasks.pick([], NAMES, 4, seed=0)


def test_complete_sets_are_the_same_bits_for_the_same_seed(run: Path, tmp_path: Path) -> None:
    sampler = Sampler(kind="ancestral", steps=3)
    for out, count in (("one", 3), ("two", 2)):
        generate(run, tmp_path / out, count=count, sampler=sampler, seed=5, device="cpu")
    one, two = (np.load(tmp_path / out / "sets.npy") for out in ("one", "two"))
    assert one.shape == (3, 3, 16, 16)
    np.testing.assert_allclose(one[:2], two, atol=1e-6)
    assert not np.array_equal(one[0], one[1])
    assert json.loads((tmp_path / "one" / "generation.json").read_text())["count"] == 3
    assert (tmp_path / "one" / "contact-sheet.png").stat().st_size > 1000


def asked(run: Path) -> Asked:
    return Asked(names=(run.name,), runs=run.parent, device="cpu")


def _heldout(run: Path) -> Cohort:
    return Cohort.open(cache_folder(run.parents[1] / "world" / "heldout" / "north", Grid(height=16, width=16)))
