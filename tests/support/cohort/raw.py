"""Raw measurements on disk as scanners and public data sets leave them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import ismrmrd
import numpy as np
from numpy.typing import NDArray

SPACE = (
    "<matrixSize><x>{}</x><y>{}</y><z>{}</z></matrixSize><fieldOfView_mm><x>{}</x><y>{}</y><z>{}</z></fieldOfView_mm>"
)
XML = """<?xml version="1.0"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
<experimentalConditions><H1resonanceFrequency_Hz>63500000</H1resonanceFrequency_Hz></experimentalConditions>
<encoding><encodedSpace>{encoded}</encodedSpace><reconSpace>{recon}</reconSpace>
<encodingLimits>{limits}</encodingLimits><trajectory>{trajectory}</trajectory></encoding></ismrmrdHeader>"""


def transform(images: NDArray[Any]) -> NDArray[np.complex64]:
    """Centred, orthonormal, over the last two axes."""
    axes = (-2, -1)
    shifted = np.fft.fft2(np.fft.ifftshift(images, axes=axes), axes=axes, norm="ortho")
    return np.fft.fftshift(shifted, axes=axes).astype(np.complex64)


def back(kspace: NDArray[Any]) -> NDArray[Any]:
    axes = (-2, -1)
    return np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, axes=axes), axes=axes, norm="ortho"), axes=axes)


def header(
    encoded: Sequence[int],
    recon: Sequence[int],
    encoded_mm: Sequence[float],
    recon_mm: Sequence[float],
    *,
    centre: int | None = None,
    trajectory: str = "cartesian",
) -> str:
    line = f"<minimum>0</minimum><maximum>{encoded[1] - 1}</maximum><center>{centre}</center>"
    limits = "" if centre is None else f"<kspace_encoding_step_1>{line}</kspace_encoding_step_1>"
    return XML.format(
        encoded=SPACE.format(*encoded, *encoded_mm),
        recon=SPACE.format(*recon, *recon_mm),
        limits=limits,
        trajectory=trajectory,
    )


def write_fastmri(path: Path, kspace: NDArray[Any], **others: Any) -> Path:
    """`kspace` and, by name, whatever else belongs into the file."""
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace
        for name, value in others.items():
            file[name] = value
        file.attrs["acquisition"] = "AXFLAIR"
    return path


def acquisition(line_CN: NDArray[Any], line: int, z: int, flags: Sequence[int] = (), **fields: Any) -> Any:
    """One line of all coils; `fields` of its header, those of the counters by their own names."""
    made = ismrmrd.Acquisition.from_array(np.ascontiguousarray(line_CN, np.complex64))
    made.center_sample = line_CN.shape[1] // 2
    made.idx.kspace_encode_step_1 = line
    made.idx.slice = z
    for flag in flags:
        made.set_flag(flag)
    for name, value in fields.items():
        if name in ("position", "read_dir", "phase_dir", "slice_dir"):
            getattr(made, name)[:] = [float(v) for v in value]
        else:
            setattr(made.idx if hasattr(made.idx, name) else made, name, value)
    return made


def write_ismrmrd(path: Path, xml: str, acquisitions: Sequence[Any]) -> Path:
    path.unlink(missing_ok=True)
    with ismrmrd.Dataset(str(path), "dataset") as dataset:
        dataset.write_xml_header(xml)
        for made in acquisitions:
            dataset.append_acquisition(made)
    return path


def images(rng: np.random.Generator, *shape: int) -> NDArray[np.complex64]:
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)


def plain_scan(rng: np.random.Generator, lines: list[int], **fields: Any) -> tuple[NDArray[Any], list[Any]]:
    """Two slices of 10 x 8 without directions, only these lines."""
    y = images(rng, 2, 3, 10, 8)
    return y, [acquisition(y[z][..., n], n, z, **fields) for z in range(2) for n in lines]


SQUARE = ([10, 8, 1], [10, 8, 1], [10, 8, 5], [10, 8, 5])
