"""What a scanner does to an image, y = A x + n: A, its adjoint, its noise (docs/methods/reconstruction.md).

An operator is linear and acts on real images of one modality, in any units; the network's scale, [-1, 1], is
`measured`'s affair. Arithmetic is fp32 or fp64, never under autocast, and gradients pass through it. Coil maps and
masks are made in acquisition.py.

Noise: `sigma` is the standard deviation of one sample of y. A complex sample has sigma / sqrt(2) in its real part and
as much in its imaginary part, so that E|n|^2 = sigma^2; a real one has sigma. What a mask leaves out is exactly 0.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

from shared.base.errors import DataError
from shared.base.randomness import Noise, normal
from shared.diffusion.fourier import fft2c, ifft2c

Sd: TypeAlias = float | Tensor  # a tensor holds one for each sample of the batch
T = TypeVar("T")

_WIDER = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.complex32: torch.complex64}


class Operator(Protocol):
    """From an image to what is measured. Tensors of batch size 1 inside it serve the whole batch."""

    @property
    def sigma(self) -> Sd: ...

    def forward(self, x_BHW: Tensor) -> Tensor: ...

    def adjoint(self, y: Tensor) -> Tensor:
        """A real BHW image: the real part of A^H y."""

    def normal(self, x_BHW: Tensor) -> Tensor:
        """adjoint(forward(x)): the real part is taken inside (solving for a complex x is another, worse estimate)."""

    def at(self, index: Sequence[int]) -> "Operator":
        """Give the operator of these samples of the batch alone."""

    def to(self, device: torch.device | str) -> "Operator": ...


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Place:
    """Where the model's grid lies in a scanner's field of view: x -> rows x columns^T, 0 where the grid ends."""

    rows: Tensor  # (Hfov, H), or one for each sample
    columns: Tensor  # (Wfov, W), or one for each sample

    def forward(self, x_BHW: Tensor) -> Tensor:
        return self.rows.to(x_BHW.dtype) @ x_BHW @ self.columns.to(x_BHW.dtype).mT

    def adjoint(self, x_BHW: Tensor) -> Tensor:
        return self.rows.to(x_BHW.dtype).mT @ x_BHW @ self.columns.to(x_BHW.dtype)

    def at(self, index: Sequence[int]) -> "Place":
        return Place(rows=_at(self.rows, index, single=2), columns=_at(self.columns, index, single=2))

    def to(self, device: torch.device | str) -> "Place":
        return _to(self, device)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class CartesianMRI:
    """M F S: coil maps, centred orthonormal FFT, k-space mask. y is BCHW, complex; |A^T A| <= 1 with `unit_maps`.

    The maps carry the phase of the image, for x is real. Where all maps are 0 nothing is measured.
    """

    maps_BCHW: Tensor  # complex; batch size 1 serves all
    mask: Tensor  # bool: W, the columns that are measured; or BHW, B and H may be 1
    sigma: Sd = 0.0
    placement: Place | None = None

    def __post_init__(self) -> None:
        maps, mask = tuple(self.maps_BCHW.shape), tuple(self.mask.shape)
        _rule(
            self.maps_BCHW.is_complex() and len(maps) == 4,
            f"coil maps of {self.maps_BCHW.dtype} and shape {maps}",
            "must be complex, with axes sample, coil, row, column",
        )
        finite(self.maps_BCHW, "coil maps")
        _rule(self.mask.dtype == torch.bool, f"mask of {self.mask.dtype}", "must be of bool")
        fits = mask == maps[3:] if len(mask) == 1 else len(mask) == 3 and mask[1] in (1, maps[2]) and mask[2] == maps[3]
        _rule(
            fits,
            f"mask of shape {mask}",
            f"must be ({maps[3]},) or (samples, {maps[2]}, {maps[3]}), as the coil maps of shape {maps} ask",
        )
        _rule(bool(self.mask.reshape(len(self._mask_B1HW), -1).any(1).all()), "mask", "leaves no sample of k-space")
        if self.placement is not None:
            fov = (self.placement.rows.shape[-2], self.placement.columns.shape[-2])
            _rule(fov == maps[2:], f"placement in a field of view of {fov}", f"must be {maps[2:]}, as the coil maps")
        _rule(
            len(self._batches()) <= 1,
            f"coil maps of shape {maps}, mask of shape {mask}, noise and placement",
            f"must be of as many samples, or of one; here they are of {sorted(self._batches())}",
        )

    def forward(self, x_BHW: Tensor) -> Tensor:
        with _exact(x_BHW) as x_BHW:
            return self.sampled(fft2c(self.maps_BCHW * self._placed(x_BHW)[:, None]))

    def adjoint(self, y: Tensor) -> Tensor:
        self._check(y)
        with _exact(y) as y:
            image_BHW = (self.maps_BCHW.conj() * ifft2c(self.sampled(y))).sum(1).real
            return self.placement.adjoint(image_BHW) if self.placement else image_BHW

    def normal(self, x_BHW: Tensor) -> Tensor:
        """The centring shifts cancel: the middle of it is a convolution, and the same wherever the origin lies."""
        with _exact(x_BHW) as x_BHW:
            kept = torch.fft.ifftshift(self._mask_B1HW.expand(-1, -1, *self.maps_BCHW.shape[2:]), (-2, -1))
            coils = torch.fft.fft2(self.maps_BCHW * self._placed(x_BHW)[:, None])
            image = (self.maps_BCHW.conj() * torch.fft.ifft2(torch.where(kept, coils, 0))).sum(1).real
            return self.placement.adjoint(image) if self.placement else image

    def sampled(self, y: Tensor) -> Tensor:
        """y with what the mask leaves out set to 0."""
        return torch.where(self._mask_B1HW, y, 0)

    def at(self, index: Sequence[int]) -> "CartesianMRI":
        return dataclasses.replace(
            self,
            maps_BCHW=_at(self.maps_BCHW, index),
            mask=_at(self.mask, index, single=1),
            sigma=_at(self.sigma, index),
            placement=self.placement.at(index) if self.placement else None,
        )

    def to(self, device: torch.device | str) -> "CartesianMRI":
        return _to(self, device)

    @property
    def _mask_B1HW(self) -> Tensor:
        return self.mask[None, None, None] if self.mask.ndim == 1 else self.mask[:, None]

    def _placed(self, x_BHW: Tensor) -> Tensor:
        return self.placement.forward(x_BHW) if self.placement else x_BHW

    def _check(self, y: Tensor) -> None:
        maps = tuple(self.maps_BCHW.shape)
        _rule(y.is_complex(), f"k-space of {y.dtype}", "must be complex")
        _rule(
            y.ndim == 4 and y.shape[1:] == maps[1:] and self._batches() <= {len(y)},
            f"k-space of shape {tuple(y.shape)}",
            f"must be ({', '.join(map(str, self._batches() or ('samples',)))}, {maps[1]}, {maps[2]}, {maps[3]}), "
            "as the coil maps and the mask",
        )

    def _batches(self) -> set[int]:
        """How many samples it is for: none if it serves any number."""
        place = self.placement
        each: list[tuple[Sd, int]] = [(self.maps_BCHW, 0), (self.mask, 1), (self.sigma, 0)]
        each += [(place.rows, 2), (place.columns, 2)] if place else []
        return {len(v) for v, single in each if isinstance(v, Tensor) and v.ndim > single} - {1}


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """What is known of one modality of a batch, on the network's scale [-1, 1]."""

    kind: Literal["clean", "none", "linear"]
    y: Tensor | None = None  # clean: y_BHW is the image; linear: y = operator.forward(x) + noise
    operator: Operator | None = None

    def __post_init__(self) -> None:
        assert (self.y is not None, self.operator is not None) == (self.kind != "none", self.kind == "linear")

    def at(self, index: Sequence[int]) -> "Measured":
        return Measured(
            self.kind,
            None if self.y is None else self.y[list(index)],
            None if self.operator is None else self.operator.at(index),
        )

    def to(self, device: torch.device | str) -> "Measured":
        return Measured(
            self.kind,
            None if self.y is None else self.y.to(device),
            None if self.operator is None else self.operator.to(device),
        )


