"""A model that reads the chart, at a site: which fields it was told, from where, and that no value is told on."""

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from support.cohort.worlds import subject_volumes
from support.model.models import AMM_TINY, release, signed
from typer.testing import CliRunner

from client.cli.cli import app
from client.inference.charts import LEAK, SECRET, Saying
from client.inference.evaluate import evaluate_here
from client.inference.job import Asked
from client.inference.synthesize import Synthesized, synthesize
from shared.base.errors import ConfigError, DataError
from shared.data.cohort import Cohort, cache_folder, prepare
from shared.data.modalities import bids_path
from shared.data.volumes import write
from shared.diffusion.samplers import Sampler
from shared.model.bundle import Bundle
from shared.model.model import read_model

EDGE = 16
ACA: dict[str, Any] = {
    "modalities": ["T1", "FDG", "AV45"],
    "size": "tiny",
    "precision": "fp32",
    "times": 20,
    **dict.fromkeys(("depth", "height", "width"), EDGE),
}
ROW = {"diagnosis": "LMCI", "mmse": "23", "adas13": "n/a", "cdrsb": "3.5"}
DDIM = Sampler(kind="ddim", steps=2, samples=1)


def bundle_of(folder: Path, name: str = "aca_diff", **options: Any) -> Bundle:
    model = read_model(release(folder, name, {**ACA, **options} if name == "aca_diff" else AMM_TINY))
    return Bundle(model=model, digest="d" * 64, signer="s" * 16, trusted=True, record=model.record)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundle_of(tmp_path_factory.mktemp("run") / "final")


def subject(bids: Path, modalities: tuple[str, ...] = ("T1", "FDG"), row: dict[str, str] | None = None) -> Path:
    made = subject_volumes(7, ("T1", "T2", "FLAIR"), EDGE)
    stand_in = {"T1": made["T1"], "FDG": made["T2"] / 400, "AV45": made["FLAIR"] / 400}
    for modality in modalities:
        path = bids / bids_path("sub-07", modality)
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, stand_in[modality].astype(np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))
    row = ROW if row is None else row
    (bids / "participants.tsv").write_text(
        "\t".join(["participant_id", *row]) + "\n" + "\t".join(["sub-07", *row.values()]) + "\n"
    )
    return bids / "sub-07"


def sidecar(done: Synthesized, modality: str = "AV45") -> dict[str, Any]:
    path = {**done.made, **done.kept}[modality]
    return dict(json.loads(Path(str(path).replace(".nii.gz", ".json")).read_text()))


def volume(done: Synthesized, modality: str = "AV45") -> np.ndarray:
    return np.asarray(nibabel.load({**done.made, **done.kept}[modality]).get_fdata())


def test_fields_come_from_participants_tsv_and_are_named_without_their_values(bundle: Bundle, tmp_path: Path) -> None:
    done = synthesize(bundle, subject(tmp_path / "bids"), tmp_path / "out", Asked(sampler=DDIM))
    chart = sidecar(done)["Chart"]
    assert chart["Used"] == dict.fromkeys(("diagnosis", "mmse", "cdrsb"), "participants.tsv")
    assert chart["NotUsed"] == {"adas13": "not known"}
    assert chart["Warning"].startswith(LEAK)
    assert "Values" not in chart
    assert done.chart is not None
    assert done.chart.line.startswith("from the chart: diagnosis (participants.tsv), mmse (participants.tsv)")
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*.json"))
    for value in (b"MCI", b"3.5", b'"23', b" 23"):
        assert value not in written


def test_what_is_said_wins_over_the_file_and_values_are_written_when_asked(bundle: Bundle, tmp_path: Path) -> None:
    folder = subject(tmp_path / "bids", row={"diagnosis": "nonsense", "mmse": "n/a"})
    saying = Saying(values={"diagnosis": "NC", "mmse": 21.6, "adas13": 28.0}, show_values=True)
    chart = sidecar(synthesize(bundle, folder, tmp_path / "out", Asked(sampler=DDIM, saying=saying)))["Chart"]
    assert chart["Used"] == dict.fromkeys(("diagnosis", "mmse", "adas13"), "said")
    assert chart["Values"] == {"diagnosis": "HC", "mmse": 22.0, "adas13": 28.0}


def test_without_the_diagnosis_nothing_of_it_is_in_the_image(bundle: Bundle, tmp_path: Path) -> None:
    told = {}
    for diagnosis in ("AD", "HC"):
        folder = subject(tmp_path / diagnosis, row={"diagnosis": diagnosis, "mmse": "23"})
        for use in (True, False):
            saying = Saying(values={}, use_diagnosis=use)
            done = synthesize(bundle, folder, tmp_path / f"out-{diagnosis}-{use}", Asked(sampler=DDIM, saying=saying))
            told[diagnosis, use] = volume(done)
            chart = sidecar(done)["Chart"]
            assert ("diagnosis" in chart["Used"]) is use
            assert ("Warning" in chart) is use
            assert use or chart["NotUsed"]["diagnosis"] == "--no-diagnosis"
    assert np.array_equal(told["AD", False], told["HC", False])
    assert not np.array_equal(told["AD", True], told["HC", True])


def test_the_chart_is_heard_and_another_one_makes_another_image(bundle: Bundle, tmp_path: Path) -> None:
    folder, out = subject(tmp_path / "bids", row={"mmse": "n/a"}), tmp_path / "out"
    high, again, low = (
        synthesize(bundle, folder, out, Asked(sampler=DDIM, saying=Saying(values={"mmse": mmse})))
        for mmse in (29.0, 29.2, 9.0)
    )
    assert high.made
    assert again.kept
    assert low.made, "not what is kept for another chart"
    assert not np.array_equal(volume(low), volume(synthesize(bundle, folder, tmp_path / "no", Asked(sampler=DDIM))))


