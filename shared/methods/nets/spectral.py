"""The spectral input of the IFFN: x_HL = Heq(|F^-1(F(x) f_N)|)  (AMM-Diff eq. 3).

What f_N is, and pitfalls: docs/methods/amm_diff.md, "The spectral input".

A function of one image and its mask alone, so it may be cached; fp32, outside autograd and autocast. It does not
change when a scanner's gain or offset does.
"""

import torch
from torch import Tensor

from shared.diffusion.fourier import fft2c, ifft2c

D0 = 0.06  # cycles per pixel: width of the Gaussian high-pass
BINS = 256
FLAT = 1e-6  # an image whose high-pass spans less than this is blank


@torch.no_grad()
def spectral(images_BMHW: Tensor, shown_BM: Tensor) -> Tensor:
    """x_HL of every shown image in [0, 1]; exactly 0 where not shown and outside the brain."""
    device = images_BMHW.device.type
    with torch.autocast(device, enabled=False):
        images_BMHW = torch.where(shown_BM[:, :, None, None], images_BMHW.float(), 0.0)
        mask_BMHW = brain(images_BMHW, shown_BM).expand_as(images_BMHW) & shown_BM[:, :, None, None]
        return equalize(high_pass(images_BMHW), mask_BMHW)


def brain(images_BMHW: Tensor, shown_BM: Tensor) -> Tensor:
    """B1HW: where any shown image is above 0. Hidden ones have no say, so nothing leaks through the mask."""
    return (shown_BM[:, :, None, None] & (images_BMHW > 0)).any(dim=1, keepdim=True)


def high_pass(images: Tensor) -> Tensor:
    """|F^-1(F(x) f_N)| with f_N = 1 - exp(-(u^2 + v^2) / (2 D0^2)), over the last two axes."""
    u_H, v_W = (torch.fft.fftshift(torch.fft.fftfreq(n, device=images.device)) for n in images.shape[-2:])
    f_HW = 1 - torch.exp(-(u_H[:, None] ** 2 + v_W[None, :] ** 2) / (2 * D0**2))
    return ifft2c(fft2c(images) * f_HW).abs()


def equalize(images: Tensor, mask: Tensor) -> Tensor:
    """Histogram equalisation of each image inside its mask: piecewise-linear CDF over 256 bins, 0 outside."""
    x_NP, in_NP = images.flatten(-2).flatten(0, -2), mask.flatten(-2).flatten(0, -2)
    low_N = torch.where(in_NP, x_NP, torch.inf).amin(1, keepdim=True)
    span_N = torch.where(in_NP, x_NP, -torch.inf).amax(1, keepdim=True) - low_N
    usable_N = span_N >= FLAT  # False for an empty mask too: its span is -inf
    place_NP = torch.where(in_NP & usable_N, (x_NP - low_N) / span_N, 0.0) * BINS

    bin_NP = place_NP.long().clamp(max=BINS - 1)
    histogram_NK = torch.zeros(len(x_NP), BINS, device=x_NP.device).scatter_add_(1, bin_NP, in_NP.float())
    cdf_NK = histogram_NK.cumsum(1) / histogram_NK.sum(1, keepdim=True).clamp(min=1)
    first_N = cdf_NK[:, :1]
    cdf_NK = (cdf_NK - first_N) / (1 - first_N).clamp(min=1e-12)

    between_NP = (place_NP - 0.5).clamp(0, BINS - 1)  # the CDF is known at the middles of the bins
    left_NP = between_NP.long().clamp(max=BINS - 2)
    at_left, at_right = cdf_NK.gather(1, left_NP), cdf_NK.gather(1, left_NP + 1)
    out_NP = at_left + (between_NP - left_NP) * (at_right - at_left)
    return torch.where(in_NP & usable_N, out_NP, 0.0).reshape(images.shape)
