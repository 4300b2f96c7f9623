"""The evaluation's laws: truth scores the cap, rows are subsets x targets x sites, differences are paired."""

import csv
import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from support.cohort.worlds import write_cohort
from support.model.models import AMM_TINY, release
from torch import Tensor

from client.inference.evaluate import evaluate_here
from shared.base.errors import DataError
from shared.data.bids import Clinical
from shared.data.cohort import Cohort, prepare
from shared.data.modalities import lesion_path
from shared.data.slices import Slices
from shared.data.volumes import Grid, read, write
from shared.diffusion.samplers import Sampler
from shared.model.bundle import Bundle
from shared.model.evaluation import (
    ALONE,
    FLOORS,
    MEAN,
    MEASURED,
    RIDGE,
    Filler,
    Keys,
    Scoring,
    evaluate,
    filler,
    floors,
    never_acquired,
)
from shared.model.metrics import METRICS
from shared.model.model import read_model
from shared.model.scorecard import bought, by_site, headlines, one_hidden, printable, untrainable, write_scorecard
from shared.model.tables import Frame, compare

pytestmark = pytest.mark.slow  # left out of `make fast`

MODALITIES = ("T1", "T2", "FLAIR")
GRID = Grid(height=16, width=16)


def cohort(root: Path, name: str, patterns: list[tuple[str, ...]], seed: int) -> Cohort:
    bids = write_cohort(root / name, name, patterns, seed=seed)
    first = sorted(bids.glob("sub-*"))[0]
    t1 = read(next(first.glob("anat/*_T1w.nii.gz")))
    lesion = torch.zeros(t1.data_DHW.shape)
    lesion[6:9, 5:9, 7:10] = 1
    write(bids / lesion_path(first.name), lesion.numpy(), t1.affine)
    return prepare(bids, GRID, workers=0).cohort


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Cohort]:
    root = tmp_path_factory.mktemp("train")
    return {
        "north": cohort(root, "north", [("T1", "T2")] * 3, 0),
        "south": cohort(root, "south", [("T1", "T2", "FLAIR")] * 3, 1),
    }


@pytest.fixture(scope="module")
def heldout(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Cohort]:
    root = tmp_path_factory.mktemp("heldout")
    return {name: cohort(root, name, [MODALITIES] * 2, 7 + i) for i, name in enumerate(("north", "south"))}


CLIPPED = 0.1  # dB: a hundredth of the voxels lie beyond the scale that images are judged on