def test_the_key_of_a_result_cannot_be_guessed_back_to_the_chart(bundle: Bundle, tmp_path: Path) -> None:
    """It is made with a secret of the output folder: the same work in another folder has another key."""
    folder = subject(tmp_path / "bids")
    one, two = (synthesize(bundle, folder, tmp_path / out, Asked(sampler=DDIM)) for out in ("one", "two"))
    assert np.array_equal(volume(one), volume(two))
    assert sidecar(one)["Key"] != sidecar(two)["Key"]
    secret = tmp_path / "one" / SECRET
    assert secret.stat().st_mode & 0o777 == 0o600
    assert hashlib.sha256(secret.read_bytes()).hexdigest() not in json.dumps(sidecar(one))


@pytest.mark.parametrize(("source", "target"), list(itertools.permutations(("T1", "FDG", "AV45"), 2)))
def test_each_direction_works_from_one_bundle(bundle: Bundle, tmp_path: Path, source: str, target: str) -> None:
    done = synthesize(
        bundle, subject(tmp_path / "b", (source,)), tmp_path / "out", Asked(sampler=DDIM, targets=[target])
    )
    assert list(done.made) == [target]
    made = volume(done, target)
    assert made.shape == (EDGE, EDGE, EDGE)
    assert np.isfinite(made).all()
    assert made.std() > 0
    assert sidecar(done, target)["Chart"]["Used"]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"mmse": "31"}, r"participants.tsv: mmse=31.0: must be a number in \[0, 30\]; mend it, or say --mmse"),
        ({"diagnosis": "PD"}, r"participants.tsv: diagnosis='PD': must be one of AD, MCI, HC"),
        ({"cdrsb": "high"}, r"participants.tsv: cdrsb='high': must be a number; mend it, or say --cdrsb"),
    ],
)
def test_a_wrong_value_in_the_file_is_named_with_its_rule(
    bundle: Bundle, tmp_path: Path, row: dict[str, str], says: str
) -> None:
    with pytest.raises(DataError, match=says) as refused:
        synthesize(bundle, subject(tmp_path / "bids", row=row), tmp_path / "out", Asked(sampler=DDIM))
    assert "sub-07" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_wrong_value_that_is_said_is_named_with_its_rule() -> None:
    with pytest.raises(ConfigError, match=r"mmse=31.0: must be a number in \[0, 30\]"):
        Saying(values={"mmse": 31.0})
    with pytest.raises(ConfigError, match=r"diagnosis='AD': --no-diagnosis was said too"):
        Saying(values={"diagnosis": "AD"}, use_diagnosis=False)


def test_fields_that_the_model_does_not_hear_are_told_and_can_not_be_said(bundle: Bundle, tmp_path: Path) -> None:
    deaf = bundle_of(tmp_path / "blind" / "final", use_diagnosis=False, fields=["diagnosis", "mmse"])
    folder = subject(tmp_path / "bids")
    chart = sidecar(synthesize(deaf, folder, tmp_path / "out", Asked(sampler=DDIM)))["Chart"]
    assert chart["Used"] == {"mmse": "participants.tsv"}
    assert set(chart["NotUsed"].values()) == {"the model was not trained to hear it"}
    with pytest.raises(ConfigError, match=r"diagnosis: this bundle's model was not trained to hear it; .* hears mmse"):
        synthesize(deaf, folder, tmp_path / "out", Asked(sampler=DDIM, saying=Saying(values={"diagnosis": "AD"})))
    images_alone = bundle_of(tmp_path / "amm" / "final", "amm_diff")
    with pytest.raises(ConfigError, match="mmse: the model amm_diff does not read the chart"):
        synthesize(images_alone, folder, tmp_path / "out", Asked(saying=Saying(values={"mmse": 3.0})))


def test_the_command_says_what_was_used(tmp_path: Path) -> None:
    final = release(tmp_path / "run" / "final", "aca_diff", ACA, sampler={"kind": "ddim", "steps": 2, "samples": 1})
    folder, key = signed(tmp_path, final)
    asked = [
        "synthesize",
        "--bundle",
        str(folder),
        "--trust",
        str(key),
        "--subject",
        str(subject(tmp_path / "bids")),
        "--out",
        str(tmp_path / "out"),
        "--target",
        "AV45",
    ]
    done = CliRunner().invoke(app, [*asked, "--no-diagnosis", "--adas13", "28", "--mmse", "21"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "from the chart: mmse (said), adas13 (said), cdrsb (participants.tsv)" in done.stderr
    assert "not used: diagnosis: --no-diagnosis" in done.stderr
    wrong = CliRunner().invoke(app, [*asked, "--mmse", "99"])
    assert isinstance(wrong.exception, ConfigError)
    assert "mmse=99.0: must be a number in [0, 30]" in str(wrong.exception)


def test_the_bundle_is_scored_on_the_sites_own_subjects(bundle: Bundle, tmp_path: Path) -> None:
    """Whole volumes, in all nine directions."""
    subject(tmp_path / "bids", ("T1", "FDG", "AV45"))
    prepare(tmp_path / "bids", bundle.model.grid, workers=0)
    cohort = Cohort.open(cache_folder(tmp_path / "bids", bundle.model.grid))
    scores = evaluate_here(bundle, cohort, tmp_path / "scores", sampler=DDIM).scores.query("metric == 'psnr'")
    assert len(scores[["target", "shown"]].drop_duplicates()) == 9
    assert np.isfinite(scores["volume"]).all()
