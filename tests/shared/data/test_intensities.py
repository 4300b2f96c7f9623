"""Values to [0, 1] and back: one rule per modality, background exactly 0."""

import numpy as np
import pytest

from shared.base.errors import DataError
from shared.data.intensities import (
    RULES,
    Scaling,
    find_brain,
    find_scaling,
    foreground,
    judged_scaling,
    usual_scaling,
)
from shared.data.modalities import MODALITIES

RNG = np.random.default_rng(0)
BRAIN = np.zeros((12, 12, 12), bool)
BRAIN[2:10, 2:10, 2:10] = True


def inside(values: np.ndarray) -> np.ndarray:
    return np.where(BRAIN, values, 0).astype(np.float32)


def test_every_modality_has_a_rule() -> None:
    assert list(RULES) == list(MODALITIES)


@pytest.mark.parametrize("modality", [m for m, form in MODALITIES.items() if form.kind == "mr"])
def test_mr_is_scaled_by_its_own_values_whatever_its_gain(modality: str) -> None:
    mr = inside(RNG.gamma(5, 1, BRAIN.shape))
    one, other = (find_scaling(modality, gain * mr).apply(gain * mr, BRAIN) for gain in (1, 37))
    assert np.allclose(one, other, atol=1e-6)
    assert one.min() >= 0
    assert 0.7 < one.max() <= 1


def test_what_is_odd_in_a_tenth_of_a_volume_does_not_move_the_rest() -> None:
    """A lesion of 4 %, and a rim of fluid that another mask would have cut off."""
    large = np.zeros((40, 40, 40), bool)
    large[4:-4, 4:-4, 4:-4] = True
    tissue = RNG.choice([0.55, 0.8], large.shape) + RNG.normal(0, 0.05, large.shape)
    plain = np.where(large, tissue, 0)
    odd = plain.copy()
    odd[10:22, 10:20, 10:21] = 2.5  # 4 %
    odd[4:6, 4:-4, 4:-4] = 0.1  # 6 %
    for modality in ("T1", "T1CE", "T2", "FLAIR", "T2S"):
        usual, moved = (find_scaling(modality, data) for data in (plain, odd))
        for tissue in (0.55, 0.8):
            at = [(tissue - scaling.low) / (scaling.high - scaling.low) for scaling in (usual, moved)]
            assert at[0] == pytest.approx(at[1], abs=0.02), modality
        by_percentiles = [judged_scaling(modality, data) for data in (plain, odd)]
        at = [(0.8 - scaling.low) / (scaling.high - scaling.low) for scaling in by_percentiles]
        assert abs(at[0] - at[1]) > 0.3, "it was not so odd"


def test_what_is_made_is_judged_from_the_darkest_to_the_brightest_of_the_truth() -> None:
    mr = inside(RNG.gamma(5, 1, BRAIN.shape))
    gain, offset = find_scaling("T2", mr).onto(judged_scaling("T2", mr))
    ours = find_scaling("T2", mr)
    judged = (mr[BRAIN] - ours.low) / (ours.high - ours.low) * gain + offset
    assert np.percentile(judged, (0.5, 99.5)) == pytest.approx((0, 1), abs=1e-5)
    assert judged_scaling("CT", inside(RNG.normal(30, 5, BRAIN.shape))) == usual_scaling("CT")


def test_four_fifths_of_one_value_are_flat() -> None:
    mostly = np.full(BRAIN.shape, 4.0)
    mostly[BRAIN & (np.arange(BRAIN.size).reshape(BRAIN.shape) % 20 == 0)] = 9.0
    with pytest.raises(DataError, match="flat: four fifths of its values are 4"):
        find_scaling("T1", inside(mostly))


def test_tof_clips_fewer_of_the_brightest_than_t1() -> None:
    mr = inside(RNG.gamma(5, 1, BRAIN.shape))
    assert find_scaling("TOF", mr).high > find_scaling("T1", mr).high


@pytest.mark.parametrize("modality", MODALITIES)
def test_scaling_and_back_is_the_identity_within_its_limits(modality: str) -> None:
    scaling = usual_scaling(modality)
    data = inside(RNG.uniform(scaling.low, scaling.high, BRAIN.shape))
    unit = scaling.apply(data, BRAIN)
    assert unit.min() >= 0
    assert unit.max() <= 1
    assert np.allclose(scaling.invert(unit, BRAIN), data, atol=1e-3)


def test_outside_the_brain_is_exactly_0_both_ways() -> None:
    for scaling in (Scaling(low=-20, high=100), Scaling(low=5, high=9)):
        assert not scaling.apply(np.full(BRAIN.shape, 7.0), BRAIN)[~BRAIN].any()
        assert not scaling.invert(np.full(BRAIN.shape, 0.3), BRAIN)[~BRAIN].any()


def test_ct_and_pet_have_the_same_scaling_at_every_site() -> None:
    for modality, centre in (("CT", 30.0), ("FDG", 1.1), ("AV45", 1.3)):
        volumes = [inside(RNG.normal(centre * shift, 0.1, BRAIN.shape)) for shift in (0.9, 1.1)]
        assert {find_scaling(modality, volume) for volume in volumes} == {usual_scaling(modality)}


@pytest.mark.parametrize(("modality", "centre", "unit"), [("CT", 1060.0, "HU"), ("FDG", 9000.0, "SUVR")])
def test_values_in_another_unit_are_refused(modality: str, centre: float, unit: str) -> None:
    with pytest.raises(DataError, match=f"must be in {unit}"):
        find_scaling(modality, inside(RNG.normal(centre, 5, BRAIN.shape)))


def test_flat_and_blank_volumes_are_refused() -> None:
    with pytest.raises(DataError, match="flat"):
        find_scaling("T2", inside(np.full(BRAIN.shape, 4.0)))
    with pytest.raises(DataError, match="blank"):
        find_scaling("T2", np.zeros(BRAIN.shape))
    with pytest.raises(DataError, match="blank"):
        find_brain({"T2": np.zeros(BRAIN.shape)})


def test_csf_below_0_hu_belongs_to_the_brain_and_air_does_not() -> None:
    ct = inside(RNG.normal(5, 8, BRAIN.shape))
    ct[0, 0, 0] = -1000
    assert (ct[BRAIN] < 0).any()
    assert np.array_equal(find_brain({"CT": ct}), BRAIN)


def test_the_brain_is_the_largest_part_of_the_union_with_its_holes_filled() -> None:
    t1, t2 = inside(np.ones(BRAIN.shape)), inside(np.ones(BRAIN.shape))
    t1[:, :, 6:], t2[:, :, :6] = 0, 0  # each shows half
    t1[5, 5, 3] = 0  # a hole
    t2[0, 0, 11] = 9  # a speck of noise
    assert np.array_equal(find_brain({"T1": t1, "T2": t2}), BRAIN)
    assert not foreground("T1", t1)[5, 5, 3]
