"""A subject's absent modalities from a bundle: the inputs' own grid, honest labels, the same bytes again."""

import dataclasses
import gzip
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from support.cohort.worlds import subject_volumes
from support.model.models import AMM_TINY, release

from client.inference.job import Asked
from client.inference.outputs import WARNING
from client.inference.synthesize import synthesize
from shared.base.errors import ConfigError, DataError
from shared.data.modalities import MODALITIES, bids_path, modality_of
from shared.data.volumes import write
from shared.diffusion.samplers import Sampler
from shared.model import calibration
from shared.model.bundle import Bundle
from shared.model.fill import Filling, fill
from shared.model.model import read_model

pytestmark = pytest.mark.slow  # left out of `make fast`

DDIM = Sampler(kind="ddim", steps=3, samples=3)
AFFINE = np.array([[-2.0, 0.1, 0, 14], [0.1, 2.0, 0, -16], [0, 0, 2.5, -20], [0, 0, 0, 1]])  # left first, a bit oblique


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    final = release(tmp_path_factory.mktemp("run") / "final", "amm_diff", AMM_TINY)
    model = read_model(final)
    return Bundle(model=model, digest="d" * 64, signer="s" * 16, trusted=True, record=model.record)


def subject(tmp_path: Path, modalities: tuple[str, ...] = ("T1", "T2"), name: str = "sub-07") -> Path:
    for modality, data in subject_volumes(7, modalities).items():
        path = tmp_path / bids_path(name, modality)
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, data.astype(np.float32), AFFINE)
    return tmp_path / name


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_it_lies_where_the_inputs_lie_and_says_what_it_is(bundle: Bundle, tmp_path: Path) -> None:
    folder = subject(tmp_path)
    report = synthesize(bundle, folder, tmp_path / "out", Asked(sampler=DDIM, seed=4))
    assert sorted(content(tmp_path / "out")) == [
        "dataset_description.json",
        "sub-07/anat/sub-07_desc-synthetic_FLAIR.json",
        "sub-07/anat/sub-07_desc-synthetic_FLAIR.nii.gz",
        "sub-07/anat/sub-07_desc-uncertainty_FLAIR.nii.gz",
        "sub-07/sub-07_desc-preview.png",
    ]
    given, made = nibabel.load(folder / "anat/sub-07_T1w.nii.gz"), nibabel.load(report.made["FLAIR"])
    assert made.shape == given.shape
    assert np.array_equal(made.affine, given.affine)
    assert nibabel.aff2axcodes(made.affine)[0] == "L"
    brain = given.get_fdata() > 0
    values = made.get_fdata()
    assert values[~brain].max() == 0
    assert 0 <= values.min() < values.max() <= 1000
    assert values[brain].std() > 1
    sd = nibabel.load(tmp_path / "out/sub-07/anat/sub-07_desc-uncertainty_FLAIR.nii.gz").get_fdata()
    assert sd[brain].mean() > 1
    assert sd[~brain].max() == 0

    sidecar = json.loads((tmp_path / "out/sub-07/anat/sub-07_desc-synthetic_FLAIR.json").read_text())
    assert sidecar["Synthetic"] is True
    assert sidecar["Description"] == WARNING
    assert "not for primary diagnosis" in WARNING
    assert {m: entry["File"] for m, entry in sidecar["Inputs"].items()} == {
        "T1": "sub-07_T1w.nii.gz",
        "T2": "sub-07_T2w.nii.gz",
    }
    assert sidecar["Bundle"]["SHA256"] == "d" * 64
    assert (sidecar["Model"], sidecar["Seed"], sidecar["Samples"]) == ("amm_diff", 4, 3)
    assert sidecar["Privacy"] == "not stated by this bundle"  # of an older version
    assert report.preview is not None


