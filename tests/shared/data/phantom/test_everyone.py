"""Everyone: any disease, and a scanner for each person."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from shared.data.phantom import anatomy
from shared.data.phantom.brains import SubjectPhantom, grow
from shared.data.phantom.fields import Cube
from shared.data.phantom.signals import Scanner, T1Weighting, _Spins, draw_any_scanner, draw_scanner, render

pytestmark = pytest.mark.slow

CUBE = Cube(size=32, fov_mm=192.0)


@pytest.fixture(scope="module")
def brain(mni_cache: Path) -> anatomy.Anatomy:
    return anatomy.load(anatomy.prepare(None, mni_cache)[0])


@pytest.fixture(scope="module")
def people(brain: anatomy.Anatomy) -> list[SubjectPhantom]:
    return [grow("everyone", seed, brain, CUBE) for seed in range(24)]


def still(scanner: Scanner) -> Scanner:
    return dataclasses.replace(scanner, shading=0.0, noise=0.0, slab_mm=0.0, gamma=1.0, gain=1.0)


def shades(subject: SubjectPhantom, image: np.ndarray) -> Mapping[str, float]:
    """The middle of each tissue."""
    parts = ("white", "cortex", "csf", "white matter lesion")
    return {t: float(np.median(image[subject.fractions[t] > 0.8])) for t in parts if (subject.fractions[t] > 0.8).any()}


def test_they_have_what_there_is(people: list[SubjectPhantom]) -> None:
    found = [
        {name for name in ("white matter lesion", "oedema", "enhancing", "necrosis") if (p.fractions[name] > 0.5).any()}
        for p in people
    ]
    assert any(not parts for parts in found), "nobody is well"
    assert any("necrosis" in parts for parts in found), "nobody has a tumour"
    assert sum("white matter lesion" in parts for parts in found) >= 5
    for person in people:
        assert ((person.lesion_DHW > 0) <= person.brain_DHW).all()
        total = person.fractions.array.sum(axis=0)
        assert total[person.brain_DHW] == pytest.approx(1, abs=1e-4)
        assert not total[~person.brain_DHW].any()


def test_their_masks_hold_more_or_less_fluid(people: list[SubjectPhantom]) -> None:
    fluid = [p.fractions["csf"].sum() / p.brain_DHW.sum() for p in people]
    assert max(fluid) > 1.25 * min(fluid)


def test_a_lesion_is_brighter_than_white_matter_in_flair_and_t2_on_nearly_every_scanner(
    people: list[SubjectPhantom],
) -> None:
    ratios = []
    for number, person in enumerate(people):
        if (person.fractions["white matter lesion"] > 0.8).sum() < 3:
            continue
        scanner = still(draw_any_scanner(number))
        for modality in ("T2", "FLAIR"):
            shade = shades(person, render(person, modality, scanner))
            ratios.append(shade["white matter lesion"] / shade["white"])
    assert len(ratios) >= 6
    assert np.mean(np.array(ratios) > 1.15) > 0.9


@pytest.mark.parametrize(
    "how", [T1Weighting(tr=15, flip=25), T1Weighting(tr=2200, flip=9, ti=1000), T1Weighting(tr=550, flip=90)]
)
def test_every_t1_has_white_over_grey_over_fluid(people: list[SubjectPhantom], how: T1Weighting) -> None:
    scanner = dataclasses.replace(still(draw_scanner("x")), t1=how)
    shade = shades(people[0], render(people[0], "T1", scanner))
    assert shade["white"] > shade["cortex"] > shade["csf"]


def test_an_inversion_nulls_the_tissue_whose_time_it_is(people: list[SubjectPhantom]) -> None:
    """With a long repetition the signal is 0 where TI = T1 log 2 (and above 0 on both sides: a magnitude)."""
    t1 = 1000.0
    how = T1Weighting(tr=1e6, flip=9, ti=t1 * np.log(2))
    spins = _Spins(people[0], draw_scanner("x"))
    signal = spins.weighted(np.full(len(spins.pd), t1, np.float32), how)
    assert np.abs(signal).max() < 1e-5
    assert (spins.weighted(np.full(len(spins.pd), 700.0, np.float32), how) > 0.05).any()


def test_no_two_have_one_scanner() -> None:
    drawn = [draw_any_scanner(0, "site-a", f"sitea{number:03d}") for number in range(40)]
    assert len({scanner.seed for scanner in drawn}) == 40
    kinds = {(bool(s.t1.ti), s.t1.flip == 90) for s in drawn}
    assert kinds == {(True, False), (False, True), (False, False)}
    assert any(s.t1 != s.t1ce for s in drawn)
    assert draw_any_scanner(0, "site-a", "sitea000") == drawn[0]
