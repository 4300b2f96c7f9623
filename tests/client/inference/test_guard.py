"""An input unlike what a bundle was trained on is said, or refused; the sidecar keeps what was said."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.cohort.worlds import subject_volumes
from support.model.models import AMM_TINY, release

from client.inference.guard import guard
from client.inference.job import Asked
from client.inference.synthesize import synthesize
from server.runs.trained_on import ranges_for
from shared.base.errors import ConfigError, DataError
from shared.data.bids import find_files
from shared.data.modalities import bids_path
from shared.data.preparation import load as load_subject
from shared.data.volumes import Grid, write
from shared.model.bundle import Bundle, export, load, make_signing_key
from shared.model.model import read_model
from shared.model.ranges import FACTOR, FAR, UNUSUAL, WIDTH, judge, measure, ranges_of

STEP = 9.0  # mm: a head of 16 voxels
GRID = Grid(height=16, width=16)


def subject(folder: Path, seed: int, *, step: float = STEP, change: Any = None) -> Path:
    for modality, data in subject_volumes(seed, ("T1", "T2")).items():
        path = folder / bids_path(f"sub-{seed:02d}", modality)
        path.parent.mkdir(parents=True, exist_ok=True)
        values = data.astype(np.float32)
        write(path, values if change is None else change(values), np.diag([step, step, step, 1.0]))
    return folder / f"sub-{seed:02d}"


def case(folder: Path, seed: int, **options: Any) -> Any:
    path = subject(folder, seed, **options)
    return measure(load_subject(find_files(path.parent, path), GRID, lambda *_: None))


def bundle_with(tmp_path: Path, ranges: Any) -> Bundle:
    model = read_model(release(tmp_path / "final", "amm_diff", AMM_TINY))
    return Bundle(
        model=model, digest="d" * 64, signer="s" * 16, trusted=True, record={**model.record, "ranges": ranges}
    )


def dark(values: np.ndarray) -> np.ndarray:
    """A contrast of another kind: nearly all at the lower end."""
    top = values.max()
    return np.where(values > 0, top * (values / top) ** 60 + 0.01 * top, 0).astype(np.float32)


def test_the_subjects_that_made_a_range_lie_in_it(tmp_path: Path) -> None:
    cases = [case(tmp_path, seed) for seed in (1, 2, 3)]
    ranges = ranges_of(cases, "three subjects")
    assert ranges is not None
    assert json.loads(json.dumps(ranges)) == ranges
    assert all(judge(ranges, one) == () for one in cases)
    assert judge(ranges, case(tmp_path, 9)) == ()
    assert ranges_of(cases[:1], "one") is None


@pytest.mark.parametrize(
    ("options", "words", "figure"),
    [
        ({"change": dark}, "T1 darker", "T1: its 25 % quantile in the brain is"),
        ({"step": 3.0}, "brain smaller, slices closer", "brain volume in ml is"),
        ({"step": 18.0}, "brain larger, slices further apart", "slice distance in mm is 18, trained on 9 to 9"),
    ],
)
def test_what_is_far_outside_is_refused_unless_forced(
    options: dict[str, Any], words: str, figure: str, tmp_path: Path
) -> None:
    ranges = ranges_of([case(tmp_path / "own", seed) for seed in (1, 2, 3)], "the coordinator's 3 subjects")
    bundle = bundle_with(tmp_path, ranges)
    folder = subject(tmp_path / "site", 7, **options)
    with pytest.raises(
        DataError, match=rf"far from what the bundle was trained on: {words}.*--force to go on, which is recorded"
    ):
        synthesize(bundle, folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    done = synthesize(bundle, folder, tmp_path / "out", Asked(force=True))
    assert done.unusual is not None
    assert done.unusual.startswith(words)
    assert "what is made may look right and be wrong" in done.unusual
    sidecar = json.loads(done.made["FLAIR"].with_name("sub-07_desc-synthetic_FLAIR.json").read_text())
    found = sidecar["Guard"].pop("Unusual")
    assert any(one.startswith(figure) for one in found), found
    assert sidecar["Guard"] == {
        "ComparedWith": "the coordinator's 3 subjects",
        "Meaning": done.unusual,
        "Forced": True,
    }


def test_a_usual_input_passes_in_silence(tmp_path: Path) -> None:
    ranges = ranges_of([case(tmp_path / "own", seed) for seed in (1, 2, 3)], "the coordinator's 3 subjects")
    done = synthesize(bundle_with(tmp_path, ranges), subject(tmp_path / "site", 7), tmp_path / "out")
    assert done.unusual is None
    sidecar = json.loads(done.made["FLAIR"].with_name("sub-07_desc-synthetic_FLAIR.json").read_text())
    assert (sidecar["Guard"]["Unusual"], sidecar["Guard"]["Forced"]) == ([], False)


def test_between_usual_and_far_it_is_said() -> None:
    limits = {"T1": {"50 % quantile": [0.4, 0.5]}, "geometry": {"slice distance in mm": [2.0, 2.0]}}
    ranges = {"version": 1, "from": "x", "subjects": 2, "limits": limits}

    def found(median: float, step: float) -> list[bool]:
        return [
            f.far for f in judge(ranges, {"T1": {"50 % quantile": median}, "geometry": {"slice distance in mm": step}})
        ]

    assert found(0.5 + 0.9 * UNUSUAL * WIDTH, 2.0) == found(0.45, 2.0 * FACTOR ** (0.9 * UNUSUAL)) == []
    assert found(0.5 + 1.1 * UNUSUAL * WIDTH, 2.0) == found(0.45, 2.0 * FACTOR ** (-1.1 * UNUSUAL)) == [False]
    assert found(0.4 - 1.1 * FAR * WIDTH, 2.0) == found(0.45, 2.0 * FACTOR ** (1.1 * FAR)) == [True]


def test_one_tail_of_a_contrast_is_said_and_all_of_it_is_refused() -> None:
    """T2 of a real patient beside a phantom's: its brightest parts are three widths darker, the rest is not far."""
    limits = {"T2": {f"{q} % quantile": [0.1 * i, 0.1 * i + 0.05] for i, q in enumerate((5, 25, 50, 75, 95), start=1)}}
    ranges = {"version": 1, "from": "x", "subjects": 2, "limits": limits}

    def found(*shift: float) -> list[tuple[str, int, bool]]:
        values = {q: low + d for (q, (low, _)), d in zip(limits["T2"].items(), shift, strict=True)}
        return [(f.words, len(f.figures), f.far) for f in judge(ranges, {"T2": values, "geometry": {}})]

    assert found(0, 0, 0, 0, -0.3) == [("T2 darker", 1, False)]
    assert found(0, 0, 0, 0, -0.2) == []
    assert found(-0.3, -0.3, -0.3, -0.3, -0.3) == [("T2 darker", 5, True)]
    assert found(0.35, 0.35, 0, -0.3, -0.3) == [("T2 of another contrast", 4, True)]