def test_the_sidecar_carries_the_bundles_word_on_privacy(bundle: Bundle, tmp_path: Path) -> None:
    told = dataclasses.replace(bundle, record={**bundle.record, "privacy": {"short": "epsilon at most 3.38 ..."}})
    report = synthesize(told, subject(tmp_path), tmp_path / "out")
    sidecar = json.loads(next(report.made["FLAIR"].parent.glob("*.json")).read_text())
    assert sidecar["Privacy"] == "epsilon at most 3.38 ..."


def test_a_synthetic_volume_is_never_taken_for_a_measured_one() -> None:
    for form in MODALITIES.values():
        *entities, suffix = form.ending.split("_")
        assert modality_of("_".join(["sub-01", *entities, suffix]) + ".nii.gz") is not None
        for desc in ("desc-synthetic", "desc-uncertainty"):
            assert modality_of("_".join(["sub-01", *entities, desc, suffix]) + ".nii.gz") is None


def test_the_same_seed_gives_the_same_bytes(bundle: Bundle, tmp_path: Path) -> None:
    folder = subject(tmp_path)
    for name in ("one", "two"):
        synthesize(bundle, folder, tmp_path / name, Asked(sampler=DDIM))
    synthesize(bundle, folder, tmp_path / "other", Asked(sampler=DDIM, seed=1))
    assert content(tmp_path / "one") == content(tmp_path / "two")
    flair = "sub-07/anat/sub-07_desc-synthetic_FLAIR.nii.gz"
    assert content(tmp_path / "one")[flair] != content(tmp_path / "other")[flair]


@pytest.mark.parametrize("sampler", [DDIM, Sampler(kind="ancestral", steps=3), Sampler()])
def test_how_many_slices_fit_at_once_changes_nothing(bundle: Bundle, sampler: Sampler) -> None:
    images = torch.rand(3, 7, 16, 16, generator=torch.Generator().manual_seed(0))
    shown = torch.tensor([True, False, True])
    one, three, all_ = (
        fill(
            bundle.model,
            images,
            shown,
            range(7),
            Filling(sampler=sampler, keys=(3, "test"), device=torch.device("cpu"), at_once=n),
        )
        for n in (1, 3, 7)
    )
    for other in (three, all_):
        assert torch.allclose(one.mean_MDHW, other.mean_MDHW, atol=1e-6)
    garbage = torch.where(shown[:, None, None, None], images, torch.nan)
    hidden = fill(
        bundle.model,
        garbage,
        shown,
        range(7),
        Filling(sampler=sampler, keys=(3, "test"), device=torch.device("cpu"), at_once=7),
    )
    assert torch.equal(hidden.mean_MDHW, all_.mean_MDHW)


@dataclasses.dataclass(frozen=True)
class Cramped:
    """A method on a device whose memory holds `most` slices."""

    inner: Any
    most: int
    slab: int = 1

    def synthesize(self, net: Any, images_BMHW: torch.Tensor, *rest: Any) -> torch.Tensor:
        if len(images_BMHW) > self.most:
            raise torch.OutOfMemoryError("no room")
        made: torch.Tensor = self.inner.synthesize(net, images_BMHW, *rest)
        return made


def test_fewer_slices_are_taken_where_memory_is_short(bundle: Bundle) -> None:
    images, shown = torch.rand(3, 7, 16, 16), torch.tensor([True, True, False])

    def made(most: int) -> torch.Tensor:
        model = dataclasses.replace(bundle.model, method=Cramped(bundle.model.method, most))
        cpu = torch.device("cpu")
        return fill(model, images, shown, range(7), Filling(sampler=DDIM, keys=(0,), device=cpu)).mean_MDHW

    assert torch.allclose(made(2), made(100), atol=1e-6)
    with pytest.raises(DataError, match="one slice does not fit into the memory of cpu"):
        made(0)


