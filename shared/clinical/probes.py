"""Do two sites have the same encoder? Asked with sixteen made-up charts, answered with a sketch of their tokens.

A fingerprint holds the encoder's id, a fixed random projection of each probe's tokens and a digest of all of them. It
says nothing of any subject, and travels; what a site makes of its own charts does not.
"""

import base64
import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.base.vocabulary import Modality
from shared.clinical.chart import Chart
from shared.clinical.codes import signs
from shared.clinical.encoder import Encoder

NUMBERS = 24  # of the sketch, per probe
NEAR = 0.9999  # cosine; machines differ in the last bits of a language model
EXACT = ("builtin", "label_embedding", "none")  # providers whose tokens are the same bits everywhere

PROBES: tuple[tuple[Chart, Modality, tuple[Modality, ...]], ...] = (
    (Chart(), "T1", ("FDG",)),
    (Chart(), "FDG", ("T1",)),
    (Chart(), "AV45", ("T1", "FDG")),
    (Chart(), "FLAIR", ("T1", "T2")),
    (Chart(diagnosis="AD"), "T1", ("AV45",)),
    (Chart(diagnosis="MCI"), "FDG", ("AV45",)),
    (Chart(diagnosis="HC"), "AV45", ("FDG",)),
    (Chart(mmse=30), "T1", ("FDG", "AV45")),
    (Chart(mmse=17), "FDG", ("T1", "AV45")),
    (Chart(mmse=3), "CT", ("T2",)),
    (Chart(adas13=9), "T1", ("FDG",)),
    (Chart(adas13=52), "FDG", ("T1",)),
    (Chart(cdrsb=0.5), "AV45", ("T1",)),
    (Chart(cdrsb=13), "TOF", ("T1",)),
    (Chart(diagnosis="AD", mmse=19, adas13=33, cdrsb=6.5), "FDG", ("T1",)),
    (Chart(diagnosis="HC", mmse=29, adas13=7, cdrsb=0), "AV45", ("T1", "FDG")),
)


def fingerprint(encoder: Encoder) -> str:
    """Sketch an encoder in 1 kB of base64. It is asked now: its memory and cache are passed by."""
    tokens = _tokens(encoder)
    digest = hashlib.sha256(tokens.astype("<f4").tobytes()).digest()
    sketch = _sketch(tokens).astype("<f2").tobytes()
    return base64.b64encode(encoder.id.encode() + b"\n" + digest + sketch).decode("ascii")


def id_of(print_: str) -> str:
    """The encoder's id in a fingerprint; "unreadable" for what is none."""
    found = _parse(print_)
    return "unreadable" if found is None else found[0]


def same_encoder(ours: str, theirs: str) -> bool:
    """Compare fingerprints: bit by bit without weights; else the same provider, and near for every probe."""
    mine, other = _parse(ours), _parse(theirs)
    if mine is None or other is None:
        return False
    kind = mine[0].split(" ")[0]
    if kind in EXACT:
        return mine[:2] == other[:2]
    return kind == other[0].split(" ")[0] and alike(mine[2], other[2])


def probe_vectors(encoder: Encoder) -> NDArray[np.float64]:
    """The sketch of each probe, as the encoder answers now."""
    return _sketch(_tokens(encoder))


def alike(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """The cosine of every row is above NEAR; of rows of zeros only with zeros."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return False
    sizes = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return bool(((a * b).sum(1) > NEAR * sizes).all())


def _tokens(encoder: Encoder) -> NDArray[np.float32]:
    asked = encoder.fresh() if hasattr(encoder, "fresh") else encoder
    charts, targets, available = zip(*PROBES, strict=True)
    tokens_BLD, _ = asked.encode(charts, targets, available)
    return np.asarray(tokens_BLD, dtype=np.float32)


def _sketch(tokens: NDArray[np.float32]) -> NDArray[np.float64]:
    flat = tokens.reshape(len(tokens), -1).astype(np.float64)
    turn = np.array([signs(flat.shape[1], "probes", k) for k in range(NUMBERS)])
    sketch: NDArray[np.float64] = flat @ turn.T / np.sqrt(flat.shape[1])
    return sketch


def _parse(print_: str) -> tuple[str, bytes, NDArray[np.float64]] | None:
    try:
        head, _, rest = base64.b64decode(print_, validate=True).partition(b"\n")
        numbers = np.frombuffer(rest[32:], "<f2").astype(np.float64)
        return head.decode("ascii"), rest[:32], numbers.reshape(len(PROBES), NUMBERS)
    except ValueError:
        return None
