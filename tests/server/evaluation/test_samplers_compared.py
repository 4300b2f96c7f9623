"""`lacuna evaluate` and `lacuna calibrate` of a run of random weights: samplers side by side, intervals, texture."""

import dataclasses
import json
from pathlib import Path

import pytest
from support.cohort.worlds import prepare_here, write_cohort
from support.model.models import AMM_TINY, release
from support.rounds import federation
from typer.testing import CliRunner

from server.cli.cli import app
from server.evaluation.calibrate import calibrate, read
from server.evaluation.compare import compare, named
from server.evaluation.ways import Asked
from shared.base.errors import ConfigError, DataError
from shared.model.scorecard import printable_samples
from shared.plan.settings import Choice

pytestmark = pytest.mark.slow  # left out of `make fast`

NAMES = ("T1", "T2", "FLAIR")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("compare")
    for part, subjects in (("sites", 3), ("heldout", 2)):
        prepare_here(write_cohort(root / "world" / part / "north", f"{part}north", [NAMES] * subjects, seed=len(part)))
    write_cohort(root / "world" / "coordinator", "own", [NAMES] * 2, seed=99)
    config = federation.config(root / "world")
    config = dataclasses.replace(config, method=Choice(name="amm_diff", options=AMM_TINY), training={})
    folder = federation.write(root / "runs" / "one", config)
    release(folder / "final", "amm_diff", AMM_TINY)
    return folder


def asked(run: Path) -> Asked:
    return Asked(names=(run.name,), runs=run.parent, device="cpu")


def test_samplers_stand_side_by_side_and_what_was_calibrated_holds_more_truths(run: Path) -> None:
    """A network of random weights errs far more than its samples differ: until it is told."""
    words = ("mean", "multistep:1", "multistep:3")
    lines, before = compare(asked(run), samplers=words, every=2)
    names = [f"federated, {word}" for word in words]
    assert set(names) < set(lines["model"])
    assert list(dict.fromkeys(before["model"])) == names
    table = before.set_index(["model", "target"])
    assert set(before["target"]) == {*NAMES, "all"}
    assert table["wasserstein"].notna().all()
    drawn = table.loc[names[2]]
    assert drawn["covered"].between(0, 1).all()
    assert table.loc[names[0], "covered"].isna().all(), "one sample has no spread"
    assert table.loc[names[1], "covered"].isna().all()
    assert before["calibrated"].isna().all()

    found = calibrate(asked(run), sampler=named("multistep:3"), cohort=None, every=1)
    assert read(run) == found
    assert set(found.widths) == {f"{m} from {n}" for m in NAMES for n in (1, 2)}
    _, after = compare(asked(run), samplers=words, every=2)
    table = after.set_index(["model", "target"])
    assert table.loc[names[0], "calibrated"].isna().all(), "it was of another sampler"
    told = table.loc[(names[2], "all")]
    assert abs(told["calibrated"] - 0.9) < abs(told["covered"] - 0.9)
    assert told["calibrated"] == pytest.approx(0.9, abs=0.07)
    assert told["psnr"] == pytest.approx(before.set_index(["model", "target"]).loc[(names[2], "all"), "psnr"])
    headings, rows = printable_samples(after)
    assert headings[:2] == ("model", "target")
    assert "calibrated" in headings
    assert len(rows) == 3 * 4
    how = json.loads((run / "evaluation" / "summary.json").read_text())["how"]
    assert set(how["samplers"]) == set(names)
    assert how["calibrated"] == "2 subjects of the coordinator's own"


def test_the_commands_print_both(run: Path) -> None:
    words = ["calibrate", run.name, "--runs", str(run.parent), "--every", "1", "--device", "cpu"]
    done = CliRunner().invoke(app, [*words, "--sampler", "multistep:2"])
    assert done.exit_code == 0, done.exception
    assert "FLAIR" in done.output
    words = ["evaluate", run.name, "--runs", str(run.parent), "--every", "3", "--device", "cpu"]
    done = CliRunner().invoke(app, [*words, "--sampler", "multistep:2"])
    assert done.exit_code == 0, done.exception
    assert "in 90 %" in done.output
    assert "SW x 1000" in done.output


@pytest.mark.parametrize("word", ["multistep:", "multistep:0", "multistep:x", "nothing"])
def test_a_sampler_that_is_none_is_named(word: str) -> None:
    with pytest.raises(ConfigError, match="sampler"):
        named(word)


def test_without_subjects_of_its_own_the_coordinator_can_not_calibrate(run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no subjects of the coordinator's own"):
        calibrate(asked(run), sampler=None, cohort=tmp_path / "nowhere", every=1)
    with pytest.raises(ConfigError, match="sampler=mean: draws one sample"):
        calibrate(asked(run), sampler=named("mean"), cohort=None, every=1)