def test_a_bundle_without_ranges_gets_geometry_alone_and_says_so(tmp_path: Path) -> None:
    bundle = bundle_with(tmp_path, None)
    folder = subject(tmp_path, 7, step=3.0)
    guarded = guard(bundle, load_subject(find_files(tmp_path, folder), GRID, lambda *_: None), force=False)
    assert (
        guarded.remark
        == "brain smaller, brain narrower, brain shorter than usual: what is made may look right and be wrong"
    )
    assert "usual are 500 to 2200" in guarded.facts["Unusual"][0]
    assert guarded.facts["ComparedWith"].startswith("none: the bundle has no ranges")
    assert guarded.facts["Forced"] is False


def test_ranges_leave_with_the_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.model.bundle.export_denoiser", lambda *_: {})  # half a minute, and no part of this
    final = release(tmp_path / "run" / "final", "amm_diff", AMM_TINY)
    ranges = ranges_of([case(tmp_path / "own", seed) for seed in (1, 2)], "the coordinator's 2 subjects")
    make_signing_key(tmp_path / "key")
    made = load(export(final, tmp_path / "bundle", key=tmp_path / "key", ranges=ranges), trusted=None)
    assert made.record["ranges"] == ranges
    bare = load(export(final, tmp_path / "bare", key=tmp_path / "key"), trusted=None)
    assert bare.record["ranges"] is None


def test_ranges_come_from_the_coordinators_own_subjects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    release(folder / "final", "amm_diff", AMM_TINY)
    monkeypatch.setattr("server.runs.runs.read_config", lambda _: SimpleNamespace(world=tmp_path / "world"))
    assert ranges_for(folder, None) is None
    own = tmp_path / "world" / "coordinator"
    for seed in (1, 2, 3):
        subject(own, seed)
    (own / "sub-04" / "anat").mkdir(parents=True)  # nothing in it: it tells nothing
    for found in (ranges_for(folder, None), ranges_for(folder, own)):
        assert found is not None
        assert (found["subjects"], found["from"]) == (3, "the coordinator's 3 subjects")
        assert set(found["limits"]) == {"geometry", "T1", "T2"}
    subject(tmp_path / "few", 1)
    with pytest.raises(ConfigError, match="1 usable subjects; 2 or more make a range"):
        ranges_for(folder, tmp_path / "few")