def test_spread_is_that_of_the_samples(bundle: Bundle) -> None:
    """Welford's mean and sd against the samples made one by one, the second the mirror image of the first."""
    images, shown = torch.rand(3, 2, 16, 16), torch.tensor([True, True, False])
    how = Filling(sampler=DDIM, keys=(1,), device=torch.device("cpu"))
    made = fill(bundle.model, images, shown, [0, 1], how)
    from shared.base.randomness import Mirror, generator
    from shared.model.calibration import squares

    def noise(z: int, k: int) -> torch.Generator | Mirror:
        return Mirror(generator("cpu", 1, z, 0)) if k == 1 else generator("cpu", 1, z, k)

    each = torch.stack(
        [
            bundle.model.method.synthesize(
                bundle.model.net,
                images.transpose(0, 1) * shown[:, None, None],
                shown.expand(2, -1),
                DDIM,
                [noise(z, k) for z in (0, 1)],
            ).transpose(0, 1)
            for k in range(3)
        ]
    )
    assert torch.allclose(made.mean_MDHW, each.mean(0), atol=1e-6)
    assert made.sd_MDHW is not None
    spread = ((each - each.mean(0)).square().sum(0) / squares(3)).sqrt()
    assert torch.allclose(made.sd_MDHW, spread, atol=1e-6)


def test_a_target_that_is_there_is_hidden_from_the_model(bundle: Bundle, tmp_path: Path) -> None:
    """Absent, present or a broken file: the same volume, since nobody looks at it."""
    made = []
    for case, modalities in {"absent": ("T1", "T2"), "there": ("T1", "T2", "FLAIR"), "broken": ("T1", "T2")}.items():
        folder = subject(tmp_path / case, modalities)
        if case == "broken":
            (folder / "anat/sub-07_FLAIR.nii.gz").write_bytes(gzip.compress(b"no image"))
        report = synthesize(bundle, folder, tmp_path / case / "out", Asked(targets=["flair"]))
        made.append(report.made["FLAIR"].read_bytes())
    assert made[0] == made[1] == made[2]


