"""Windows cover a volume, leave no seam, and give the same bits however the work was divided."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.model.models import release
from torch import Tensor

from client.inference.slices import SliceStore
from shared.diffusion.samplers import Sampler
from shared.model.fill import Filled, Filling, fill
from shared.model.model import Model, read_model
from shared.model.windows import Blend, Window, cut, lay, starts

CPU = torch.device("cpu")
SLAB, EDGE = 5, 16


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 20))
def test_starts_cover_every_place_and_stay_inside(length: int, size: int, step: int) -> None:
    step = min(step, size)
    found = starts(length, size, step)
    assert {place for start in found for place in range(start, start + size)} >= set(range(length))
    assert found[0] == 0
    assert found[-1] == max(0, length - size)
    assert all(b - a <= step for a, b in itertools.pairwise(found))


def blended(values_MDHW: Tensor, windows: Sequence[Window], size: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    blend = Blend(mean_MDHW=torch.zeros_like(values_MDHW), variance_MDHW=torch.zeros_like(values_MDHW), size_DHW=size)
    for at in windows:
        blend.add(at, cut(values_MDHW, at, size), torch.full((len(values_MDHW), *size), 0.5))
    assert blend.variance_MDHW is not None
    return blend.mean_MDHW, blend.variance_MDHW.sqrt()


@pytest.mark.parametrize("shape", [(9, 40, 25), (5, 16, 16), (3, 16, 40), (12, 17, 16)])
@pytest.mark.parametrize("stride", [1, 2, 5])
def test_windows_that_agree_give_the_volume_back(shape: tuple[int, int, int], stride: int) -> None:
    volume = torch.rand(2, *shape)
    windows = lay(shape, (0, shape[0]), (SLAB, EDGE, EDGE), stride)
    mean, sd = blended(volume, windows, (SLAB, EDGE, EDGE))
    assert torch.allclose(mean, volume, atol=1e-6)
    assert torch.allclose(sd, torch.full_like(sd, 0.5), atol=1e-6)


def test_only_the_reached_slices_are_looked_at_where_they_suffice() -> None:
    windows = lay((40, 16, 16), (10, 22), (SLAB, EDGE, EDGE), 1)
    assert {at.z for at in windows} == set(range(10, 18))
    assert [at.z for at in lay((40, 16, 16), (38, 40), (SLAB, EDGE, EDGE), 1)] == [35]  # thinner than a window


def test_windows_that_disagree_leave_no_seam() -> None:
    """Each window is off by its own constant: no step between neighbours is near the steps between windows."""
    shape, size = (5, 64, 64), (SLAB, 32, 32)
    windows = lay(shape, (0, 5), size, 1)
    blend = Blend(mean_MDHW=torch.zeros(1, *shape), variance_MDHW=None, size_DHW=size)
    offsets = [float(i % 2) for i in range(len(windows))]
    for at, offset in zip(windows, offsets, strict=True):
        blend.add(at, torch.full((1, *size), offset), torch.zeros(1, *size))
    steps = max(blend.mean_MDHW.diff(dim=dim).abs().max().item() for dim in (2, 3))
    assert steps < 0.12  # a hard border would show as 1
    assert blend.mean_MDHW.max() - blend.mean_MDHW.min() > 0.5


# --- a method of slabs on whole volumes -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    options = {"modalities": ["T1", "T2", "TOF"], "size": "tiny", "slab": SLAB, "times": 50, "precision": "fp32"}
    return read_model(release(tmp_path_factory.mktemp("run") / "final", "mmdm", options, edge=EDGE))


def filled(model: Model, images: Tensor, sampler: Sampler, at_once: int = 4, kept: SliceStore | None = None) -> Filled:
    shown = torch.tensor([True, True, False])
    every = range(images.shape[1])
    how = Filling(sampler=sampler, keys=(1,), device=CPU, at_once=at_once, kept=kept)
    return fill(model, images, shown, every, how)


def volume(*shape: int) -> Tensor:
    return torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))


BRIDGE = Sampler(kind="bridge", steps=2, eta=1.0, samples=2)


def test_a_volume_is_the_weighted_mean_of_its_windows(model: Model) -> None:
    """By hand: each window through the method alone, then the weights."""
    sampler = Sampler(kind="mean", stride=2)
    images = volume(8, EDGE, EDGE)
    made = filled(model, images, sampler).mean_MDHW
    known = images.clone()
    known[2] = 0
    total, weights = torch.zeros(8, EDGE, EDGE), torch.zeros(8)
    ramp = torch.tensor([1.0, 2, 3, 2, 1])
    for z in (0, 2, 3):
        window = known[None, :, z : z + SLAB]
        alone = model.method.synthesize(
            model.net, window, torch.tensor([[True, True, False]]), sampler, torch.Generator()
        )[0, 2]
        total[z : z + SLAB] += ramp[:, None, None] * alone
        weights[z : z + SLAB] += ramp
    assert torch.allclose(made[2], total / weights[:, None, None], atol=1e-5)
    assert torch.allclose(made[:2], images[:2], atol=1e-6)


@pytest.mark.parametrize("shape", [(7, EDGE, EDGE), (3, EDGE, EDGE), (6, 40, 24)])
def test_the_same_whatever_fits_into_memory(model: Model, shape: tuple[int, int, int]) -> None:
    one, other = (filled(model, volume(*shape), BRIDGE, at_once) for at_once in (1, 5))
    assert one.sd_MDHW is not None
    assert other.sd_MDHW is not None
    assert torch.allclose(one.mean_MDHW, other.mean_MDHW, atol=1e-5)
    assert torch.allclose(one.sd_MDHW, other.sd_MDHW, atol=1e-4)
    assert one.mean_MDHW.min() >= 0
    assert one.mean_MDHW.max() <= 1


@pytest.mark.parametrize("lost", [slice(1, None), slice(1, 2)], ids=["killed after the first batch", "one damaged"])
def test_a_stopped_job_goes_on_to_the_same_bits(model: Model, tmp_path: Path, lost: slice) -> None:
    images = volume(9, EDGE, EDGE)
    whole = filled(model, images, BRIDGE, at_once=2)
    store = SliceStore(tmp_path, "sub-01", {})
    filled(model, images, BRIDGE, at_once=2, kept=store)
    for path in sorted(store.folder.glob("[0-9]*.npz"))[lost]:
        path.unlink()
    again = filled(model, images, BRIDGE, at_once=2, kept=SliceStore(tmp_path, "sub-01", {}))
    assert torch.equal(again.mean_MDHW, whole.mean_MDHW)
    assert again.sd_MDHW is not None
    assert whole.sd_MDHW is not None
    assert torch.equal(again.sd_MDHW, whole.sd_MDHW)


def test_a_volume_wider_than_the_grid_has_no_seam_where_windows_end(model: Model) -> None:
    """A periodic image: what the network makes is as rough at the borders of windows as between them."""
    tile = volume(SLAB, 8, 8)
    images = tile.repeat(1, 1, 8, 6)
    made = filled(model, images, Sampler(kind="mean")).mean_MDHW[2]
    inner = made[:, 8:-8, 8:-8]
    rows = inner.diff(dim=1).abs().mean((0, 2))
    columns = inner.diff(dim=2).abs().mean((0, 1))
    for steps in (rows, columns):
        at_border = steps[(torch.arange(len(steps)) % 8) == 7]  # windows begin at multiples of 8
        assert at_border.mean() < 1.5 * steps.mean()


def test_windows_without_an_image_cost_nothing(model: Model) -> None:
    images = torch.zeros(3, SLAB, 64, EDGE)
    images[:, :, :EDGE] = 0.5
    seen: list[int] = []
    fill(
        model,
        images,
        torch.tensor([True, True, False]),
        range(SLAB),
        Filling(sampler=Sampler(kind="mean"), keys=(0,), device=CPU, progress=lambda done, of: seen.append(of)),
    )
    assert seen[-1] == 2  # of seven


def test_what_is_hidden_is_never_looked_at(model: Model) -> None:
    images = volume(6, EDGE, EDGE)
    clean = filled(model, images, BRIDGE)
    images[2] = np.nan
    assert torch.equal(filled(model, images, BRIDGE).mean_MDHW, clean.mean_MDHW)