def none() -> Measured:
    return Measured("none")


def clean(image_BHW: Tensor) -> Measured:
    """Say that a modality is there whole: its image in [0, 1]."""
    return Measured("clean", 2 * _wide(finite(image_BHW, "image")) - 1)


def measured(y: Tensor, operator: Operator, scale: Sd) -> Measured:
    """y of an image in physical units, phys = (x + 1) / 2 * scale, told in terms of x: A x = 2 / scale y - A 1."""
    scale_B = torch.as_tensor(scale, dtype=torch.float64, device=y.device)
    _rule(bool(((scale_B > 0) & scale_B.isfinite()).all()), f"scale {scale}", "must be above 0 and finite")
    _rule(
        scale_B.ndim == 0 or scale_B.shape == y.shape[:1],
        f"scale of shape {tuple(scale_B.shape)}",
        f"must be one number, or one for each of the {len(y)} samples",
    )
    ones = torch.ones_like(operator.adjoint(finite(y, "measurement")))
    gain = (2 / scale_B).to(ones.dtype)
    y = gain.reshape(-1, *[1] * (y.ndim - 1)) * y - operator.forward(ones)
    sigma = float(gain) * operator.sigma if gain.ndim == 0 else gain * operator.sigma
    return Measured("linear", only_sampled(y, operator), dataclasses.replace(operator, sigma=sigma))  # type: ignore[type-var]


