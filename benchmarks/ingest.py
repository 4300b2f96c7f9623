"""How fast an ingest is and how much memory it takes, and whether anything breaks it.

    python benchmarks/ingest.py --studies 3            phantom studies as DICOM, ingested: subjects per hour, memory
    python benchmarks/ingest.py --fuzz 600 --seed 7    folders spoiled at random for 600 s; the first find ends it

The studies have four series each (T1, T1CE, T2, FLAIR) of `--matrix` pixels and `--slices` slices: 256 and 192 make
100 MB per study. Memory is the peak of the summed proportional set size of the whole process tree.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]
MODALITIES = ("T1", "T1CE", "T2", "FLAIR")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=3)
    parser.add_argument("--matrix", type=int, default=256)
    parser.add_argument("--slices", type=int, default=192)
    parser.add_argument("--phantom", type=int, default=96, help="voxels along an edge, before they are refined")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="make or find the studies here, and leave all of it")
    parser.add_argument("--fuzz", type=float, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.fuzz is not None:
        fuzz(options.fuzz, options.seed)
        return
    scratch = options.keep or Path(tempfile.mkdtemp(prefix="lacuna-ingest-"))
    try:
        measure_ingest(scratch, options)
    finally:
        if options.keep is None:
            shutil.rmtree(scratch)


def measure_ingest(scratch: Path, options: argparse.Namespace) -> None:
    from simulation import measure

    source = scratch / "source"
    started = time.monotonic()
    for number in range(options.studies):
        if not (source / f"{number:04d}").exists():
            write_study(source, number, options)
    size = sum(path.stat().st_size for path in source.rglob("*.dcm"))
    made = time.monotonic() - started
    print(f"{options.studies} studies, {size / 1e9:.2f} GB of DICOM, made in {made:.0f} s", flush=True)
    for name in ("cohort", "state"):
        shutil.rmtree(scratch / name, ignore_errors=True)
    command = [
        sys.executable,
        "-m",
        "client.cli",
        "ingest",
        str(source),
        "--out",
        str(scratch / "cohort"),
        "--state",
        str(scratch / "state"),
        "--workers",
        str(options.workers),
    ]
    for what in ("first", "again"):
        row = measure(command)
        cohort = scratch / "cohort" / "cohort.json"
        subjects = len(json.loads(cohort.read_text())["subjects"]) if cohort.exists() else 0
        print(
            f"{what}: {subjects} of {options.studies} subjects in {row['wall']:.0f} s, "
            f"{3600 * options.studies / row['wall']:.0f} per hour, CPU {row['cpu']:.0f} s, peak {row['mb']:.0f} MB, "
            f"exit {row['exit']}",
            flush=True,
        )


def write_study(source: Path, number: int, options: argparse.Namespace, modalities: Sequence[str] = MODALITIES) -> None:
    """One phantom patient as a scanner would send it; whole or not at all."""
    from support.dicom import dicoms  # type: ignore[import-not-found]

    from shared.data.phantom import anatomy
    from shared.data.phantom.brains import grow
    from shared.data.phantom.fields import Cube
    from shared.data.phantom.signals import draw_scanner, render

    cube = Cube(size=options.phantom, fov_mm=192.0)
    (brain, *_) = anatomy.prepare(None, source.parent / "anatomy")
    phantom = grow("glioma", 1000 + number, anatomy.load(brain), cube)
    scanner = draw_scanner(number % 5, "benchmark")
    partial = source / f".{number:04d}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    shape = (options.slices, options.matrix, options.matrix)
    spacing = tuple(192.0 / n for n in shape)
    for place, modality in enumerate(modalities, start=1):
        image = render(phantom, modality, scanner) * 800
        factors = [n / options.phantom for n in shape]
        fine, share = (ndimage.zoom(one, factors, order=1) for one in (image, (image > 0).astype(np.float32)))
        fine = np.where(share >= 0.5, fine / np.maximum(share, 0.5), 0)  # its edge as bright as the brain
        data = np.clip(fine[:, ::-1, ::-1], 0, 4095).astype(np.uint16)  # rows to the back, columns to the left

        def move(_: int, dataset: Any, by: float = 1.5 * place) -> None:
            x, y, z = dataset.ImagePositionPatient
            dataset.ImagePositionPatient = [x + by, y - by, z + by]  # no two series lie alike

        dicoms.write_series(
            partial / f"{place}",
            modality,
            patient=f"BENCH-{number:04d}",
            study=f"study {number}",
            number=place,
            data=data,
            spacing=(spacing[0], spacing[1], spacing[2]),
            change=move,
        )
    partial.rename(source / f"{number:04d}")


def fuzz(seconds: float, seed: int) -> None:
    """Chunks of examples, each with a seed of its own, until the time is over; a find ends it with its seed."""
    import hypothesis
    from support.dicom.mutations import check, mutations  # type: ignore[import-not-found]

    ends, chunk, examples = time.monotonic() + seconds, 0, 0
    while time.monotonic() < ends:
        this = seed * 1_000_000 + chunk

        @hypothesis.seed(this)
        @hypothesis.settings(
            max_examples=50, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
        )
        @hypothesis.given(mutations)
        def one(changes: Any) -> None:
            nonlocal examples
            if time.monotonic() < ends:
                check(changes)
                examples += 1

        try:
            one()
        except BaseException:
            print(f"broken after {examples} examples, in the chunk of seed {this}", flush=True)
            raise
        chunk += 1
    print(f"{examples} spoiled folders in {seconds:.0f} s, seed {seed}: none breaks an ingest")


if __name__ == "__main__":
    main()
