"""Measurements on the network's scale: units, what is measured, the cohort's geometry."""

import numpy as np
import torch
from support.model.draws import F64, B, Draw, mri_lines, mri_points_each
from torch import Tensor

from shared.data.volumes import Placement
from shared.diffusion.operators import (
    CartesianMRI,
    Place,
    clean,
    measured,
    none,
)


def test_whole_raw_data_with_a_mask_are_cut_to_the_mask(one: Draw) -> None:
    few = mri_lines(one)
    x = torch.rand(B, one.H, one.W, generator=one.g, dtype=F64)
    whole = CartesianMRI(maps_BCHW=few.maps_BCHW, mask=torch.ones(one.W, dtype=torch.bool)).forward(x)
    known, same = measured(whole, few, 1.0), measured(few.sampled(whole), few, 1.0)
    assert known.y is not None
    assert same.y is not None
    assert torch.equal(known.y, same.y)


def test_samples_of_what_is_measured(one: Draw) -> None:
    operator = mri_points_each(one)
    x = torch.rand(B, one.H, one.W, generator=one.g, dtype=F64)
    known = measured(operator.forward(x), operator, 2 + torch.rand(B, generator=one.g)).at([2, 0])
    assert known.y is not None
    assert known.operator is not None
    assert isinstance(known.operator.sigma, Tensor)
    assert known.operator.sigma.shape == (2,)
    assert known.operator.adjoint(known.y).shape == (2, one.H, one.W)
    image = clean(x).at([1])
    assert image.kind == "clean"
    assert image.y is not None
    torch.testing.assert_close(image.y, 2 * x[[1]] - 1)
    assert none().at([0, 1]).to("cpu").kind == "none"


def test_a_clean_image_of_half_precision_keeps_every_bit() -> None:
    x = torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(1)).half()
    y = clean(x).y
    assert y is not None
    assert torch.equal((y + 1) / 2, x.float())


def test_the_place_is_that_of_the_cohorts_geometry(one: Draw) -> None:
    """A grid that is finer than the scanner's voxels and reaches beyond them on one side."""
    placement = Placement(
        shape_DHW=(1, one.H, one.W),
        grid_DHW=(1, one.H + 2, one.W),
        start_zyx=(0.0, -1.3, 0.4),
        step_zyx=(1.0, 0.7, 0.9),
    )
    rows, columns = map(torch.from_numpy, placement.weights_from())
    stack = np.random.default_rng(one.seed).random((1, one.H + 2, one.W), np.float32)
    placed = Place(rows=rows, columns=columns).forward(torch.from_numpy(stack))
    np.testing.assert_allclose(placed.numpy(), placement.from_grid(stack), atol=1e-5)
