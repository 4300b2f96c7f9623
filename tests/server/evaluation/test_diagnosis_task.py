"""What completed sets are worth: pairs, truths, leaks, what is kept, who may be studied, and the command."""

import csv
import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from support.cohort.worlds import prepare_here, write_cohort
from support.model.models import release
from support.rounds import federation
from torch import Tensor
from typer.testing import CliRunner

from server.cli import evaluate as evaluate_cli
from server.cli.cli import app
from server.evaluation import diagnosis_tables
from server.evaluation.diagnosis import DROP, ORACLE, Cell, Findings, Study, find_study, run
from server.evaluation.diagnosis_runs import diagnose
from server.evaluation.ways import Asked, Way
from shared.base.errors import ConfigError, DataError
from shared.data.apart import check_apart
from shared.data.bids import Clinical
from shared.data.cohort import Cohort, cache_folder
from shared.data.volumes import Grid
from shared.model.diagnosis import DiagnosisOptions
from shared.model.evaluation import Filler
from shared.plan.settings import Choice

pytestmark = pytest.mark.slow  # left out of `make fast`

NAMES = ("T1", "T2", "FLAIR")
OPTIONS = DiagnosisOptions(size="tiny", rates=(0.4, 0.8), generations=2, steps=3, test=0.3, val=0.25)
ACA = {
    "modalities": list(NAMES),
    "size": "tiny",
    "depth": 16,
    "height": 16,
    "width": 16,
    "times": 20,
    "precision": "fp32",
}


def write_study(folder: Path, name: str, count: int, *, seed: int) -> Cohort:
    """Diagnoses that no image knows of; one subject lacks a modality, one has another diagnosis."""
    write_cohort(folder, name, [NAMES] * count + [NAMES[:2], NAMES], seed=seed)
    rows = (folder / "participants.tsv").read_text().splitlines()
    said = [*(("AD", "HC", "CN")[i % 3] for i in range(count)), "AD", "MCI"]
    lines = [f"{row}\t{word}" for row, word in zip(rows, ["diagnosis", *said], strict=True)]
    (folder / "participants.tsv").write_text("\n".join(lines) + "\n")
    prepare_here(folder)
    return Cohort.open(cache_folder(folder, Grid(height=16, width=16)))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("diagnosis")
    write_study(root / "world" / "heldout" / "north", "northheld", 36, seed=5)
    write_cohort(root / "world" / "sites" / "north", "north", [NAMES, NAMES[:2], NAMES[1:]], seed=6)
    prepare_here(root / "world" / "sites" / "north")
    return root


def study_of(root: Path, part: str = "heldout") -> Study:
    return find_study({"north": cohort_of(root, part)}, NAMES, OPTIONS)


def cohort_of(root: Path, part: str) -> Cohort:
    return Cohort.open(cache_folder(root / "world" / part / "north", Grid(height=16, width=16)))


def carry_out(root: Path, out: Path, ways: list[Way], options: DiagnosisOptions = OPTIONS) -> Findings:
    return run(ways, study_of(root), options, seed=1, device=torch.device("cpu"), out=out)


def way(name: str, fill: Filler, *, drawn: bool = True, told: tuple[str, ...] = ()) -> Way:
    return Way(name=name, known_by={"way": name}, ready=lambda: fill, drawn=drawn, told=told)


def truth(study: Study) -> Filler:
    def fill(images_MDHW: Tensor, shown_M: Tensor, keys: tuple[str | int, ...], clinical: Clinical) -> Tensor:
        assert bool(images_MDHW[~shown_M].isnan().all())
        assert 1 <= int(shown_M.sum()) <= 2
        return next(study.stack(i).images_MDHW for i, p in enumerate(study.people) if p.number == keys[-1])

    return fill


def telltale(images_MDHW: Tensor, shown_M: Tensor, keys: tuple[str | int, ...], clinical: Clinical) -> Tensor:
    """A generator that draws the diagnosis, and nothing else."""
    g = torch.Generator().manual_seed(hash(keys) % 2**31)
    return 0.1 * torch.rand(images_MDHW.shape, generator=g) + (0.6 if clinical["diagnosis"] == "AD" else 0.2)


def grey(images_MDHW: Tensor, shown_M: Tensor, keys: tuple[str | int, ...], clinical: Clinical) -> Tensor:
    return torch.full(images_MDHW.shape, 0.4)


def figures(cell: Cell) -> tuple[float, ...]:
    return cell.acc, cell.auc, cell.sen, cell.spe, cell.threshold, cell.trained, cell.tested


