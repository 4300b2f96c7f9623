"""Small BIDS worlds on disk: blobs in a head, some modalities never acquired, names that a leak test can look for."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from shared.data.cohort import prepare
from shared.data.modalities import bids_path
from shared.data.volumes import Grid, write

SITES_MMSE = 27.125  # a value that no weight has by chance, twice in a row
AFFINE = np.diag([6.0, 6.0, 6.0, 1.0])  # of the tiny sizes


def subject_volumes(seed: int, modalities: Sequence[str], edge: int = 16) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, edge)] * 3, indexing="ij")
    head = z**2 + y**2 + x**2 < 0.8
    inner = (z - 0.1 * rng.normal()) ** 2 + (y - 0.2 * rng.normal()) ** 2 + x**2 < 0.3
    levels = {m: (1.0 + i, 2.0 - 0.5 * i + 0.2 * rng.normal()) for i, m in enumerate(["T1", "T1CE", "T2", "FLAIR"])}
    levels["TOF"] = (0.4, 3.0)
    return {
        m: (np.where(head, np.where(inner, *levels[m]), 0) + head * 0.05 * rng.random(head.shape)) * 400 + head
        for m in modalities
    }


def write_cohort(
    folder: Path,
    name: str,
    patterns: Sequence[Sequence[str]],
    *,
    seed: int = 0,
    edge: int = 16,
    mmse: float = SITES_MMSE,
) -> Path:
    """One subject per pattern; ids and clinical values are unusual on purpose."""
    folder.mkdir(parents=True)
    (folder / "dataset_description.json").write_text('{"Name": "test", "BIDSVersion": "1.9.0"}')
    rows = ["participant_id\tage\tsex\tmmse"]
    for i, pattern in enumerate(patterns):
        subject = f"{name}secret{i:03d}"
        rows.append(f"sub-{subject}\t{61.625 + i}\tF\t{mmse}")
        for modality, data in subject_volumes(seed * 1000 + i, pattern, edge).items():
            path = folder / bids_path(subject, modality)
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, data.astype(np.float32), AFFINE, dtype=np.float32)
    (folder / "participants.tsv").write_text("\n".join(rows) + "\n")
    return folder


def prepare_here(bids: Path, edge: int = 16) -> None:
    """In this process: for a few small subjects, new ones would take longer to start."""
    prepare(bids, Grid(height=edge, width=edge), workers=0)


def write_world(root: Path, sites: Mapping[str, Sequence[Sequence[str]]], *, edge: int = 16) -> Path:
    for i, (site, patterns) in enumerate(sites.items()):
        prepare_here(write_cohort(root / "sites" / site, site, patterns, seed=i, edge=edge), edge)
    return root
