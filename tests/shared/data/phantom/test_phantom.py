"""Laws of the phantoms, on 6 mm voxels; how they look is for the eye (contact-sheet.png)."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from shared.base.errors import ConfigError, DataError
from shared.data import volumes
from shared.data.modalities import bids_path, lesion_path
from shared.data.phantom import anatomy
from shared.data.phantom.brains import Family, SubjectPhantom, draw_person, grow
from shared.data.phantom.fields import Cube, flow
from shared.data.phantom.phantom import FAMILIES, PhantomOptions, share_out, usually_missing, write_world
from shared.data.phantom.signals import draw_scanner, render, rician

pytestmark = pytest.mark.slow  # left out of `make fast`

CUBE = Cube(size=32, fov_mm=192.0)
SCANNER = dataclasses.replace(draw_scanner("test"), shading=0.0)


@pytest.fixture(scope="session")
def brain(mni_cache: Path) -> anatomy.Anatomy:
    return anatomy.load(anatomy.prepare(None, mni_cache)[0])


@pytest.fixture(scope="session")
def ringed(brain: anatomy.Anatomy) -> SubjectPhantom:
    """A subject whose tumour has oedema around and takes up contrast agent."""
    subjects = (grow("glioma", seed, brain, CUBE) for seed in range(40))
    return next(s for s in subjects if (s.lesion_DHW == 4).sum() >= 12 and (s.lesion_DHW == 2).sum() >= 100)


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def options(family: Family = "glioma", **changes: object) -> PhantomOptions:
    values = {"subjects": 2, "heldout": 1, "coordinator": 1, "sites": ("north", "south"), "size": 32, **changes}
    return PhantomOptions(family=family, **values)  # type: ignore[arg-type]


def test_same_options_same_bytes_with_any_number_of_workers(tmp_path: Path, mni_cache: Path) -> None:
    chosen = options(subjects=1, heldout=0, coordinator=0, missing=(("FLAIR",), ("T1CE",)))
    write_world(chosen, tmp_path / "one", workers=1, cache=mni_cache)
    write_world(chosen, tmp_path / "two", workers=2, cache=mni_cache)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_a_world_on_disk(tmp_path: Path, mni_cache: Path) -> None:
    seen = []
    chosen = options(missing=(("FLAIR", "T1CE"), ()), seed=3)
    report = write_world(chosen, tmp_path, workers=1, cache=mni_cache, progress=lambda *at: seen.append(at))
    assert report.cohorts == {
        "sites/north": 2,
        "sites/south": 2,
        "heldout/north": 1,
        "heldout/south": 1,
        "coordinator": 1,
    }
    assert seen == [(done, 7) for done in range(8)]
    assert json.loads((tmp_path / "world.json").read_text())["options"]["seed"] == 3
    assert (tmp_path / "contact-sheet.png").exists()

    acquired = {"sites/north": ("T1", "T2"), **dict.fromkeys(list(report.cohorts)[1:], FAMILIES["glioma"])}
    images = []
    for cohort, modalities in acquired.items():
        rows = (tmp_path / cohort / "participants.tsv").read_text().splitlines()[1:]
        subjects = sorted(path.name for path in (tmp_path / cohort).glob("sub-*"))
        assert [row.split("\t")[0] for row in rows] == subjects
        for subject in subjects:
            expected = {bids_path(subject, m) for m in modalities} | {lesion_path(subject, tumour=True)}
            found = {
                path.relative_to(tmp_path / cohort).as_posix() for path in (tmp_path / cohort / subject).rglob("*.gz")
            }
            assert found == expected
            volume = volumes.read(tmp_path / cohort / bids_path(subject, "T1"))
            assert volume.data_DHW.shape == CUBE.shape
            np.testing.assert_allclose(volume.affine, CUBE.affine())
            images.append(volume.data_DHW)
    correlation = np.corrcoef([image.ravel() > 0 for image in images]) - np.eye(len(images))
    assert correlation.max() < 0.97  # each subject has its own shape


def test_a_stopped_world_goes_on_and_another_is_refused(tmp_path: Path, mni_cache: Path) -> None:
    chosen = options(subjects=1, heldout=0)
    write_world(chosen, tmp_path, workers=1, cache=mni_cache)
    whole = files(tmp_path)
    victim = next((tmp_path / "sites" / "south").glob("sub-*"))
    victim.rename(victim.with_name(f".{victim.name}.partial"))  # as a kill leaves it
    report = write_world(chosen, tmp_path, workers=1, cache=mni_cache)
    assert (report.written, report.kept) == (1, 2)
    assert files(tmp_path) == whole
    with pytest.raises(ConfigError, match="other options"):
        write_world(dataclasses.replace(chosen, seed=1), tmp_path, cache=mni_cache)


def test_drop_takes_one_more_modality_from_training_subjects_only(tmp_path: Path, mni_cache: Path) -> None:
    chosen = options("vessels", subjects=1, drop=1.0, coordinator=0, missing=usually_missing("vessels", ("a", "b")))
    write_world(chosen, tmp_path, workers=1, cache=mni_cache)
    counts = {cohort: len(list((tmp_path / cohort / "north").glob("sub-*/*/*.gz"))) for cohort in ("sites", "heldout")}
    assert counts == {"sites": 2, "heldout": 4}
    assert (tmp_path / "sites/north/derivatives/truth").is_dir()  # beside the subjects, not among them


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"sites": ("a", "a")}, "sites"),
        ({"sites": ("../a",)}, "sites"),
        ({"drop": 2.0}, "drop"),
        ({"size": 33}, "size"),
        ({"missing": (("T1",),)}, "missing"),
        ({"missing": (("CT",), ())}, "missing"),
        ({"subjects": 0}, "subjects"),
        ({"missing": (FAMILIES["glioma"], ())}, "missing"),
    ],
)
def test_wrong_options_are_named(changes: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        options(**changes)


@pytest.mark.parametrize("maps", [2, 3, 5, 12])
@pytest.mark.parametrize("sites", [1, 3, 7])
def test_no_label_map_is_both_trained_and_tested_on(maps: int, sites: int) -> None:
    names = tuple(f"site{i}" for i in range(sites))
    shares = share_out([Path(f"{i}.npz") for i in range(maps)], options(sites=names, anatomy=Path("maps")))
    trained = {path for name in names for path in shares[name]}
    assert trained
    assert shares["heldout"]
    assert not trained & {*shares["heldout"], *shares["coordinator"]}
    if maps > 2:
        assert not set(shares["heldout"]) & set(shares["coordinator"])
    if maps == 12 and sites == 3:
        assert sum(len(shares[name]) for name in names) == len(trained)  # each site its own


def test_one_label_map_is_too_few() -> None:
    with pytest.raises(DataError, match="1 label map"):
        share_out([Path("a.npz")], options(anatomy=Path("maps")))


def test_contrast_agent_shows_the_rim_in_t1ce_only(ringed: SubjectPhantom) -> None:
    rim, white = ringed.lesion_DHW == 4, ringed.fractions["white"] > 0.9
    ratio = {m: np.median(image[rim]) / np.median(image[white]) for m, image in scans(ringed).items()}
    assert ratio["T1CE"] > 1.3
    assert ratio["T1"] < 1.0


def test_oedema_is_bright_where_fluid_is_dark_in_flair(ringed: SubjectPhantom) -> None:
    image = scans(ringed)
    oedema, fluid = ringed.lesion_DHW == 2, ringed.fractions["csf"] > 0.95
    white = ringed.fractions["white"] > 0.95
    assert np.median(image["FLAIR"][oedema]) > 1.3 * np.median(image["FLAIR"][white])
    assert np.median(image["FLAIR"][fluid]) < 0.7 * np.median(image["FLAIR"][white])
    assert np.median(image["T2"][fluid]) > np.median(image["T2"][oedema]) > 1.3 * np.median(image["T2"][white])


def test_flair_in_the_lesion_is_no_linear_or_histogram_function_of_t1_and_t2(ringed: SubjectPhantom) -> None:
    """Even fitted on the very subject, both leave several times the error of a second scan."""
    image, inside, lesion = scans(ringed), ringed.brain_DHW, ringed.lesion_DHW > 0
    target = image["FLAIR"][inside]
    inputs = np.stack([np.ones_like(target), image["T1"][inside], image["T2"][inside]], axis=1)
    linear = inputs @ np.linalg.lstsq(inputs, target, rcond=None)[0]
    edges = [np.quantile(column, np.linspace(0, 1, 9)[1:-1]) for column in inputs.T[1:]]
    bins = np.digitize(inputs[:, 1], edges[0]) * 8 + np.digitize(inputs[:, 2], edges[1])
    sums, counts = np.bincount(bins, target, 64), np.bincount(bins, minlength=64)
    histogram = (sums / np.maximum(counts, 1))[bins]
    again = render(dataclasses.replace(ringed, seed=ringed.seed + 10**6), "FLAIR", SCANNER)[inside]

    def error(guess: np.ndarray) -> float:
        return float(np.sqrt(np.mean((guess - target)[lesion[inside]] ** 2)))

    assert error(linear) > 3 * error(again)
    assert error(histogram) > 2 * error(again)


def test_a_flow_is_one_to_one_and_does_not_shift() -> None:
    cube = Cube(size=48, fov_mm=192.0)
    moved = flow(np.random.default_rng(0), cube, ((62.0, 2.8), (30.0, 1.8), (15.0, 0.9)))
    slopes = np.stack([np.stack(np.gradient(part, cube.voxel_mm)) for part in moved])
    jacobian = np.linalg.det(np.moveaxis(slopes, (0, 1), (-2, -1)) + np.eye(3))
    assert jacobian.min() > 0.1
    assert np.abs(moved[:, 10:-10, 10:-10, 10:-10].mean(axis=(1, 2, 3))).max() < 0.5
    assert moved.std() > 1.5


def test_noise_is_rician() -> None:
    """In the dark its mean is sqrt(pi / 2) sigma; in the light the signal stands."""
    rng = np.random.default_rng(0)
    dark = rician(np.zeros((64, 64, 64), np.float32), 0.1, rng)
    light = rician(np.ones((64, 64, 64), np.float32), 0.1, rng)
    assert dark.min() >= 0
    assert dark.mean() == pytest.approx(0.1 * np.sqrt(np.pi / 2), rel=0.01)
    assert light.mean() == pytest.approx(np.sqrt(1 + 0.1**2), rel=0.01)
    assert light.std() == pytest.approx(0.1, rel=0.02)


def test_the_same_subject_looks_different_on_another_scanner(brain: anatomy.Anatomy) -> None:
    subject = grow("glioma", 1, brain, CUBE)
    here, there = (render(subject, "T2", draw_scanner(0, site)) for site in ("north", "south"))
    inside = subject.brain_DHW
    assert ((here > 0) == inside).all()
    assert np.corrcoef(here[inside], there[inside])[0, 1] < 0.995
    assert not np.isclose(np.median(here[inside]), np.median(there[inside]), rtol=0.02)


def test_scores_follow_the_disease() -> None:
    people = [draw_person("dementia", seed) for seed in range(400)]
    severity = np.array([p.severity for p in people])
    for score, sign in (("mmse", -1), ("adas13", 1), ("cdrsb", 1)):
        assert sign * np.corrcoef(severity, [getattr(p, score) for p in people])[0, 1] > 0.9
    means = [np.mean([p.mmse for p in people if p.diagnosis == name]) for name in ("HC", "MCI", "AD")]
    assert means[0] > 27
    assert means[0] > means[1] + 1.5 > means[2] + 3


def test_the_disease_moves_the_images(brain: anatomy.Anatomy) -> None:
    people = {seed: draw_person("dementia", seed).diagnosis for seed in range(60)}
    seeds = {name: [seed for seed, diagnosis in people.items() if diagnosis == name][:4] for name in ("HC", "AD")}
    found = {name: [measures(grow("dementia", s, brain, CUBE)) for s in seeds[name]] for name in seeds}
    healthy, ill = (np.mean(found[name], axis=0) for name in ("HC", "AD"))
    assert ill[0] < healthy[0] - 0.12  # FDG
    assert ill[1] > healthy[1] + 0.05  # AV45
    assert ill[2] > 1.1 * healthy[2]  # fluid


def measures(subject: SubjectPhantom) -> list[float]:
    """FDG where disease starts, AV45 in the cortex, both against the cerebellum; and the share of fluid."""
    cortex = subject.fractions["cortex"] > 0.4
    reference = subject.fractions["cerebellar cortex"] > 0.4
    fdg, av45 = render(subject, "FDG", SCANNER), render(subject, "AV45", SCANNER)
    return [
        fdg[cortex & (subject.vulnerable_DHW > 0.5)].mean() / fdg[reference].mean(),
        av45[cortex].mean() / av45[reference].mean(),
        subject.fractions["csf"].sum() / subject.brain_DHW.sum(),
    ]


def test_arteries_are_one_bright_tree(brain: anatomy.Anatomy) -> None:
    cube = Cube(size=64, fov_mm=192.0)
    subject = grow("vessels", 2, brain, cube)
    image = render(subject, "TOF", SCANNER)
    inside = subject.brain_DHW
    bright = image > 1.8 * np.median(image[inside])
    parts, _ = ndimage.label(bright & (subject.vessels_DHW > 0), np.ones((3, 3, 3)))
    sizes = np.bincount(parts.ravel())[1:]
    assert sizes.max() > 0.8 * sizes.sum()
    assert np.corrcoef(image[inside], subject.vessels_DHW[inside])[0, 1] > 0.8
    reached = np.flatnonzero((parts == 1 + sizes.argmax()).any(axis=(1, 2)))
    assert np.ptp(reached) > 20  # from the neck to the vertex
    t2 = render(subject, "T2", SCANNER)
    assert t2[subject.vessels_DHW > 0.6].mean() < np.median(t2[inside])  # flow voids: a trace elsewhere too


def scans(subject: SubjectPhantom) -> dict[str, np.ndarray]:
    return {m: render(subject, m, SCANNER) for m in FAMILIES["glioma"]}


def test_a_site_may_have_another_number_of_subjects(tmp_path: Path, mni_cache: Path) -> None:
    chosen = options(subjects=2, counts=(1, 2), heldout=0, coordinator=0)
    report = write_world(chosen, tmp_path, workers=1, cache=mni_cache)
    assert [report.cohorts[f"sites/{site}"] for site in options().sites] == [1, 2]
    with pytest.raises(ConfigError, match="counts"):
        options(counts=(1,))


def test_heads_are_drawn_without_torch(mni_cache: Path, tmp_path: Path) -> None:
    """It takes seconds to import, in each of the processes that draw."""
    code = (
        "import sys; from pathlib import Path; from shared.data.phantom.phantom import PhantomOptions, write_world; "
        "one = PhantomOptions(subjects=1, heldout=0, coordinator=0, sites=('a',), size=16); "
        "write_world(one, Path(sys.argv[1]), workers=1, cache=Path(sys.argv[2])); print('torch' in sys.modules)"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "world"), str(mni_cache)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "False"