@pytest.fixture(scope="module")
def table(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Findings:
    ways = [
        way("truth", truth(study_of(root))),
        way("grey", grey, drawn=False),
        Way(name=DROP, known_by={}, ready=None),
    ]
    return carry_out(root, tmp_path_factory.mktemp("out"), ways)


def test_the_study_is_of_complete_subjects_with_the_two_diagnoses(root: Path) -> None:
    study = study_of(root)
    assert (len(study.ill), sum(study.ill)) == (36, 12)
    with pytest.raises(DataError, match="0 AD and 0 MCI"):
        find_study({"north": cohort_of(root, "sites")}, NAMES, dataclasses.replace(OPTIONS, well="MCI"))


def test_a_filler_of_the_truth_is_the_oracle_bit_for_bit(table: Findings) -> None:
    for g in range(2):
        (oracle,) = (c for c in table.cells if c.way == ORACLE and c.generation == g)
        own = [c for c in table.cells if c.way == "truth" and c.generation == g]
        assert [c.rate for c in own] == [0.4, 0.8]
        for c in own:
            assert figures(c) == figures(oracle)
    grey_ones = {c.threshold for c in table.cells if c.way == "grey"}
    assert not grey_ones & {c.threshold for c in table.cells if c.way == "truth"}


def test_dropping_leaves_fewer_to_train_on(table: Findings) -> None:
    trained = {(c.way, c.rate, c.generation): c.trained for c in table.cells}
    whole = trained[ORACLE, 0.0, 0]
    assert trained["grey", 0.8, 0] == trained["truth", 0.4, 1] == whole
    for rate in OPTIONS.rates:  # the nearest number in each of two classes
        assert abs(trained[DROP, rate, 0] - (1 - rate) * whole) <= 1


def test_a_volume_is_made_once_for_all_rates_and_nothing_twice(root: Path, tmp_path: Path) -> None:
    calls: Counter[tuple[str | int, ...]] = Counter()

    def counted(name: str) -> Filler:
        def fill(images_MDHW: Tensor, shown_M: Tensor, keys: tuple[str | int, ...], clinical: Clinical) -> Tensor:
            calls[name, *keys] += 1
            return torch.full(images_MDHW.shape, 0.4)

        return fill

    def refuse(*_: object) -> Tensor:
        raise AssertionError("made already")

    fixed, drawn = (way(name, counted(name), drawn=name == "drawn") for name in ("fixed", "drawn"))
    before = carry_out(root, tmp_path, [fixed, drawn])
    assert set(calls.values()) == {1}
    per_generation = Counter((keys[0], keys[2]) for keys in calls)
    assert set(per_generation) == {("drawn", 0), ("drawn", 1), ("fixed", 0)}
    assert len(list((tmp_path / "completed").rglob("*.npy"))) == len(calls)

    lines = (tmp_path / "cells.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "cells.jsonl").write_text("".join(lines[:-2]) + lines[-2][:40])  # killed while it wrote
    again = carry_out(root, tmp_path, [way("fixed", refuse, drawn=False), way("drawn", refuse)])
    assert [figures(c) for c in again.cells] == [figures(c) for c in before.cells]
    assert len((tmp_path / "cells.jsonl").read_text().splitlines()) == len(lines)
    (tmp_path / "cells.jsonl").write_text("{\n" + "".join(lines))
    with pytest.raises(DataError, match="line 1 is damaged"):
        carry_out(root, tmp_path, [fixed])


def test_a_filler_that_writes_the_diagnosis_is_caught(root: Path, tmp_path: Path) -> None:
    """The images know nothing of it: only a chart can have told."""
    options = dataclasses.replace(OPTIONS, rates=(0.8,), steps=20, test_loses=True)
    ways = [
        way("telltale", telltale, told=("diagnosis", "mmse")),
        way("honest", grey),
        Way(name=DROP, known_by={}, ready=None),
    ]
    found = carry_out(root, tmp_path, ways, options)
    assert DROP not in {c.way for c in found.cells}  # nobody who comes for a diagnosis is left out
    made = {name: [c.auc_made for c in found.cells if c.way == name] for name in ("telltale", "honest")}
    assert sum(made["telltale"]) / 2 > 0.95
    assert sum(made["honest"]) / 2 < 0.85
    leaks = [leak for leak in found.leaks if leak.way == "telltale"]
    assert leaks
    assert min(leak.made for leak in leaks) > 0.95
    said = "\n".join(diagnosis_tables.notes(found))
    assert "LEAK: a linear rule finds the diagnosis in images made by telltale" in said
    assert "LEAK: a linear rule finds the diagnosis in images made by honest" not in said
    assert "telltale was told the diagnosis of those that it filled in (diagnosis, mmse)" in said
    assert "honest was told" not in said


def test_the_files_hold_what_the_table_shows(table: Findings, tmp_path: Path) -> None:
    lines = diagnosis_tables.write(table, tmp_path, {"seed": 1})
    with (tmp_path / "diagnosis.csv").open() as file:
        cells = list(csv.DictReader(file))
    assert len(cells) == len(table.cells) == 2 * (1 + 2 * 3)
    accuracy = {(r["rate"], r["way"]): r for r in lines.to_dict("records") if r["metric"] == "acc"}
    assert len(accuracy) == 1 + 3 * 3
    for (rate, way), line in accuracy.items():
        if rate >= 0:
            own = [float(c["acc"]) for c in cells if (c["way"], float(c["rate"])) == (way, rate)]
            assert sum(own) / 2 == pytest.approx(line["mean"], abs=1e-6)
    lead = accuracy[0.8, DROP]
    assert lead["lead"] == pytest.approx(accuracy[0.8, "truth"]["mean"] - lead["mean"])
    assert lead["low"] < lead["lead"] < lead["high"] or lead["low"] == pytest.approx(lead["high"])
    assert {p.name for p in tmp_path.iterdir()} == {
        "diagnosis.csv",
        "leads.csv",
        "leaks.csv",
        "summary.json",
        "accuracy.png",
    }
    assert json.loads((tmp_path / "summary.json").read_text())["how"] == {"seed": 1}
    columns, rows = diagnosis_tables.printable(lines)
    assert all(len(row) == len(columns) for row in rows)
    assert rows[0][:2] == ("0 %", ORACLE)


def test_nobody_is_studied_that_a_generator_was_trained_on(root: Path, tmp_path: Path) -> None:
    trained = {"north": cohort_of(root, "sites")}
    check_apart({"north": cohort_of(root, "heldout")}, trained)
    with pytest.raises(DataError, match="3 subjects by name and 7 image files"):
        check_apart({"south": cohort_of(root, "sites")}, trained)
    with pytest.raises(DataError, match="0 subjects by name and 7 image files"):
        check_apart({"south": cohort_of(root, "sites")}, trained, strangers=True)
    write_cohort(tmp_path / "copy", "renamed", [NAMES], seed=6)  # the same files under another name
    prepare_here(tmp_path / "copy")
    for path in (tmp_path / "copy").rglob("meta.json"):
        meta = json.loads(path.read_text())
        other = next(cohort_of(root, "sites").folder.glob("sub-*000/meta.json"))
        assert set(meta["read"].values()) & set(json.loads(other.read_text())["read"].values())


@pytest.mark.parametrize("words", [["aca"], ["aca", "task=images"], ["aca", "task=diagnosis"]])
def test_no_task_scores_whom_a_model_was_trained_on(root: Path, tmp_path: Path, words: list[str]) -> None:
    """The world's held-out subjects are its training subjects: refused by their images, whatever they are called."""
    for part in ("sites", "heldout"):
        shutil.copytree(root / "world" / "sites", tmp_path / "world" / part)
    config = dataclasses.replace(
        federation.config(tmp_path / "world"), method=Choice(name="aca_diff", options=ACA), training={}
    )
    release(federation.write(tmp_path / "runs" / "aca", config) / "final", "aca_diff", ACA)
    for also, says in ((["strangers=true"], "0 subjects by name and 7 image files"), ([], "3 subjects by name")):
        with pytest.raises(DataError, match=says):
            evaluate_cli.carry_out([*words, *also], (), 1, runs=tmp_path / "runs", seed=0, device="cpu")


def test_values_that_are_no_numbers_are_refused(root: Path, tmp_path: Path) -> None:
    def broken(images_MDHW: Tensor, *_: object) -> Tensor:
        return images_MDHW  # hands its nan on

    with pytest.raises(DataError, match="broken: made values that are not finite"):
        carry_out(root, tmp_path, [way("broken", broken)])


@pytest.fixture(scope="module")
def runs(root: Path) -> Path:
    config = dataclasses.replace(
        federation.config(root / "world"), method=Choice(name="aca_diff", options=ACA), training={}
    )
    for name, options in (("aca", ACA), ("deaf", {**ACA, "text": "none"})):
        folder = federation.write(root / "runs" / name, config)
        release(folder / "final", "aca_diff", options, sampler={"kind": "ddim", "steps": 2, "samples": 2})
    release(
        root / "runs" / "aca" / "alone" / "north" / "final",
        "aca_diff",
        ACA,
        seed=9,
        sampler={"kind": "ddim", "steps": 2},
    )
    return root / "runs"


def test_the_command_compares_runs_and_floors(runs: Path) -> None:
    words = [
        "evaluate",
        "aca",
        "aca:scores",
        "deaf",
        "task=diagnosis",
        "size=tiny",
        "rates=[0.5]",
        "generations=1",
        "steps=2",
        "--runs",
        str(runs),
        "--device",
        "cpu",
    ]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0
    for name in ("aca", "aca:scores", "deaf", "voxelwise", "mean volume", "drop", "oracle"):
        assert name in done.stdout
    flat = " ".join(done.stdout.split())
    assert "aca was told the diagnosis of those that it filled in (diagnosis, mmse, adas13, cdrsb)" in flat
    assert "aca:scores was told mmse, adas13, cdrsb, not the diagnosis" in flat
    assert "deaf was told" not in flat
    summary = json.loads((runs / "aca" / "diagnosis" / "summary.json").read_text())
    assert summary["how"]["rows"]["aca"]["sampler"]["samples"] == 1  # never the averaged image
    assert summary["how"]["subjects"] == {"AD": 12, "HC": 24}


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["aca:dreams"], "aca:dreams: must be RUN"),
        (["aca:"], "aca:: must be RUN"),
        (["deaf:scores"], "deaf:scores: aca_diff reads nothing of the chart"),
        (["aca", "aca"], "named once each"),
    ],
)
def test_rows_that_can_not_be_are_named(runs: Path, names: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        diagnose(Asked(names=tuple(names), runs=runs), OPTIONS)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["task=diagnosis"], "name a run"),
        (["aca", "task=dream"], "task=dream: must be one of diagnosis"),
        (["aca", "deaf"], "without a task name one run"),
        (["aca", "task=diagnosis", "rates=0.2"], "diagnosis.rates=0.2: must be a list"),
        (["aca", "task=diagnosis", "rate=0.2"], "diagnosis.rate=0.2: unknown key"),
        (["aca", "task=diagnosis", "task=diagnosis"], "given already"),
        (["aca", "task=diagnosis", "study=/nowhere/at/all"], "study=/nowhere/at/all: no such folder"),
    ],
)
def test_wrong_words_are_named(runs: Path, words: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        evaluate_cli.carry_out(words, (), 1, runs=runs, seed=0, device="cpu")


def test_one_run_without_keys_is_the_usual_evaluation() -> None:
    assert evaluate_cli.parse(["aca"]) == (None, ("aca",), {})
    assert evaluate_cli.parse(["aca", "strangers=true"]) == (None, ("aca",), {"strangers": True})


def test_the_image_table_has_every_direction_of_every_model(runs: Path) -> None:
    words = [
        "evaluate",
        "aca",
        "aca:images",
        "deaf",
        "task=images",
        "subjects=1",
        "--runs",
        str(runs),
        "--device",
        "cpu",
    ]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0
    folder = runs / "aca" / "images"
    with (folder / "images.csv").open() as file:
        lines = list(csv.DictReader(file))
    models = ["aca", "aca:images", "deaf", "mean volume", "voxelwise regression"]
    models += ["patch ridge", "hat ridge", "look-up table", "alone"]
    directions = list(dict.fromkeys((line["target"], line["shown"]) for line in lines))
    assert directions == [
        *[
            (t, s)
            for t, (a, b) in (("T1", ("T2", "FLAIR")), ("T2", ("T1", "FLAIR")), ("FLAIR", ("T1", "T2")))
            for s in (a, b, f"{a}+{b}", "mean")
        ],
        ("mean", "mean"),
    ]
    for target, shown in directions:
        assert [line["model"] for line in lines if (line["target"], line["shown"]) == (target, shown)] == models
    for model in models:
        own = {(line["target"], line["shown"]): float(line["psnr"]) for line in lines if line["model"] == model}
        parts = [own["T1", s] for s in ("T2", "FLAIR", "T2+FLAIR")]
        assert own["T1", "mean"] == pytest.approx(sum(parts) / 3, abs=1e-4)
        assert own["mean", "mean"] == pytest.approx(sum(own[t, "mean"] for t in NAMES) / 3, abs=1e-4)
    whole = {line["model"]: line for line in lines if line["target"] == "mean"}
    lead = float(whole["aca"]["psnr"]) - float(whole["patch ridge"]["psnr"])
    assert float(whole["patch ridge"]["lead"]) == pytest.approx(lead, abs=1e-4)
    assert float(whole["aca"]["psnr"]) != float(whole["aca:images"]["psnr"])  # what it is told is heard
    assert {p.name for p in folder.iterdir()} == {"scores.csv", "images.csv", "summary.json", "images.png"}
    assert "T1 from T2 + FLAIR" in done.stdout


def test_the_depth_and_the_key_of_a_study_follow_its_subjects(root: Path) -> None:
    study = study_of(root)
    assert study.depth == max(study.stack(i).images_MDHW.shape[1] for i in range(len(study.ill)))
    fewer = dataclasses.replace(study, people=study.people[1:], ill=study.ill[1:])
    assert fewer.key != study.key
