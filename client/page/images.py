"""The volumes that a browser draws: a file of the index as it is, or half as fine for one without a graphics card."""

import io
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import numpy as np

from client.page import filled
from client.page.index import Entry, Index
from client.page.place import Place
from shared.base import pictures
from shared.base.errors import DataError
from shared.data.modalities import MODALITIES
from shared.data.volumes import Array, Volume, nifti, read
from shared.page.ask import Answer, Ask, NotFound

OCTETS = "application/octet-stream"
KEPT = 24  # halved volumes that are kept in memory: of 1 mm they are 6 MB each
HALF = np.diag([2.0, 2.0, 2.0, 1.0])
HALF[:3, 3] = 0.5  # the middle of eight voxels


@dataclass(frozen=True, slots=True, kw_only=True)
class _Half:
    """A volume half as fine, and three planes of it."""

    volume: bytes
    poster: bytes


@dataclass(slots=True)
class Images:
    place: Place
    index: Index
    _halved: "dict[tuple[Path, int], _Half]" = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def show(self, ask: Ask) -> Answer:
        """/image/HANDLE/FLAIR, FLAIR-synthetic, FLAIR-uncertainty or FLAIR-difference; ?half=1."""
        entry = self.index.find(ask.where["handle"])
        modality, _, kind = ask.where["what"].partition("-")
        if modality not in MODALITIES:
            raise NotFound
        if kind == "difference":
            return Answer(body=self._difference(entry, modality), kind=OCTETS)
        path = self._path(entry, modality, kind)
        if ask.query.get("poster") == "1":
            return Answer(body=self._half(path).poster, kind="image/png")
        if ask.query.get("half") == "1":
            return Answer(body=self._half(path).volume, kind=OCTETS)
        return Answer(body=path, kind=OCTETS)

    def _path(self, entry: Entry, modality: str, kind: str) -> Path:
        if kind == "":
            path = entry.files.get(modality)
        else:
            made = filled.found(self.place.filled, entry.subject, (modality,)).get(modality)
            path = None if made is None else {"synthetic": made.mean, "uncertainty": made.sd}.get(kind)
        if path is None or not path.is_file():
            raise NotFound
        return path

    def _half(self, path: Path) -> "_Half":
        key = path, path.stat().st_mtime_ns
        with self._lock:
            known = self._halved.get(key)
        if known is None:
            volume = read(path)
            small = halved(volume.data_DHW)
            known = _Half(volume=nifti(small, volume.affine @ HALF), poster=_poster(small))
            with self._lock:
                self._halved[key] = known
                while len(self._halved) > KEPT:
                    self._halved.pop(next(iter(self._halved)))
        return known

    def _difference(self, entry: Entry, modality: str) -> bytes:
        """|made - measured|, each as a share of its own bright end; of one grid alone."""
        made, truth = (read(self._path(entry, modality, kind)) for kind in ("synthetic", ""))
        if made.data_DHW.shape != truth.data_DHW.shape:
            raise DataError(f"{modality}: what was made has another grid than what was measured")
        both = _as_shares(made), _as_shares(truth)
        return nifti(halved(np.abs(both[0] - both[1])), truth.affine @ HALF)


def halved(data_DHW: Array) -> Array:
    """The mean of eight voxels; what is left over at an odd end goes."""
    d, h, w = (n // 2 for n in data_DHW.shape)
    cut = data_DHW[: 2 * d, : 2 * h, : 2 * w]
    if not cut.size:
        return data_DHW
    small: Array = cut.reshape(d, 2, h, 2, w, 2).mean(axis=(1, 3, 5), dtype=np.float32)
    return small


def _poster(data_DHW: Array) -> bytes:
    """Three planes through the middle, to be seen before a browser draws, and where it can't."""
    inside = data_DHW[data_DHW > 0]
    low, high = np.percentile(inside, (0.5, 99.5)) if inside.size else (0.0, 1.0)
    shares = (data_DHW - min(low, 0.0)) / max(high - min(low, 0.0), 1e-6)
    planes = pictures.three_planes(shares, [n // 2 for n in shares.shape])
    out = io.BytesIO()
    pictures.mosaic([planes], cell=240).save(out, format="PNG")
    return out.getvalue()


def _as_shares(volume: Volume) -> Array:
    inside = volume.data_DHW[volume.data_DHW != 0]
    low, high = np.percentile(inside, (0.5, 99.5)) if inside.size else (0.0, 1.0)
    shares: Array = np.where(volume.data_DHW != 0, (volume.data_DHW - low) / max(high - low, 1e-6), 0)
    return shares.clip(0, 1).astype(np.float32)
