"""Raw measurements at a site: the right image in the right place, honest labels, and every wrong input one line."""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ismrmrd
import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from support.cohort.raw import acquisition, header, transform, write_fastmri, write_ismrmrd
from support.model.models import AMM_TINY, ANY_TINY, release, signed

from client.cli import cli
from client.inference.cases import Raw
from client.inference.job import Asked
from client.inference.measurements import Simulation
from client.inference.reconstruct import reconstruct
from shared.base.errors import ConfigError, DataError
from shared.data.bids import find_files
from shared.data.modalities import bids_path
from shared.data.preparation import load as load_subject
from shared.data.volumes import write
from shared.diffusion.acquisition import birdcage
from shared.diffusion.samplers import Sampler
from shared.model.bundle import Bundle
from shared.model.model import read_model
from shared.model.ranges import measure, ranges_of

SHAPE = (5, 19, 22)  # the brain lies off the middle of it, and fits a grid of 16 x 16
AFFINE = np.array([[2.0, 0, 0, -14], [0, 1.5, 0, -16], [0, 0, 4.0, -8], [0, 0, 0, 1]])
FAST = Sampler(kind="mds_fast", steps=3)
FAITHFUL = Sampler(kind="mds", steps=3, gamma=1e6)  # fully sampled data decide alone


def volumes(seed: int = 7) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    z, y, x = np.indices(SHAPE)
    brain = ((z - 2) / 2.4) ** 2 + ((y - 8) / 7.4) ** 2 + ((x - 12) / 6.4) ** 2 < 1
    inner = ((z - 2) / 2) ** 2 + ((y - 9) / 3.5) ** 2 + ((x - 11) / 4) ** 2 < 1
    levels = {"T1": (600, 900), "T2": (800, 400), "FLAIR": (500, 1000)}
    return {
        m: np.where(brain, np.where(inner, b, a) * (1 + 0.1 * rng.random(SHAPE)), 0).astype(np.float32)
        for m, (a, b) in levels.items()
    }


def subject(folder: Path, modalities: tuple[str, ...], name: str = "sub-07", affine: NDArray[Any] = AFFINE) -> Path:
    (folder / name).mkdir(parents=True, exist_ok=True)
    for modality in modalities:
        path = folder / bids_path(name, modality)
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, volumes()[modality], affine)
    return folder / name


