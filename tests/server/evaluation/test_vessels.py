"""Angiograms of several runs side by side: paired, resumable, and each figure where the files say it is."""

import csv
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from support.cohort.worlds import prepare_here, write_cohort
from support.model.models import release
from support.rounds import federation

from server.evaluation import vessels
from server.evaluation.vessel_tables import printable, read_scores
from server.evaluation.vessels import compare_vessels
from server.evaluation.ways import Asked
from shared.base.errors import ConfigError, DataError
from shared.data.volumes import Grid, read, write
from shared.diffusion.samplers import Sampler
from shared.model.angiograms import Threshold
from shared.model.evaluation import FLOORS
from shared.model.model import read_model
from shared.plan.settings import Choice

pytestmark = pytest.mark.slow  # left out of `make fast`

NAMES = ("T1", "T2", "TOF")
PAIR, ONE = ["T1", "T2", "TOF"], ["T1", "TOF"]


def add_angiogram(cohort: Path) -> None:
    """Each subject's TOF is what its T2 was, with a tube through it, of which the cohort has the mask."""
    for path in sorted(cohort.glob("sub-*/anat/*_T2w.nii.gz")):
        name = path.name.removesuffix("_T2w.nii.gz")
        volume = read(path)
        z, y, _ = np.indices(volume.data_DHW.shape)
        inside = volume.data_DHW > 0
        tube = ((z - 8) ** 2 + (y - 8) ** 2 <= 2) & inside
        image = np.where(inside, np.where(tube, 1500.0, 1 + 0.1 * volume.data_DHW), 0)
        write(path.with_name(f"{name}_angio.nii.gz"), image.astype(np.float32), volume.affine)
        mask = cohort / "derivatives" / "truth" / name / "anat" / f"{name}_label-vessel_mask.nii.gz"
        mask.parent.mkdir(parents=True)
        write(mask, tube, volume.affine, dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("vessels")
    for part, site in (("sites", "north"), ("heldout", "north"), ("heldout", "south")):
        cohort = write_cohort(
            root / "world" / part / site, f"{part}{site}", [("T1", "T2")] * 2, seed=len(part) + len(site)
        )
        add_angiogram(cohort)
        prepare_here(cohort)
    for name, modalities, seed in (("both", PAIR, 0), ("again", PAIR, 1), ("single", ONE, 2)):
        options = {"modalities": modalities, "size": "tiny", "slab": 3, "precision": "fp32", "times": 20}
        config = dataclasses.replace(
            federation.config(root / "world"), method=Choice(name="mmdm", options=options), training={}
        )
        release(federation.write(root / "runs" / name, config) / "final", "mmdm", options, seed=seed)
    return root / "runs"


def score(folder: Path, out: Path, names: Sequence[str] = ("both", "again"), **options: object) -> list[Any]:
    """The lines of the summary."""
    given: dict[str, object] = {"samplers": ["bridge_fast"], "subjects": 3, **options}
    asked = Asked(names=tuple(names), runs=folder, device="cpu", out=out)
    return list(compare_vessels(asked, **given).itertuples())  # type: ignore[arg-type]


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def scored(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    score(folder, out)
    return out


def test_the_files_hold_what_the_table_shows(folder: Path, scored: Path) -> None:
    lines = score(folder, scored)
    assert {path.name for path in scored.iterdir()} == {"scores.csv", "summary.csv", "summary.json", "mips.png", "mips"}
    scores = table(scored / "scores.csv")
    assert {row["run"] for row in scores} == {"both", "again", *FLOORS, "truth"}
    for line in lines:
        own = [
            float(row["value"])
            for row in scores
            if (row["run"], row["shown"], row["metric"]) == (line.run, line.shown, line.metric)
        ]
        assert line.mean == pytest.approx(np.mean(own))
        assert line.subjects == len(own) == 3
    first, other = (
        np.array([float(row["value"]) for row in scores if (row["run"], row["metric"]) == (run, "axial psnr")])
        for run in ("both", "again")
    )
    lead = next(row for row in table(scored / "summary.csv") if (row["run"], row["metric"]) == ("again", "axial psnr"))
    assert float(lead["lead"]) == pytest.approx(np.mean(other - first), rel=1e-4)
    assert float(lead["low"]) < float(lead["lead"]) < float(lead["high"])
    columns, rows = printable(pd.DataFrame(lines))
    assert all(len(row) == len(columns) for row in rows)
    how = json.loads((scored / "summary.json").read_text())["how"]
    assert how["subjects"] == 3
    assert how["runs"]["both"]["sampler"]["kind"] == "bridge"


def test_no_subject_is_named(scored: Path) -> None:
    assert not any("secret" in path.read_text() for path in scored.iterdir() if path.suffix in (".csv", ".json"))


def test_the_truth_is_perfect_and_its_threshold_is_scored_against_the_label(scored: Path) -> None:
    truth = {row["metric"]: float(row["value"]) for row in table(scored / "scores.csv") if row["run"] == "truth"}
    assert truth["vessels cldice"] == truth["vessels largest_covered"] == truth["vessels dice"] == 1
    assert truth["axial rmse"] == truth["vessels components_off"] == 0
    assert truth["label dice"] > 0.95
    random = {row["metric"]: float(row["value"]) for row in table(scored / "scores.csv") if row["run"] == "both"}
    assert random["label dice"] < truth["label dice"]


def test_a_longer_list_of_runs_costs_only_the_new_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    one = vessels._one

    def noted(job: vessels.Job, *rest: object) -> object:
        made.append(job.way.name)
        return one(job, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(vessels, "_one", noted)
    score(folder, tmp_path, ("both",))
    assert set(made) == {"both", *FLOORS, "truth"}
    before = set(read_scores(tmp_path).itertuples(index=False, name=None))
    made.clear()
    score(folder, tmp_path, ("both", "again"))
    assert set(made) == {"again"}
    assert before < set(read_scores(tmp_path).itertuples(index=False, name=None))
    made.clear()
    score(folder, tmp_path, ("both",), samplers=["both=mean"])  # nothing but the sampler changed
    assert set(made) == {"both"}
    made.clear()
    score(folder, tmp_path, ("both",), samplers=["both=mean"], rule=Threshold(low=0.4, high=0.5))
    assert set(made) == {"both", *FLOORS, "truth"}


def test_scores_do_not_depend_on_who_else_is_scored(folder: Path, scored: Path, tmp_path: Path) -> None:
    score(folder, tmp_path, ("again",), subjects=2)
    found = {
        (s.subject, s.metric): s.value
        for s in read_scores(tmp_path).itertuples()
        if s.run == "again" and s.metric != "seconds"
    }
    for s in read_scores(scored).itertuples():
        if s.run == "again" and s.subject < 2 and s.metric != "seconds":
            assert found[s.subject, s.metric] == s.value


def test_a_run_of_fewer_sources_stands_beside_one_that_is_shown_as_few(folder: Path, tmp_path: Path) -> None:
    lines = score(folder, tmp_path, ("both", "single"))
    scored = {(line.run, line.shown) for line in lines}
    assert scored >= {("both", "T1+T2"), ("both", "T1"), ("single", "T1")}
    assert ("single", "T1+T2") not in scored
    one = next(x for x in lines if (x.run, x.shown, x.metric) == ("single", "T1", "volume psnr"))
    few = next(x for x in lines if (x.run, x.shown, x.metric) == ("both", "T1", "volume psnr"))
    all_ = next(x for x in lines if (x.run, x.shown, x.metric) == ("both", "T1+T2", "volume psnr"))
    assert one.lead == pytest.approx(one.mean - few.mean)
    assert few.hiding_lead == pytest.approx(few.mean - all_.mean)
    assert math.isnan(all_.hiding_lead)


def test_every_subset_can_be_asked_for(folder: Path, tmp_path: Path) -> None:
    lines = score(folder, tmp_path, ("both",), shown=["all"], samplers=["mean"], subjects=1)
    assert {line.shown for line in lines if line.run == "both"} == {"T1", "T2", "T1+T2"}


def test_a_run_keeps_its_sampler_where_it_does_not_take_the_one_of_all(folder: Path) -> None:
    models = {name: read_model(folder / name / "final") for name in ("both", "again")}
    own = models["both"].sampler
    assert vessels._samplers(["ddim"], models) == {"both": own, "again": own}
    told = vessels._samplers(["bridge_fast", "again=mean"], models)
    assert (told["both"].kind, told["both"].steps, told["again"]) == ("bridge", 5, Sampler(kind="mean"))
    for wrong, why in ((["none=mean"], "not among"), (["mean", "bridge"], "given already")):
        with pytest.raises(ConfigError, match=why):
            vessels._samplers(wrong, models)


def test_what_can_not_be_compared_is_named(folder: Path, tmp_path: Path) -> None:
    for wrong in ("T1+TOF", "FLAIR"):
        with pytest.raises(ConfigError, match="--shown"):
            score(folder, tmp_path, ("both",), shown=[wrong])
    with pytest.raises(DataError, match="no run there"):
        score(folder, tmp_path, ("both", "none"))
    config = json.loads((folder / "both" / "config.json").read_text())
    other = federation.config(Path("elsewhere"))
    federation.write(folder / "far", dataclasses.replace(other, grid=Grid(height=16, width=16)))
    (folder / "far" / "final").symlink_to(folder / "both" / "final")
    assert config["world"] != other.world
    with pytest.raises(ConfigError, match=r"run far: world=elsewhere"):
        score(folder, tmp_path, ("both", "far"))
