"""`lacuna-site reconstruct`: volumes tried, files taken, and every wrong input one line."""

import sys
from collections.abc import Callable
from pathlib import Path

import ismrmrd
import numpy as np
import pytest
from support.cohort.measurements import content, kspace_of, maps_of, raw_file, sidecar, subject, volumes
from support.cohort.raw import acquisition, header, write_fastmri, write_ismrmrd
from support.model.models import AMM_TINY, release, signed

from client.cli import cli
from client.inference.cases import Raw
from client.inference.measurements import Simulation
from client.inference.reconstruct import reconstruct
from shared.base.errors import ConfigError, DataError
from shared.model.bundle import Bundle
from shared.model.model import read_model

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
    assert "unusual input: brain smaller, brain narrower, brain shorter than usual: " in printed.err
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