@pytest.fixture(scope="module")
def final(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return release(tmp_path_factory.mktemp("run") / "final", "any2all", ANY_TINY)


@pytest.fixture(scope="module")
def bundle(final: Path) -> Bundle:
    model = read_model(final)
    return Bundle(model=model, digest="d" * 64, signer="s" * 16, trusted=True, record=model.record)


def maps_of(coils: int = 4) -> NDArray[np.complex64]:
    return np.asarray(birdcage(coils, *SHAPE[1:])[0].numpy())


def kspace_of(data_DHW: NDArray[Any], coils: int = 4, noise: float = 0.0) -> NDArray[np.complex64]:
    rng = np.random.default_rng(1)
    y = transform(maps_of(coils) * data_DHW[:, None])
    return (y + noise / np.sqrt(2) * (rng.normal(size=y.shape) + 1j * rng.normal(size=y.shape))).astype(np.complex64)


def raw_file(path: Path, *, noise: float = 0.0, step: int = 1, maps: bool = True, extra: Any = 0.0) -> Path:
    mask = np.arange(SHAPE[2]) % step == SHAPE[2] // 2 % step
    others = {"sensitivity_maps": maps_of()} if maps else {}
    return write_fastmri(path, kspace_of(volumes()["FLAIR"] + extra, noise=noise), mask=mask, **others)


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def sidecar(out: Path, ending: str = "desc-reconstructed_FLAIR") -> dict[str, Any]:
    return dict(json.loads((out / f"sub-07/anat/sub-07_{ending}.json").read_text()))


# --- the right image in the right place -----------------------------------------------------------------------------


def agrees(path: Path, *, within: float) -> None:
    """With the true FLAIR, but for what lies beyond the percentiles of its scaling."""
    image = nibabel.load(path)
    made, truth = image.get_fdata().transpose(2, 1, 0), volumes()["FLAIR"]
    low, high = np.percentile(truth[truth > 0], (0.5, 99.5))
    brain = truth > 0
    assert np.abs(made - truth.clip(low, high))[brain].max() < within * high
    assert not made[~brain].any()
    assert np.allclose(image.affine, AFFINE, atol=1e-3)


def test_complete_data_come_back_where_they_were(bundle: Bundle, tmp_path: Path) -> None:
    """Whatever the prior says: field of view, grid, intensities and the way back fit each other."""
    raw = Raw(measured={"FLAIR": raw_file(tmp_path / "raw.h5")})
    done = reconstruct(bundle, subject(tmp_path, ("T1",)), raw, tmp_path / "out", Asked(sampler=FAITHFUL))
    agrees(done.made["FLAIR"], within=0.02)
    assert list(done.made) == ["T2", "FLAIR"]
    assert not done.flags


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("alone", [False, True])
def test_a_scanner_s_file_comes_back_where_it_was(bundle: Bundle, tmp_path: Path, swap: bool, alone: bool) -> None:
    """ISMRMRD: read and phase directions turned, both fields of view oversampled, with and without a volume."""
    data, coils = volumes()["FLAIR"][:, ::-1, ::-1], 3  # it reads from the front, and from right to left
    rows, columns = SHAPE[1], SHAPE[2]
    data = data.swapaxes(1, 2) if swap else data
    n, m = data.shape[1:]
    nx, ny = 2 * n, m + 4
    wide = np.zeros((SHAPE[0], nx, ny), np.float32)
    wide[:, nx // 2 - n // 2 :, ny // 2 - m // 2 :][:, :n, :m] = data
    maps = np.asarray(birdcage(coils, nx, ny)[0].numpy())
    y = transform(maps * wide[:, None])
    directions = {"read_dir": (0, 1, 0), "phase_dir": (1, 0, 0)}  # patient coordinates: to the back, to the left
    if swap:
        directions = {"read_dir": (1, 0, 0), "phase_dir": (0, 1, 0)}
    centre = AFFINE @ [columns - 1 - columns // 2, rows - 1 - rows // 2, 0, 1]
    made = [
        acquisition(
            y[z][..., line],
            line,
            z,
            position=(-centre[0], -centre[1], centre[2] + 4 * z),
            slice_dir=(0, 0, 1),
            **directions,
        )
        for z in range(SHAPE[0])
        for line in range(ny)
    ]
    step = (2.0, 1.5) if swap else (1.5, 2.0)
    sizes = ([nx, ny, 1], [n, m, 1], [nx * step[0], ny * step[1], 4], [n * step[0], m * step[1], 4])
    path = write_ismrmrd(tmp_path / "raw.h5", header(*sizes), made)
    np.save(tmp_path / "maps.npy", maps)
    raw = Raw(measured={"FLAIR": path}, maps={"FLAIR": tmp_path / "maps.npy"})
    folder = subject(tmp_path, () if alone else ("T1",))
    done = reconstruct(bundle, folder, raw, tmp_path / "out", Asked(sampler=FAITHFUL))
    found = sidecar(tmp_path / "out")
    assert found["Geometry"] == ("header of the FLAIR scan" if alone else "of the subject's volumes")
    if alone:  # its brain is found by a threshold
        image = nibabel.load(done.made["FLAIR"])
        assert np.allclose(image.affine, AFFINE, atol=1e-3)
        truth, got = volumes()["FLAIR"], image.get_fdata().transpose(2, 1, 0)
        shared = (truth > 0) & (got > 0)
        assert shared.sum() > 0.9 * max((truth > 0).sum(), (got > 0).sum())
        assert np.corrcoef(truth[shared], got[shared])[0, 1] > 0.98
    else:
        agrees(done.made["FLAIR"], within=0.02)


def test_maps_are_estimated_from_the_middle_lines(bundle: Bundle, tmp_path: Path) -> None:
    raw = Raw(measured={"FLAIR": raw_file(tmp_path / "raw.h5", maps=False)})
    done = reconstruct(bundle, subject(tmp_path, ("T1",)), raw, tmp_path / "out", Asked(sampler=FAITHFUL))
    truth, got = volumes()["FLAIR"], nibabel.load(done.made["FLAIR"]).get_fdata().transpose(2, 1, 0)
    assert np.corrcoef(truth[truth > 0], got[truth > 0])[0, 1] > 0.95
    assert sidecar(tmp_path / "out")["Measurement"]["CoilMaps"] == "estimated from the fully measured lines (ESPIRiT)"


def test_a_spacing_may_be_given_where_nothing_says_it(bundle: Bundle, tmp_path: Path) -> None:
    raw, folder = Raw(measured={"FLAIR": raw_file(tmp_path / "raw.h5")}), subject(tmp_path, ())
    with pytest.raises(DataError, match=r"neither a volume of the subject nor the file's header .* give its spacing"):
        reconstruct(bundle, folder, raw, tmp_path / "out", Asked(sampler=FAST))
    assert not (tmp_path / "out").exists()
    told = dataclasses.replace(raw, spacing_mm=(2.0, 1.5, 4.0))
    done = reconstruct(bundle, folder, told, tmp_path / "out", Asked(sampler=FAST))
    assert list(done.made) == ["T1", "T2", "FLAIR"]
    assert nibabel.load(done.made["T1"]).header.get_zooms() == (2.0, 1.5, 4.0)
    assert nibabel.load(done.made["T1"]).shape == SHAPE[::-1]


# --- honest labels --------------------------------------------------------------------------------------------------


def test_what_is_written_says_what_it_is(bundle: Bundle, tmp_path: Path) -> None:
    folder = subject(tmp_path, ("T1", "FLAIR"))
    options = dataclasses.replace(FAST, samples=3)
    raw = Raw(simulate=("FLAIR",), simulation=Simulation(acceleration=2, noise=0.02))
    done = reconstruct(bundle, folder, raw, tmp_path / "out", Asked(sampler=options, seed=3))
    assert sorted(content(tmp_path / "out")) == [
        "dataset_description.json",
        "sub-07/anat/sub-07_desc-reconstructed_FLAIR.json",
        "sub-07/anat/sub-07_desc-reconstructed_FLAIR.nii.gz",
        "sub-07/anat/sub-07_desc-reconstructionuncertainty_FLAIR.nii.gz",
        "sub-07/anat/sub-07_desc-synthetic_T2w.json",
        "sub-07/anat/sub-07_desc-synthetic_T2w.nii.gz",
        "sub-07/anat/sub-07_desc-uncertainty_T2w.nii.gz",
        "sub-07/sub-07_desc-preview.png",
    ]
    found, other = sidecar(tmp_path / "out"), sidecar(tmp_path / "out", "desc-synthetic_T2w")
    assert (found["Synthetic"], found["Reconstructed"], other["Synthetic"]) == (False, True, True)
    assert "learned prior" in found["Description"]
    assert found["Inputs"]["FLAIR"]["As"] == "simulated k-space"
    assert set(found["Inputs"]) == set(other["Inputs"]) == {"T1", "FLAIR"}
    assert found["Measurement"]["Acceleration"] == 2
    assert found["Measurement"]["Source"].startswith("simulated")
    assert (found["Bundle"]["SHA256"], found["Seed"], found["Samples"]) == ("d" * 64, 3, 3)
    assert found["Sampler"]["kind"] == "mds_fast"
    assert len(found["DataConsistency"]["ResidualOverNoise"]) == len(found["DataConsistency"]["Slices"]) == 5
    assert done.scores["FLAIR"] == found["Score"]
    assert set(found["Score"]) == {"PSNR", "SSIM", "CGSENSEPSNR", "CGSENSESSIM"}


def test_the_hidden_volume_is_seen_through_its_measurement_alone(bundle: Bundle, tmp_path: Path) -> None:
    """The same k-space by way of a file: the same image, whether the volume lies there or not."""
    folder, made = subject(tmp_path, ("T1", "FLAIR")), []
    raw = Raw(measured={"FLAIR": raw_file(tmp_path / "raw.h5", step=2)})
    for case in ("there", "absent"):
        if case == "absent":
            (folder / "anat/sub-07_FLAIR.nii.gz").unlink()
        done = reconstruct(bundle, folder, raw, tmp_path / case, Asked(sampler=FAST))
        made.append((done.made["FLAIR"].read_bytes(), done.made["T2"].read_bytes()))
    assert made[0] == made[1]
    assert not done.scores


def test_a_residual_like_noise_is_not_flagged_and_signal_from_elsewhere_is(bundle: Bundle, tmp_path: Path) -> None:
    folder, fat = subject(tmp_path, ("T1",)), np.zeros(SHAPE, np.float32)
    fat[2, 17:19, 2:6] = 2000  # of one slice, outside the brain
    for extra, flagged in ((0.0, 0), (fat, 1)):
        raw = Raw(measured={"FLAIR": raw_file(tmp_path / "raw.h5", noise=20.0, extra=extra)})
        done = reconstruct(bundle, folder, raw, tmp_path / f"out{flagged}", Asked(sampler=FAITHFUL, targets=["FLAIR"]))
        ratios = sidecar(tmp_path / f"out{flagged}")["DataConsistency"]["ResidualOverNoise"]
        assert sum(ratio > 3 for ratio in ratios) == flagged
        assert all(0.5 < ratio < 2 for z, ratio in enumerate(ratios) if z != 2 or not flagged)
        assert ("FLAIR" in done.flags) == bool(flagged)
    assert done.flags["FLAIR"].startswith("In 1 of 5 slices the image does not explain the measurement")


def test_more_of_the_measurement_is_a_better_score(bundle: Bundle, tmp_path: Path) -> None:
    folder, scores = subject(tmp_path, ("T1", "FLAIR")), []
    for acceleration in (1, 4):
        raw = Raw(simulate=("FLAIR",), simulation=Simulation(acceleration=acceleration))
        done = reconstruct(
            bundle, folder, raw, tmp_path / f"out{acceleration}", Asked(sampler=FAITHFUL, targets=["FLAIR"])
        )
        scores.append(done.scores["FLAIR"])
    assert scores[0]["PSNR"] > 30
    assert scores[0]["PSNR"] > scores[1]["PSNR"] + 3
    assert scores[0]["CGSENSEPSNR"] > scores[1]["CGSENSEPSNR"] + 3


# --- again, and after a stop ----------------------------------------------------------------------------------------


def test_a_stopped_job_goes_on_to_the_same_bytes(bundle: Bundle, tmp_path: Path) -> None:
    folder, options = subject(tmp_path, ("T1",)), dataclasses.replace(FAST, samples=2)
    raw = Raw(measured={"FLAIR": raw_file(tmp_path / "raw.h5", step=2)})

    def stop(done: int, of: int) -> None:
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reconstruct(bundle, folder, raw, tmp_path / "out", Asked(sampler=options, at_once=2), progress=stop)
    assert [p.name[:15] for p in (tmp_path / "out").iterdir()] == [".partial-sub-07"]
    more: list[int] = []
    reconstruct(
        bundle, folder, raw, tmp_path / "out", Asked(sampler=options, at_once=2), progress=lambda n, _: more.append(n)
    )
    assert more == [5]
    reconstruct(bundle, folder, raw, tmp_path / "whole", Asked(sampler=options, at_once=2))
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    again = reconstruct(bundle, folder, raw, tmp_path / "out", Asked(sampler=options))
    assert (list(again.made), list(again.kept)) == ([], ["T2", "FLAIR"])
    raw_file(tmp_path / "raw.h5", step=2, noise=1.0)  # other data: made anew
    assert list(reconstruct(bundle, folder, raw, tmp_path / "out", Asked(sampler=options)).made) == ["T2", "FLAIR"]


# --- the guard ------------------------------------------------------------------------------------------------------


def trained_on(bundle: Bundle, folder: Path, slice_mm: float) -> Bundle:
    """The bundle, made for subjects like this one, of other slices' distance."""
    measured = measure(load_subject(find_files(folder.parent, folder), bundle.model.grid, lambda *_: None))
    usual = {**measured, "geometry": {**measured["geometry"], "slice distance in mm": slice_mm}}
    ranges = ranges_of([usual, usual], "the coordinator's 2 subjects")
    return dataclasses.replace(bundle, record={**bundle.record, "ranges": ranges})


def test_clean_volumes_unlike_the_bundles_are_refused_unless_forced(bundle: Bundle, tmp_path: Path) -> None:
    raw, folder, out = (
        Raw(measured={"FLAIR": raw_file(tmp_path / "raw.h5")}),
        subject(tmp_path, ("T1",)),
        tmp_path / "out",
    )
    other = trained_on(bundle, folder, slice_mm=1.0)
    with pytest.raises(DataError, match=r"slice distance in mm is 4, trained on 1 to 1 .*--force to go on"):
        reconstruct(other, folder, raw, out, Asked(sampler=FAST))
    assert not out.exists()
    done = reconstruct(other, folder, raw, out, Asked(sampler=FAST, force=True))
    assert ["slice distance" in line for line in done.unusual] == [True]
    for ending in ("desc-reconstructed_FLAIR", "desc-synthetic_T2w"):
        assert sidecar(out, ending)["Guard"] == {
            "ComparedWith": "the coordinator's 2 subjects",
            "Unusual": list(done.unusual),
            "Forced": True,
        }


def test_usual_volumes_pass_in_silence_and_a_scan_alone_is_not_compared(bundle: Bundle, tmp_path: Path) -> None:
    folder = subject(tmp_path, ("T1",))
    usual, raw = trained_on(bundle, folder, slice_mm=4.0), raw_file(tmp_path / "raw.h5")
    done = reconstruct(usual, folder, Raw(measured={"FLAIR": raw}), tmp_path / "both", Asked(sampler=FAST))
    assert (done.unusual, sidecar(tmp_path / "both")["Guard"]["Forced"]) == ((), False)
    alone = Raw(measured={"FLAIR": raw}, spacing_mm=(2.0, 1.5, 4.0))
    reconstruct(
        trained_on(bundle, folder, slice_mm=1.0),
        subject(tmp_path / "bare", ()),
        alone,
        tmp_path / "scan",
        Asked(sampler=FAST, targets=["FLAIR"]),
    )
    assert sidecar(tmp_path / "scan")["Guard"] is None


# --- through the command --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory, final: Path) -> list[str]:
    folder, key = signed(tmp_path_factory.mktemp("bundle"), final)
    return ["--bundle", str(folder), "--trust", str(key)]


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["lacuna-site", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


def test_the_command_tries_a_subject_s_own_volume(
    shipped: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = subject(tmp_path, ("T1", "FLAIR"))
    code = call(
        monkeypatch,
        "reconstruct",
        *shipped,
        "--subject",
        folder,
        "--simulate",
        "flair",
        "--acceleration",
        2,
        "--coils",
        6,
        "--acs",
        4,
        "--noise",
        0.02,
        "--mask",
        "random",
        "--target",
        "FLAIR",
        "--samples",
        2,
        "--out",
        tmp_path / "out",
        "--force",
    )
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert "unusual input: width in mm is" in printed.err  # of no human's, with nothing said by the bundle
    assert "FLAIR against the hidden volume: PSNR" in printed.out
    assert "desc-reconstructed_FLAIR.nii.gz" in printed.out
    found = sidecar(tmp_path / "out")
    assert (found["Measurement"]["Mask"], found["Measurement"]["CalibrationLines"]) == ("random", 4)
    assert found["Sampler"]["steps"] == 15  # the bundle's own sampler takes images only


def test_the_command_takes_files(shipped: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "maps.npy", maps_of())
    raw = raw_file(tmp_path / "raw.h5", step=2, maps=False)
    code = call(
        monkeypatch,
        "reconstruct",
        *shipped,
        "--subject",
        subject(tmp_path, ("T1",)),
        "--measured",
        f"FLAIR={raw}",
        "--maps",
        f"FLAIR={tmp_path / 'maps.npy'}",
        "--out",
        tmp_path / "out",
    )
    assert code == 0
    assert sidecar(tmp_path / "out")["Measurement"]["CoilMaps"] == "maps.npy"


def spoil_nan(folder: Path) -> None:
    y = kspace_of(volumes()["FLAIR"])
    y[2, 1, 3, 4] = np.nan
    write_fastmri(folder / "raw.h5", y, sensitivity_maps=maps_of())


def spoil_mask(folder: Path) -> None:
    write_fastmri(folder / "raw.h5", kspace_of(volumes()["FLAIR"]), mask=np.ones(21), sensitivity_maps=maps_of())


def spoil_maps(folder: Path) -> None:
    np.save(folder / "maps.npy", maps_of()[:, :-1])


def spoil_matrix(folder: Path) -> None:
    write_fastmri(folder / "raw.h5", kspace_of(volumes()["FLAIR"])[..., :-2], sensitivity_maps=maps_of()[..., :-2])


def spoil_slices(folder: Path) -> None:
    write_fastmri(folder / "raw.h5", kspace_of(volumes()["FLAIR"])[1:], sensitivity_maps=maps_of())


def spoil_lines(folder: Path) -> None:
    raw_file(folder / "raw.h5", step=3, maps=False)


def spoil_cut(folder: Path) -> None:
    raw_file(folder / "raw.h5")
    (folder / "raw.h5").write_bytes((folder / "raw.h5").read_bytes()[:-300])


def spoil_place(folder: Path) -> None:
    made = [
        acquisition(
            np.ones((1, 19), np.complex64),
            n,
            z,
            position=(0, 0, 4 * z),
            read_dir=(0, -1, 0),
            phase_dir=(-1, 0, 0),
            slice_dir=(0, 0, 1),
        )
        for z in range(5)
        for n in range(22)
    ]
    write_ismrmrd(folder / "raw.h5", header([19, 22, 1], [19, 22, 1], [28.5, 44, 4], [28.5, 44, 4]), made)


def spoil_nothing(folder: Path) -> None: ...


MEASURED = ("--measured", "FLAIR={}/raw.h5")
WRONG: list[tuple[Callable[[Path], None], tuple[str, ...], tuple[str, ...], int, str]] = [
    (spoil_nan, ("T1",), MEASURED, 3, "raw.h5: 1 of 1672 samples of slice 2 are NaN or infinite"),
    (spoil_mask, ("T1",), MEASURED, 3, "raw.h5: `mask` of shape (21,): must be (22,) or (19, 22), as `kspace` has"),
    (
        spoil_maps,
        ("T1",),
        (*MEASURED, "--maps", "FLAIR={}/maps.npy"),
        3,
        "maps.npy: coil maps of shape (4, 18, 22): the k-space needs (5, 4, 19, 22) or (4, 19, 22)",
    ),
    (
        spoil_matrix,
        ("T1",),
        MEASURED,
        3,
        "raw data of FLAIR: 5 x 19 x 20 (slices, rows, columns), and the subject's volumes have 5 x 19 x 22",
    ),
    (spoil_slices, ("T1",), MEASURED, 3, "raw data of FLAIR: 4 x 19 x 22 (slices, rows, columns), and"),
    (spoil_lines, ("T1",), MEASURED, 3, "raw.h5: 4 coils without coil maps, and 1 fully measured lines round the"),
    (spoil_cut, ("T1",), MEASURED, 3, "raw.h5: truncated: the file ends early"),
    (spoil_place, ("T1",), MEASURED, 3, "mm from the subject's volumes: must be registered to the scan's grid"),
    (spoil_nothing, ("T1",), ("--measured", "T2S={}/raw.h5"), 3, "raw data of T2S: the bundle knows T1, T2, FLAIR"),
    (spoil_nothing, ("T1",), ("--measured", "FLAIR={}/absent.h5"), 3, "absent.h5: no such file"),
    (spoil_nothing, ("T1",), ("--simulate", "T2"), 3, "simulate T2: sub-07 has no volume of it to measure"),
    (spoil_nothing, ("T1",), ("--simulate", "CT"), 3, "raw data of CT: the bundle knows T1, T2, FLAIR"),
    (
        spoil_nothing,
        ("T1",),
        (),
        3,
        "sub-07: nothing measured: name raw data, or a volume to simulate from; "
        "`lacuna-site synthesize` fills in from volumes alone",
    ),
    (
        spoil_nothing,
        (),
        (),
        3,
        "sub-07: nothing measured: name raw data, or a volume to simulate from; the bundle "
        "works from any of T1, T2, FLAIR",
    ),
    (spoil_nothing, ("T1",), (*MEASURED, "--target", "CT"), 3, "target CT: the bundle makes T1, T2, FLAIR"),
    (
        spoil_nothing,
        ("T1",),
        (*MEASURED, "--sampler", "ddim"),
        2,
        "sampler=ddim: takes clean images only; for raw data take mps, mds, mds_fast",
    ),
    (spoil_nothing, ("T1",), ("--measured", "FLAIR"), 2, "measured='FLAIR': must be MODALITY=FILE"),
    (spoil_nothing, ("T1",), (*MEASURED, *MEASURED), 2, "FLAIR is named twice"),
    (spoil_nothing, ("T1",), (*MEASURED, "--maps", "T2={}/maps.npy"), 2, "maps='T2': must be of a modality that is"),
    (
        spoil_nothing,
        ("T1", "FLAIR"),
        (*MEASURED, "--simulate", "FLAIR"),
        2,
        "simulate='FLAIR': must be of a modality that is not measured already",
    ),
    (spoil_nothing, ("T1",), ("--simulate", "T1", "--mask", "spiral"), 2, "simulate.mask='spiral': must be one of"),
    (spoil_nothing, (), (*MEASURED, "--spacing", "1,2"), 2, "spacing='1,2': must be X,Y,Z in mm"),
    (spoil_nothing, ("T1",), ("--measured", "X-ray={}/raw.h5"), 2, "modality='X-ray': must be one of"),
]


@pytest.mark.parametrize(("spoil", "held", "arguments", "code", "line"), WRONG)
def test_a_wrong_input_is_one_line_and_nothing_is_written(
    shipped: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], None],
    held: tuple[str, ...],
    arguments: tuple[str, ...],
    code: int,
    line: str,
) -> None:
    folder = subject(tmp_path, held)
    raw_file(tmp_path / "raw.h5")
    spoil(tmp_path)
    before = content(tmp_path)
    filled = [argument.format(tmp_path) for argument in arguments]
    found = call(monkeypatch, "reconstruct", *shipped, "--subject", folder, *filled, "--out", tmp_path / "out")
    printed = capsys.readouterr().err
    assert found == code, printed
    assert line in printed
    assert len(printed.strip().splitlines()) == 1
    assert "Traceback" not in printed
    assert content(tmp_path) == before
    assert not (tmp_path / "out").exists()


def test_a_bundle_of_images_alone_is_refused(tmp_path: Path) -> None:
    model = read_model(release(tmp_path / "final", "amm_diff", AMM_TINY))
    images = Bundle(model=model, digest="d" * 64, signer="s" * 16, trusted=True, record=model.record)
    raw = Raw(measured={"FLAIR": raw_file(tmp_path / "raw.h5")})
    with pytest.raises(DataError, match="amm_diff works from images only; raw data need any2all"):
        reconstruct(images, subject(tmp_path, ("T1",)), raw, tmp_path / "out")


def test_options_are_checked_before_anything_is_read() -> None:
    for arguments, line in [
        ({"acceleration": 0}, "acceleration=0: must be 1 or more"),
        ({"noise": -1.0}, "noise=-1.0: must be in"),
        ({"coils": 0}, "coils=0: must be 1 or more"),
    ]:
        with pytest.raises(ConfigError, match=line):
            Simulation(**arguments)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="spacing"):
        Raw(spacing_mm=(0.0, 1.0, 1.0))
    assert ismrmrd.ACQ_IS_REVERSE == 22  # flags are counted from 1