def oracle(cohorts: dict[str, Cohort], every: int = 1, off: float = 0.0) -> Filler:
    """Looks the truth up by the keys, and is so far `off` it toward the middle."""

    def fill_all(images_MDHW: Tensor, shown_M: Tensor, keys: Keys, clinical: Clinical) -> Tensor:
        _, site, number, _ = keys
        slices = Slices(cohorts[str(site)], MODALITIES, split=None)
        brain = slices.subjects[int(number)].brain_slices
        truth = slices.volume(int(number)).images_MDHW[:, list(brain[every // 2 :: every])]
        return truth + off * (0.5 - truth)

    return fill_all


def psnr(scores: Frame, first: str) -> Frame:
    """By model, in the brain, one modality hidden."""
    own = one_hidden(scores, MODALITIES).query("metric == 'psnr' and region == 'brain'")
    table = compare(own.assign(value=own["volume"]), ["metric"], "model", ["site", "subject"], first)
    return table.set_index("model")


def test_truth_scores_the_cap_and_every_cell_has_its_row(heldout: dict[str, Cohort]) -> None:
    scores = evaluate({"oracle": oracle(heldout)}, heldout, MODALITIES)
    for s in scores.itertuples():
        best = METRICS[s.metric].best
        assert s.volume == pytest.approx(best, abs=1e-9)
        assert s.slice == pytest.approx(best, abs=1e-9)
    table = list(by_site(scores).itertuples())
    cells = 3 * 2 + 3 * 1  # one shown: two targets; two shown: one target
    per_cell = 2 * (len(MEASURED["brain"]) + len(MEASURED["lesion"]))
    textures = 2 * 3  # where one is hidden
    assert len(table) == (cells * per_cell + textures) * len(heldout)
    assert len({(r.shown, r.target, r.site, r.region, r.metric, r.per) for r in table}) == len(table)
    assert all(r.target not in r.shown.split("+") for r in table)
    assert {r.n for r in table if r.per == "volume" and r.region == "brain"} == {2}
    assert {r.n for r in table if r.per == "volume" and r.region == "lesion"} == {1}
    assert {r.n for r in table if r.per == "slice" and r.region == "lesion"} == {3}


def test_better_is_better_and_differences_are_paired(heldout: dict[str, Cohort]) -> None:
    models = {"truth": oracle(heldout), "near": oracle(heldout, off=0.1), "far": oracle(heldout, off=0.3)}
    scores = evaluate(models, heldout, MODALITIES)
    table = psnr(scores, "near")
    means = [table.loc[m, "mean"] for m in models]
    assert means == sorted(means, reverse=True)
    lead = table.loc["far"]
    assert lead["pairs"] == 4
    # an error three times as large in every voxel is 20 log10(3) dB in every subject: paired, the interval is a point
    assert lead["lead"] == pytest.approx(20 * math.log10(3), abs=CLIPPED)
    assert lead["high"] - lead["low"] < 0.01
    assert psnr(scores, "nobody")["lead"].isna().all()


def test_floors_come_from_the_pooled_training_cohorts(train: dict[str, Cohort], heldout: dict[str, Cohort]) -> None:
    """Where FLAIR never exists at north, the pooled ridge still predicts it, and better than the mean image does."""
    made = floors(list(train.values()), MODALITIES)
    scores = evaluate(made, heldout, MODALITIES)
    assert psnr(scores, RIDGE).loc[MEAN, "lead"] > 3
    again = evaluate(floors(list(reversed(train.values())), MODALITIES), heldout, MODALITIES)
    assert list(again["volume"]) == pytest.approx(list(scores["volume"]), rel=1e-5)


def test_what_a_site_can_not_train_is_read_from_its_cohort(
    train: dict[str, Cohort], heldout: dict[str, Cohort]
) -> None:
    never = never_acquired(train, MODALITIES)
    assert never == {"north": ("FLAIR",), "south": ()}
    alone = {"north": oracle(heldout, off=0.5), "south": oracle(heldout, off=0.2)}
    scores = evaluate({"federated": oracle(heldout, off=0.1)}, heldout, MODALITIES, alone=alone)
    assert set(scores["model"]) == {"federated", ALONE}
    picked = untrainable(scores, never)
    assert set(zip(picked["site"], picked["target"], strict=True)) == {("north", "FLAIR")}
    lines = bought(scores, MODALITIES, never)
    tasks = zip(lines["task"], lines["region"], strict=True)
    assert list(dict.fromkeys(tasks)) == [
        (task, region)
        for task in (
            "one hidden, all others shown",
            "north: never acquires FLAIR",
            "what a site never acquires",
        )
        for region in ("brain", "lesion")
    ]
    (lead,) = lines[(lines["only"] == "north") & (lines["region"] == "brain") & (lines["model"] == ALONE)]["lead"]
    assert lead == pytest.approx(20 * math.log10(5), abs=CLIPPED)


def test_a_model_sees_only_what_is_shown(heldout: dict[str, Cohort]) -> None:
    def prying(images_MDHW: Tensor, shown_M: Tensor, keys: Keys, clinical: Clinical) -> Tensor:
        assert not images_MDHW[shown_M].isnan().any()
        assert images_MDHW[~shown_M].isnan().all()
        return torch.nan_to_num(images_MDHW)

    assert len(evaluate({"prying": prying}, heldout, MODALITIES, Scoring(every=4)))


def test_models_are_paired_by_noise_and_scores_repeat(heldout: dict[str, Cohort], tmp_path: Path) -> None:
    model = read_model(release(tmp_path / "final", "amm_diff", AMM_TINY))
    sampler = Sampler(kind="ddim", steps=2, samples=2)
    made = [filler(model, sampler=sampler, seed=seed, device=torch.device("cpu")) for seed in (0, 0, 1)]
    scores = evaluate(dict(zip("abc", made, strict=True)), {"north": heldout["north"]}, MODALITIES, Scoring(every=6))
    a, b, c = (scores.loc[scores["model"] == name, ["metric", "volume", "slice"]].to_numpy().tolist() for name in "abc")
    assert a == b
    assert a != c


def test_the_scorecard_is_tidy(heldout: dict[str, Cohort], train: dict[str, Cohort], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    models = {"federated": oracle(heldout, 3, 0.1), **floors(list(train.values()), MODALITIES)}
    alone = {"north": oracle(heldout, 3, 0.4), "south": oracle(heldout, 3, 0.4)}
    scores = evaluate(
        models, heldout, MODALITIES, Scoring(every=3), alone=alone, progress=lambda i, n: seen.append((i, n))
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    lines = write_scorecard(scores, tmp_path / "out", MODALITIES, never_acquired(train, MODALITIES), how={"every": 3})
    with (tmp_path / "out" / "scores.csv").open() as file:
        read_back = list(csv.DictReader(file))
    assert list(read_back[0]) == ["model", "site", "shown", "target", "region", "metric", "per", "value", "n"]
    assert {r["model"] for r in read_back} == {"federated", *FLOORS, ALONE}
    assert "secret" not in (tmp_path / "out" / "scores.csv").read_text()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["headlines"] == headlines(lines)
    assert not any("north" in key for key in summary["headlines"])
    columns, table = printable(lines)
    assert columns[:3] == ("task", "region", "federated")
    assert all(len(row) == len(columns) for row in table)
    for name in ("heat_map.png", "bought.png"):
        assert (tmp_path / "out" / name).read_bytes()[:4] == b"\x89PNG"
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    write_scorecard(scores, tmp_path / "out", MODALITIES, never_acquired(train, MODALITIES), how={"every": 3})
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}


def test_a_site_scores_a_bundle_on_its_own_subjects(train: dict[str, Cohort], tmp_path: Path) -> None:
    model = read_model(release(tmp_path / "final", "amm_diff", AMM_TINY))
    bundle = Bundle(model=model, digest="d" * 64, signer="s" * 16, trusted=True, record=model.record)
    scores = evaluate_here(bundle, train["north"], tmp_path / "out", every=4).scores
    assert set(zip(scores["shown"], scores["target"], strict=True)) == {("T1", "T2"), ("T2", "T1")}
    with (tmp_path / "out" / "subjects.csv").open() as file:
        assert {r["subject"] for r in csv.DictReader(file)} == {f"sub-northsecret{i:03d}" for i in range(3)}
    other = read_model(release(tmp_path / "other", "amm_diff", AMM_TINY, edge=32))
    with pytest.raises(DataError, match="prepared for grid native-16x16; the bundle needs native-32x32"):
        evaluate_here(dataclasses.replace(bundle, model=other), train["north"], tmp_path / "out")


def test_a_prediction_beyond_its_range_is_no_score_but_an_error(heldout: dict[str, Cohort]) -> None:
    for wrong in (1.5, float("nan")):
        models = {"wrong": lambda images, shown, keys, clinical, wrong=wrong: torch.full_like(images, wrong)}
        with pytest.raises(DataError, match=r"prediction: values from .* must be in \[0, 1\]"):
            evaluate(models, heldout, MODALITIES)
