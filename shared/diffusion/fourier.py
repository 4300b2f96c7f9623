"""The centred, orthonormal Fourier transform of images: the one implementation.

Pitfalls: docs/methods/reconstruction.md, "Fourier transforms".

The zero frequency lies at n // 2 of each axis, for odd sizes too. fp32 and fp64 only: half precision has no FFT.
"""

import torch
from torch import Tensor

_AXES = (-2, -1)


def fft2c(images: Tensor) -> Tensor:
    """Images (..., H, W) to k-space; its inverse and its adjoint is `ifft2c`."""
    out: Tensor = torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(images, _AXES), norm="ortho"), _AXES)
    return out


def ifft2c(kspace: Tensor) -> Tensor:
    out: Tensor = torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(kspace, _AXES), norm="ortho"), _AXES)
    return out
