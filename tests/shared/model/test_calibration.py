"""Intervals of samples against closed forms: how many truths they hold, before and after they were calibrated."""

import json
import math

import pytest
import torch
from torch import Tensor

from shared.base.errors import ConfigError, DataError
from shared.diffusion.samplers import Sampler
from shared.model import calibration
from shared.model.calibration import COVER, NORMAL, SPREADS, Calibration, count, uncalibrated, widths_of
from shared.model.fill import Filled

VOXELS = 200_000
EIGHT = Sampler(kind="multistep", steps=8, samples=8)


def drawn(seed: int, spread: Tensor, *, wide: float = 1.0, floor: float = 0.0, n: int = 8) -> tuple[Tensor, ...]:
    """Truth, mean and sd of n samples: truths are `wide` times as far from the mean as samples, and off by `floor`."""
    g = torch.Generator().manual_seed(seed)
    half = torch.randn(n - n // 2, len(spread), generator=g)
    samples = spread * torch.stack([(-1) ** k * half[k // 2] for k in range(n)]) + 0.5  # in mirrored pairs
    off = wide * spread * torch.randn(len(spread), generator=g) + floor * torch.randn(len(spread), generator=g)
    mean = samples.mean(0)
    return 0.5 + off, mean, ((samples - mean).square().sum(0) / calibration.squares(n)).sqrt()


def spreads(seed: int, n: int = VOXELS) -> Tensor:
    """From a 200th to a tenth of the range."""
    return torch.exp(math.log(0.005) + math.log(20) * torch.rand(n, generator=torch.Generator().manual_seed(seed)))


def calibrated(*parts: tuple[Tensor, ...]) -> Calibration:
    counts = sum((count(*part) for part in parts), torch.zeros(SPREADS, calibration.ERRORS).double())
    return Calibration(sampler=EIGHT, widths={"FLAIR from 3": widths_of(counts)}, source="a closed form")


def held(found: Calibration, part: tuple[Tensor, ...], where: Tensor | None = None) -> float:
    truth, mean, sd = part if where is None else (x[where] for x in part)
    return ((truth - mean).abs() <= found.half_width("FLAIR", 3, sd)).float().mean().item()


@pytest.mark.parametrize("n", [2, 3, 8, 50])
def test_of_truths_drawn_as_samples_are_nine_in_ten_are_held_however_few_samples(n: int) -> None:
    truth, mean, sd = drawn(0, spreads(1), n=n)
    share = ((truth - mean).abs() <= uncalibrated(sd, n)).float().mean().item()
    assert share == pytest.approx(COVER, abs=0.004 if n % 2 == 0 else 0.02)


@pytest.mark.parametrize(("wide", "floor"), [(1.0, 0.0), (2.5, 0.0), (0.4, 0.0), (1.5, 0.03)])
def test_after_calibration_others_truths_are_held_wherever_samples_differ(wide: float, floor: float) -> None:
    """Samples too narrow, too wide, and a network that errs where they agree: at each spread, not only over all."""
    found = calibrated(drawn(0, spreads(1), wide=wide, floor=floor))
    new = drawn(5, spreads(6), wide=wide, floor=floor)
    assert held(found, new) == pytest.approx(COVER, abs=0.01)
    for low, high in ((0.005, 0.01), (0.02, 0.04), (0.06, 0.1)):
        where = (new[2] > low) & (new[2] < high)
        assert held(found, new, where) == pytest.approx(COVER, abs=0.03), (low, high)
    before = ((new[0] - new[1]).abs() <= uncalibrated(new[2], 8)).float().mean().item()
    assert abs(before - COVER) > 0.04 or (wide, floor) == (1.0, 0.0)


def test_a_wider_spread_is_a_wider_interval_of_a_known_width() -> None:
    """Of many samples, whose sd is the truth's: NORMAL sds."""
    spread = spreads(1)
    found = calibrated(drawn(0, spread, n=400))
    sd = torch.tensor([0.01, 0.03, 0.08])
    torch.testing.assert_close(found.half_width("FLAIR", 3, sd), NORMAL * sd, rtol=0.06, atol=0)
    torch.testing.assert_close(found.sd("FLAIR", 3, sd), sd, rtol=0.06, atol=0)


def test_counts_of_sites_add_up_and_say_nothing_else() -> None:
    parts = [drawn(seed, spreads(seed + 10, 30_000), wide=2.0) for seed in range(3)]
    whole = tuple(torch.cat(x) for x in zip(*parts, strict=True))
    assert calibrated(*parts) == calibrated(whole)
    assert count(*whole).sum() == 90_000


def test_a_spread_that_few_voxels_have_is_told_from_its_neighbours() -> None:
    truth, mean, sd = drawn(0, spreads(1), wide=2.0)
    rare = sd > 0.05
    some = rare.nonzero().flatten()[:20]
    keep = ~rare
    keep[some] = True
    found = calibrated((truth[keep], mean[keep], sd[keep]))
    assert all(0 < w <= 1 for w in found.widths["FLAIR from 3"])
    assert found.half_width("FLAIR", 3, torch.tensor([0.3])).item() >= 0.05
    with pytest.raises(DataError, match="10 voxels; 500 are needed"):
        calibrated((truth[:10], mean[:10], sd[:10]))


def test_it_is_read_as_it_was_written_and_knows_what_it_was_counted_for() -> None:
    found = calibrated(drawn(0, spreads(1)))
    assert calibration.read(json.loads(json.dumps(found.record()))) == found
    assert calibration.read(None) is None
    assert found.knows("FLAIR", 3)
    assert not found.knows("FLAIR", 2)
    assert not found.knows("T1", 3)
    for wrong in (
        {"widths": {"FLAIR from 3": [0.1]}},
        {"widths": {"FLAIR from 3": [-1.0] * SPREADS}},
        {"sampler": {"samples": 1}},
    ):
        with pytest.raises(ConfigError, match="calibration"):
            calibration.read({**found.record(), **wrong})


def test_what_is_filled_in_knows_its_intervals() -> None:
    truth, mean, sd = drawn(0, spreads(1, 64), wide=2.0)
    one = Filled(mean_MDHW=mean.reshape(1, 1, 8, 8), sd_MDHW=None)
    assert one.half_widths(0, "FLAIR") == {}
    found = calibrated(drawn(0, spreads(1)))
    many = Filled(
        mean_MDHW=mean.reshape(1, 1, 8, 8), sd_MDHW=sd.reshape(1, 1, 8, 8), samples=8, shown=3, calibration=found
    )
    widths = many.half_widths(0, "FLAIR")
    torch.testing.assert_close(widths["covered"], uncalibrated(sd, 8).reshape(1, 8, 8))
    torch.testing.assert_close(widths["calibrated"], found.half_width("FLAIR", 3, sd).reshape(1, 8, 8))
    assert set(many.half_widths(0, "T1")) == {"covered"}
    assert len(truth) == 64
