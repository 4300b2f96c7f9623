"""Coil maps from the measurement itself, and the image's phase put into them.

Why maps need a phase: docs/methods/reconstruction.md, "Coil maps".

ESPIRiT (Uecker et al. 2014): neighbouring samples of k-space, of all coils together, lie in a space that the fully
measured lines round k = 0 tell. In the image that says: at each pixel the coils' values are an eigenvector, with
eigenvalue 1, of a small matrix. That vector is the maps' value there, up to a phase; where no eigenvalue is near 1
there is no signal, and the maps are 0.

An operator on real images needs maps that carry the image's phase. It is smooth, so a low-resolution image has it.
"""

import math

import torch
from torch import Tensor

from shared.base.errors import DataError
from shared.diffusion import conjugate
from shared.diffusion.fourier import fft2c, ifft2c

LEAST_LINES = 5  # fully measured round k = 0
KERNEL, REGION = 6, 24  # samples each way: of a neighbourhood, and of the block that it is moved over
NOISE_FLOOR = 0.02  # of the largest singular value: what lies below is noise
SURE = 0.8  # eigenvalue: below it a pixel shows no signal
ROWS_AT_ONCE = 16
SENSE_STRENGTH, SENSE_ITERATIONS = 1e-2, 12
PHASE_WIDTH = 1 / 2  # of the matrix: the resolution of the phase


def espirit(y_CHW: Tensor, lines: int) -> Tensor:
    """Estimate CHW maps, root sum of squares 1 or 0, from k-space whose `lines` central columns are fully measured."""
    coils, height, width = y_CHW.shape
    if lines < LEAST_LINES:
        raise DataError(
            f"{lines} fully measured lines round the centre of k-space: too few to estimate coil maps "
            f"({LEAST_LINES} or more); give the maps as a file"
        )
    rows = min(REGION, height)
    columns = min(REGION, lines)
    block_CHW = _middle(_middle(y_CHW, rows, -2), columns, -1)
    kernel = min(KERNEL, (columns + 1) // 2, rows)
    patches = block_CHW.unfold(1, kernel, 1).unfold(2, kernel, 1)  # C, rows, columns, kernel, kernel
    matrix = patches.permute(1, 2, 0, 3, 4).flatten(2).flatten(0, 1)
    _, singular, v_NF = torch.linalg.svd(matrix, full_matrices=False)
    if not bool(singular[0] > 0):
        raise DataError("the lines round the centre of k-space are all 0: no coil maps can be estimated")
    kernels = v_NF[singular > NOISE_FLOOR * singular[0]].conj().reshape(-1, coils, kernel, kernel)
    wave_H, wave_W = (_waves(n, kernel).to(kernels) for n in (height, width))
    along = torch.einsum("ncab,wb->ncaw", kernels, wave_W)
    parts = []
    for start in range(0, height, ROWS_AT_ONCE):
        seen = torch.einsum("ncaw,ha->hwnc", along, wave_H[start : start + ROWS_AT_ONCE]) / kernel
        values, vectors = torch.linalg.eigh(seen.mH @ seen)  # ascending
        parts.append(torch.where(values[..., -1:] > SURE, vectors[..., -1], 0))
    maps_CHW = torch.cat(parts).permute(2, 0, 1).contiguous()
    low_CHW = torch.stack([smooth(ifft2c(coil), 2 * (lines // 2) + 2) for coil in y_CHW])
    return maps_CHW * _unit((maps_CHW.conj() * low_CHW).sum(0))  # an eigenvector's own phase is any


def with_phase(maps_CHW: Tensor, y_CHW: Tensor, mask_HW: Tensor) -> Tensor:
    """Multiply the maps by the phase of a smooth complex CG-SENSE image, so that the image itself is real."""
    image_HW = complex_sense(y_CHW[None], maps_CHW[None], mask_HW)[0]
    phase_HW = smooth(image_HW, max(4.0, PHASE_WIDTH * min(image_HW.shape)))
    return maps_CHW * _unit(phase_HW)


def complex_sense(y_BCHW: Tensor, maps_BCHW: Tensor, mask_HW: Tensor) -> Tensor:
    """Solve argmin |M F S x - y|^2 + SENSE_STRENGTH |x|^2 over complex x, BHW."""

    def normal(x_BHW: Tensor) -> Tensor:
        seen = ifft2c(torch.where(mask_HW, fft2c(maps_BCHW * x_BHW[:, None]), 0))
        return (maps_BCHW.conj() * seen).sum(1) + SENSE_STRENGTH * x_BHW

    b_BHW = (maps_BCHW.conj() * ifft2c(torch.where(mask_HW, y_BCHW, 0))).sum(1)
    return conjugate.solve(normal, b_BHW, torch.zeros_like(b_BHW), iterations=SENSE_ITERATIONS)


def smooth(image_HW: Tensor, width: float) -> Tensor:
    """Smooth an image by a Hann window of `width` samples each way over its k-space."""
    windows = []
    for n in image_HW.shape:
        at = (torch.arange(n, device=image_HW.device) - n // 2) / (width / 2)
        windows.append(torch.where(at.abs() < 1, torch.cos(at * math.pi / 2).square(), 0.0))
    return ifft2c(fft2c(image_HW) * windows[0][:, None] * windows[1])


def _unit(image_HW: Tensor) -> Tensor:
    size_HW = image_HW.abs()
    return torch.where(size_HW > 0, image_HW / size_HW.clamp(min=torch.finfo(size_HW.dtype).tiny), 1)


def _waves(size: int, kernel: int) -> Tensor:
    """exp(-2 pi i a q) for pixels q = (i - n // 2) / n and offsets a."""
    q = (torch.arange(size, dtype=torch.float64) - size // 2) / size
    return torch.exp(-2j * math.pi * q[:, None] * torch.arange(kernel, dtype=torch.float64))


def _middle(x: Tensor, size: int, axis: int) -> Tensor:
    return x.narrow(axis, x.shape[axis] // 2 - size // 2, size)
