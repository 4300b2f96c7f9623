"""A known offset is found again; a pair that can't be is refused."""

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from support.cohort.heads import fruit, grid_phantom, head, moved, random_pose, target_error

from client.ingest.image import atlas, bias, register
from client.ingest.image.register import Rigid
from shared.data.phantom import anatomy
from shared.data.phantom.brains import Family, grow
from shared.data.phantom.fields import Cube
from shared.data.phantom.signals import draw_scanner, render
from shared.data.volumes import Volume

pytestmark = pytest.mark.slow  # left out of `make fast`

LIMIT_MM = 0.3


def phantom(
    family: Family, modalities: tuple[str, ...], brain: anatomy.Anatomy
) -> tuple[dict[str, Volume], np.ndarray]:
    """Scans of one subject by one scanner, its MR without shading, as the preparation has them."""
    cube = Cube(size=96, fov_mm=192.0)
    subject, scanner = grow(family, 5, brain, cube), draw_scanner(0, "x")
    scans = {m: Volume(data_DHW=render(subject, m, scanner), affine=cube.affine()) for m in modalities}
    corrected = {m: scan if m in ("CT", "FDG") else bias.correct(scan, bias.N4()) for m, scan in scans.items()}
    return corrected, subject.brain_DHW


def on_head() -> register.Anchor:
    return register.Anchor(head("T1"), atlas.load().brain_DHW)


@pytest.fixture(scope="module")
def mni() -> anatomy.Anatomy:
    return anatomy.from_mni()


@pytest.mark.slow
def test_twenty_known_offsets_are_found_again(mni: anatomy.Anatomy) -> None:
    """Across contrasts; every one, not on average."""
    scans, brain = phantom("glioma", ("T1", "T1CE", "T2", "FLAIR"), mni)
    anchor, rng = register.Anchor(scans["T1"], brain), np.random.default_rng(20)
    others = [m for m in scans if m != "T1"]
    errors = {}
    for number in range(20):
        true, other = random_pose(rng), others[number % 3]
        found = register.register(anchor, moved(scans[other], true), Rigid())
        assert register.why_not(found, Rigid()) is None
        errors[number, other] = target_error(found.pose, true, brain, scans["T1"].affine)
    assert max(errors.values()) <= LIMIT_MM, errors


@pytest.mark.slow
def test_ct_and_pet_are_found_again(mni: anatomy.Anatomy) -> None:
    scans, brain = phantom("dementia", ("T1", "CT", "FDG"), mni)
    anchor, rng = register.Anchor(scans["T1"], brain), np.random.default_rng(21)
    for other, rule in (("CT", Rigid()), ("FDG", Rigid().for_pet())):
        true = random_pose(rng)
        found = register.register(anchor, moved(scans[other], true), rule)
        assert register.why_not(found, rule) is None, other
        assert target_error(found.pose, true, brain, scans["T1"].affine) <= LIMIT_MM, other


@pytest.mark.parametrize("other", ["T2", "CT"])
def test_a_whole_head_is_found_again(other: str) -> None:
    reference = atlas.load()
    true = random_pose(np.random.default_rng(3))
    found = register.register(on_head(), moved(head(other), true), Rigid())
    assert target_error(found.pose, true, reference.brain_DHW, reference.t1.affine) <= LIMIT_MM


@pytest.mark.parametrize("thing", [fruit, grid_phantom])
def test_an_impossible_pair_is_refused(thing) -> None:  # type: ignore[no-untyped-def]
    found = register.register(on_head(), thing(), Rigid())
    assert "registration score" in str(register.why_not(found, Rigid()))


def test_the_score_falls_as_the_pair_comes_apart() -> None:
    apart = [register.score(on_head(), moved(head("T2"), _along(mm)), np.eye(4)) for mm in (0, 2, 5, 10, 20)]
    assert apart == sorted(apart, reverse=True)
    assert apart[0] > Rigid().good_score > Rigid().min_score > apart[-1]


def test_the_score_of_noise_is_nothing() -> None:
    shape = atlas.load().brain_DHW.shape
    noise = Volume(data_DHW=np.random.default_rng(0).random(shape).astype(np.float32), affine=atlas.load().t1.affine)
    assert register.score(on_head(), noise, np.eye(4)) < 0.005


def test_equal_images_give_equal_poses_with_any_number_of_threads() -> None:
    other = moved(head("T2"), random_pose(np.random.default_rng(1), mm=5, degrees=5))
    poses = []
    for threads in (1, 4):
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
        poses.append(register.register(on_head(), other, Rigid()).pose)
    assert (poses[0] == poses[1]).all()


def test_too_large_a_move_is_not_believed() -> None:
    far = register.Registration(pose=np.eye(4), score=0.5, start="", metric="", shift_mm=200.0, turn_deg=0.0)
    assert "200 mm" in str(register.why_not(far, Rigid()))


def _along(mm: float) -> np.ndarray:
    pose = np.eye(4)
    pose[0, 3] = mm
    return pose
