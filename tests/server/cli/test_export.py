"""`lacuna export` says what may be said of privacy, and warns of what a site's audit found."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.model.models import release
from support.rounds.federation import config, write
from typer.testing import CliRunner

from server.cli.cli import app
from shared.base.errors import ConfigError, DataError
from shared.base.options import plain
from shared.diffusion.samplers import Sampler
from shared.model import bundle
from shared.model.calibration import SPREADS, Calibration
from shared.trust.claims import Certificate, PrivacyRecord, statement

pytestmark = pytest.mark.usefixtures("probe")
RECORD = PrivacyRecord(
    private=(
        Certificate(
            site="north",
            epsilon=3.371,
            budget=7.5,
            delta=2e-5,
            noise=2.19,
            rate=0.125,
            clip=0.3,
            draws=4,
            slices=3,
            steps=207,
            size=240,
            ledger="ab12",
            sequence=214,
            head="f00d",
            others=0,
        ),
    ),
    not_private=("south",),
)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished private run; its denoiser is not exported, which takes a minute and is not looked at."""
    monkeypatch.setattr(bundle, "export_denoiser", lambda model, folder: {})
    folder = write(tmp_path / "runs" / "demo", config(tmp_path / "world"))
    release(folder / "final", "probe", {"modalities": ["T1", "T2", "FLAIR"]})
    model = json.loads((folder / "final" / "model.json").read_text())
    model["provenance"] |= {"private": True, "privacy": plain(RECORD)}
    (folder / "final" / "model.json").write_text(json.dumps(model))
    return folder


def export(run: Path, *more: str) -> Any:
    words = ["export", run.name, "--runs", str(run.parent), "--out", str(run / "bundle"), "--key", str(run / "key")]
    return CliRunner().invoke(app, [*words, *more])


def summary_of(run: Path, **changed: Any) -> Path:
    """What a site hands over of its audit of the run's bundle."""
    record = json.loads((run / "bundle" / "bundle.json").read_text())
    values: dict[str, Any] = {
        "weights": record["files"]["model.safetensors"]["sha256"],
        "duplicates": 0.01,
        "control": 0.01,
        "auc": 0.52,
        "auc_low": 0.4,
        "auc_high": 0.64,
        "hits": 0.05,
        "limits": {"duplicates": 0.05, "auc": 0.6},
        "lacuna": "0",
        "kind": "memorisation",
    }
    (run / "summary.json").write_text(json.dumps(values | changed))
    return run / "summary.json"


def test_the_statement_is_printed(run: Path) -> None:
    done = export(run)
    assert done.exit_code == 0, done.exception
    assert done.stdout.splitlines() == [*statement(RECORD), str(run / "bundle")]


@pytest.mark.parametrize(
    ("found", "line"),
    [
        ({"duplicates": 0.4}, "40% of synthetic slices are near-duplicates of a training slice and 1% of one"),
        ({"auc": 0.8, "auc_low": 0.7, "auc_high": 0.9}, "AUC 0.80 [0.70, 0.90], its lower end above"),
        ({"duplicates": 0.4, "control": 0.36}, None),
        ({"auc": 0.8, "auc_low": 0.58, "auc_high": 0.95}, None),  # too few subjects to be sure
        ({"duplicates": 0.06, "limits": {"duplicates": 0.1, "auc": 0.6}}, None),
        ({}, None),
    ],
)
def test_what_is_above_a_sites_limits_is_a_warning_and_no_refusal(run: Path, found: Any, line: str | None) -> None:
    export(run)
    done = export(run, "--audit", str(summary_of(run, **found)))
    assert done.exit_code == 0, done.exception
    assert ("warning" in done.stderr) == (line is not None)
    assert line is None or line in done.stderr
    (kept,) = json.loads((run / "bundle" / "bundle.json").read_text())["audits"]
    assert kept == json.loads((run / "summary.json").read_text())


def test_an_audit_of_another_model_is_refused(run: Path) -> None:
    export(run)
    done = export(run, "--audit", str(summary_of(run, weights="0" * 64)))
    assert isinstance(done.exception, ConfigError)
    assert json.loads((run / "bundle" / "bundle.json").read_text())["audits"] == []


def test_a_runs_calibration_travels_in_its_bundle(run: Path) -> None:
    done = export(run)
    assert "not calibrated" in done.stderr
    assert json.loads((run / "bundle" / "bundle.json").read_text())["calibration"] is None
    known = Calibration(
        sampler=Sampler(kind="multistep", steps=8, samples=8),
        widths={"T1 from 2": (0.1,) * SPREADS},
        source="3 subjects",
    )
    (run / "calibration.json").write_text(json.dumps(known.record()))
    done = export(run)
    assert "not calibrated" not in done.stderr
    record = json.loads((run / "bundle" / "bundle.json").read_text())
    assert record["calibration"] == known.record()
    assert bundle._calibration(record, "bundle x") == known
    with pytest.raises(DataError, match=r"bundle x: calibration\.widths\.T1 from 2"):
        bundle._calibration({"calibration": {**known.record(), "widths": {"T1 from 2": [2.0]}}}, "bundle x")