def simulate(operator: Operator, x_BHW: Tensor, noise: Noise | None) -> Tensor:
    """Measure the image x, in its own units; a seed gives the same noise whatever the mask."""
    y = operator.forward(x_BHW)
    sigma = torch.as_tensor(operator.sigma, dtype=x_BHW.dtype, device=y.device).reshape(-1, *[1] * (y.ndim - 1))
    return only_sampled(y + sigma * normal(y, noise), operator)


def only_sampled(y: Tensor, operator: Operator) -> Tensor:
    return operator.sampled(y) if isinstance(operator, CartesianMRI) else y


def finite(values: Tensor, what: str) -> Tensor:
    broken = values.numel() - int(torch.isfinite(values).sum())
    _rule(not broken, what, f"holds {broken} NaN or infinite values of {values.numel()}")
    return values


@contextmanager
def _exact(values: Tensor) -> Iterator[Tensor]:
    """No autocast, and never half precision: neither an FFT nor a residual can be trusted to it."""
    with torch.autocast(values.device.type, enabled=False):
        yield _wide(values)


def _wide(values: Tensor) -> Tensor:
    return values.to(_WIDER.get(values.dtype, values.dtype))


def _at(values: Any, index: Sequence[int], *, single: int = 0) -> Any:
    """Indexed along the batch, unless it serves all: a number, a tensor of `single` axes, or of batch size 1."""
    if not isinstance(values, Tensor) or values.ndim == single or len(values) == 1:
        return values
    return values[list(index)]


def _to(own: T, device: torch.device | str) -> T:
    """Move every field that can be moved."""
    moved = {
        field.name: value.to(device)
        for field in dataclasses.fields(own)  # type: ignore[arg-type]
        if isinstance(value := getattr(own, field.name), Tensor | Place)
    }
    return dataclasses.replace(own, **moved)  # type: ignore[type-var]


def _rule(kept: bool, what: str, rule: str) -> None:
    if not kept:
        raise DataError(f"{what}: {rule}")