def test_the_sampler_mean_has_no_spread(bundle: Bundle, tmp_path: Path) -> None:
    report = synthesize(bundle, subject(tmp_path), tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*uncertainty*"))
    assert (
        json.loads(report.made["FLAIR"].with_name("sub-07_desc-synthetic_FLAIR.json").read_text())["Uncertainty"]
        is None
    )
    with pytest.raises(ConfigError, match="samples=4: must be 1 for kind=mean"):
        synthesize(bundle, subject(tmp_path), tmp_path / "out", Asked(samples=4))


def test_what_is_there_is_not_made_again(bundle: Bundle, tmp_path: Path) -> None:
    folder, out = subject(tmp_path, ("T1",)), tmp_path / "out"
    first = synthesize(bundle, folder, out, Asked(targets=["T2"]))
    both = synthesize(bundle, folder, out)
    assert list(first.made) == ["T2"]
    assert (list(both.made), list(both.kept)) == (["FLAIR"], ["T2"])
    calls: list[int] = []
    third = synthesize(bundle, folder, out, progress=lambda done, _: calls.append(done))
    assert not third.made
    assert not calls
    before = content(out)
    both.made["FLAIR"].write_bytes(b"damaged")
    fourth = synthesize(bundle, folder, out)
    assert (list(fourth.made), list(fourth.kept)) == (["FLAIR"], ["T2"])
    assert content(out) == before
    subject(tmp_path, ("T2",))  # a new input changes everything that comes from it
    assert list(synthesize(bundle, folder, out).made) == ["FLAIR"]


def test_a_change_from_many_samples_to_one_leaves_no_old_spread(bundle: Bundle, tmp_path: Path) -> None:
    synthesize(bundle, subject(tmp_path), tmp_path / "out", Asked(sampler=DDIM))
    assert list((tmp_path / "out").rglob("*uncertainty*"))
    synthesize(bundle, subject(tmp_path), tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*uncertainty*"))


@pytest.mark.parametrize("at_once", [1, 4])
def test_a_stopped_job_goes_on_to_the_same_bytes(bundle: Bundle, tmp_path: Path, at_once: int) -> None:
    folder, steps = subject(tmp_path), []

    def stop(done: int, of: int) -> None:
        steps.append(done)
        if done >= 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesize(bundle, folder, tmp_path / "out", Asked(sampler=DDIM, at_once=at_once), progress=stop)
    (left,) = (tmp_path / "out").iterdir()
    assert left.name.startswith(".partial-sub-07-")
    assert left.stat().st_mode & 0o077 == 0
    (left / "000999.npz").write_bytes(b"damaged")
    (left / ".000998.npz.partial").write_bytes(b"half written")
    more: list[int] = []
    synthesize(
        bundle, folder, tmp_path / "out", Asked(sampler=DDIM, at_once=at_once), progress=lambda n, _: more.append(n)
    )
    assert more[0] > steps[-1]
    synthesize(bundle, folder, tmp_path / "whole", Asked(sampler=DDIM, at_once=at_once))
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_slices_of_another_job_are_not_taken(bundle: Bundle, tmp_path: Path) -> None:
    def stop(done: int, of: int) -> None:
        raise KeyboardInterrupt

    folder = subject(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        synthesize(bundle, folder, tmp_path / "out", Asked(sampler=DDIM, at_once=4), progress=stop)
    calls: list[int] = []
    synthesize(
        bundle, folder, tmp_path / "out", Asked(sampler=DDIM, seed=1, at_once=4), progress=lambda n, _: calls.append(n)
    )
    assert calls[0] == 4
    assert not list((tmp_path / "out").glob(".*"))


def test_other_ways_to_name_a_subject(bundle: Bundle, tmp_path: Path) -> None:
    folder = subject(tmp_path, ("T1", "T2"))
    by_folder = synthesize(bundle, folder, tmp_path / "out")
    files = {"t1w": folder / "anat/sub-07_T1w.nii.gz", "T2": folder / "anat/sub-07_T2w.nii.gz"}
    by_file = synthesize(bundle, files, tmp_path / "out2")
    flat = tmp_path / "case"
    flat.mkdir()
    for path in files.values():
        (flat / path.name).write_bytes(path.read_bytes())
    by_flat = synthesize(bundle, flat, tmp_path / "out3")
    assert by_folder.subject == by_file.subject == by_flat.subject == "sub-07"
    volumes = {report.made["FLAIR"].read_bytes() for report in (by_folder, by_file, by_flat)}
    assert len(volumes) == 1


def test_what_the_model_does_not_know_is_remarked(bundle: Bundle, tmp_path: Path) -> None:
    folder = subject(tmp_path)
    (folder / "ct").mkdir()
    write(folder / "ct/sub-07_ct.nii.gz", np.full((16, 16, 16), 30, np.float32), AFFINE)
    report = synthesize(bundle, folder, tmp_path / "out")
    assert report.remarks == ("sub-07_ct.nii.gz: CT is not among the model's modalities",)
    with pytest.raises(DataError, match=r"sub-07_ct.nii.gz: CT is not among the model's modalities: T1, T2, FLAIR"):
        synthesize(bundle, {"CT": folder / "ct/sub-07_ct.nii.gz"}, tmp_path / "out")


def other_grid(folder: Path) -> None:
    write(folder / "anat/sub-07_T2w.nii.gz", np.arange(9 * 16 * 16.0).reshape(9, 16, 16).astype(np.float32), AFFINE)


def moved(folder: Path) -> None:
    shifted = AFFINE.copy()
    shifted[2, 3] += 3
    write(folder / "anat/sub-07_T2w.nii.gz", subject_volumes(7, ["T2"])["T2"].astype(np.float32), shifted)


def blank(folder: Path) -> None:
    write(folder / "anat/sub-07_T2w.nii.gz", np.zeros((16, 16, 16), np.float32), AFFINE)


def large(folder: Path) -> None:
    for name in ("T1w", "T2w"):
        write(
            folder / f"anat/sub-07_{name}.nii.gz", np.random.default_rng(0).random((4, 40, 40), np.float32) + 1, AFFINE
        )


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (other_grid, r"^sub-07_T2w.nii.gz: another shape \(9, 16, 16\).*must be registered to one grid"),
        (moved, r"^sub-07_T2w.nii.gz: lies up to 3 mm elsewhere than T1: must be registered"),
        (blank, r"^sub-07_T2w.nii.gz: blank"),
        (large, r"^the brain needs 40 x 40 voxels: more than grid native-16x16"),
    ],
)
def test_an_input_that_can_not_be_used_is_named(bundle: Bundle, tmp_path: Path, spoil, line: str) -> None:  # type: ignore[no-untyped-def]
    folder = subject(tmp_path)
    spoil(folder)
    with pytest.raises(DataError, match=line):
        synthesize(bundle, folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_wrong_question_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    folder, out = subject(tmp_path), tmp_path / "out"
    full = subject(tmp_path, ("T1", "T2", "FLAIR"), "sub-08")
    (tmp_path / "empty").mkdir()
    (tmp_path / "sub-09").mkdir()
    for arguments, line in [
        ((folder, out, ["CT"]), "target CT: the bundle makes T1, T2, FLAIR"),
        (
            (folder, out, ["T1", "T2", "FLAIR"]),
            "sub-07: no usable modality; the bundle works from any of T1, T2, FLAIR",
        ),
        ((full, out, None), "sub-08: has all of T1, T2, FLAIR; name targets"),
        ((folder, folder / "more", None), "lies in the subject's own folder"),
        ((tmp_path / "none", out, None), "no such folder"),
        ((tmp_path / "empty", out, None), "its name is not sub-"),
        ((tmp_path / "sub-09", out, None), "sub-09: no usable modality"),
    ]:
        with pytest.raises(DataError) as caught:
            synthesize(bundle, arguments[0], arguments[1], Asked(targets=arguments[2]))
        assert line in str(caught.value)
    with pytest.raises(ConfigError, match="must be one of"):
        synthesize(bundle, folder, out, Asked(targets=["X-ray"]))


def test_a_calibrated_bundle_says_how_sure_it_may_be(bundle: Bundle, tmp_path: Path) -> None:
    """Twice the spread everywhere, in the map and in words; with another sampler the samples' own, as before."""
    edges = [calibration.FIRST * 2 ** ((s - 0.5) / calibration.PER_OCTAVE) for s in range(calibration.SPREADS)]
    widths = tuple(min(1.0, 2 * calibration.NORMAL * sd) for sd in edges)
    known = calibration.Calibration(sampler=DDIM, widths={"FLAIR from 2": widths}, source="3 subjects")
    sure = dataclasses.replace(bundle, calibration=known)
    other = dataclasses.replace(DDIM, samples=2)
    maps, words = {}, {}
    for name, made_by, sampler in (("plain", bundle, DDIM), ("sure", sure, DDIM), ("other", sure, other)):
        out = tmp_path / name
        synthesize(made_by, subject(tmp_path / "in" / name), out, Asked(sampler=sampler, seed=4))
        stem = out / "sub-07/anat/sub-07_desc-"
        maps[name] = nibabel.load(f"{stem}uncertainty_FLAIR.nii.gz").get_fdata()
        words[name] = json.loads(Path(f"{stem}synthetic_FLAIR.json").read_text())["Uncertainty"]
    seen = maps["plain"] > 4  # of 1000: below that the narrowest interval stands
    assert seen.sum() > 100
    ratio = maps["sure"][seen] / maps["plain"][seen]
    assert np.median(ratio) == pytest.approx(2.0, rel=0.05)
    assert words["plain"] == words["other"] == "standard deviation over samples, in the same units"
    held = "1.64 of it to each side held 90% of the voxels of 3 subjects"
    assert words["sure"].startswith(f"standard deviation, calibrated: {held}")
