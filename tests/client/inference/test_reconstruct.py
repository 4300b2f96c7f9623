"""Raw measurements at a site: the right image in the right place, honest labels, and every wrong input one line."""

import dataclasses
from pathlib import Path

import nibabel
import numpy as np
import pytest
from support.cohort.measurements import AFFINE, SHAPE, content, raw_file, sidecar, subject, volumes
from support.cohort.raw import acquisition, header, transform, write_ismrmrd

from client.inference.cases import Raw
from client.inference.job import Asked
from client.inference.measurements import Simulation
from client.inference.reconstruct import reconstruct
from shared.base.errors import DataError
from shared.data.bids import find_files
from shared.data.preparation import load as load_subject
from shared.diffusion.acquisition import birdcage
from shared.diffusion.samplers import Sampler
from shared.model.bundle import Bundle
from shared.model.model import read_model
from shared.model.ranges import measure, ranges_of

pytestmark = pytest.mark.slow  # left out of `make fast`

FAST = Sampler(kind="mds_fast", steps=3)
FAITHFUL = Sampler(kind="mds", steps=3, gamma=1e6)  # fully sampled data decide alone


@pytest.fixture(scope="module")
def bundle(final: Path) -> Bundle:
    model = read_model(final)
    return Bundle(model=model, digest="d" * 64, signer="s" * 16, trusted=True, record=model.record)


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
    with pytest.raises(DataError, match=r"bundle was trained on: slices further apart\. .*--force to go on"):
        reconstruct(other, folder, raw, out, Asked(sampler=FAST))
    assert not out.exists()
    done = reconstruct(other, folder, raw, out, Asked(sampler=FAST, force=True))
    assert done.unusual is not None
    assert done.unusual.startswith("slices further apart than what the bundle was trained on")
    for ending in ("desc-reconstructed_FLAIR", "desc-synthetic_T2w"):
        assert sidecar(out, ending)["Guard"] == {
            "ComparedWith": "the coordinator's 2 subjects",
            "Meaning": done.unusual,
            "Unusual": ["slice distance in mm is 4, trained on 1 to 1"],
            "Forced": True,
        }


def test_usual_volumes_pass_in_silence_and_a_scan_alone_is_not_compared(bundle: Bundle, tmp_path: Path) -> None:
    folder = subject(tmp_path, ("T1",))
    usual, raw = trained_on(bundle, folder, slice_mm=4.0), raw_file(tmp_path / "raw.h5")
    done = reconstruct(usual, folder, Raw(measured={"FLAIR": raw}), tmp_path / "both", Asked(sampler=FAST))
    assert (done.unusual, sidecar(tmp_path / "both")["Guard"]["Forced"]) == (None, False)
    alone = Raw(measured={"FLAIR": raw}, spacing_mm=(2.0, 1.5, 4.0))
    reconstruct(
        trained_on(bundle, folder, slice_mm=1.0),
        subject(tmp_path / "bare", ()),
        alone,
        tmp_path / "scan",
        Asked(sampler=FAST, targets=["FLAIR"]),
    )
    assert sidecar(tmp_path / "scan")["Guard"] is None
