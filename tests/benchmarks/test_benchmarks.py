"""Every benchmark at its smallest: so that none of them rots between the days on which somebody reads its figures."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from shared.data.phantom.phantom import PhantomOptions, write_world

pytestmark = pytest.mark.slow  # left out of `make fast`

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PARTS = {"noop_lacuna", "private_rounds"}  # of simulation.py and privacy.py
TINY = (
    "size=tiny federation.min_cell=1 method.depth=16 grid.height=16 grid.width=16 grid.spacing_mm=12 grid.slice_mm=12"
)
SHORT = [f"training.{phase}.{key}=1" for phase in ("pretext", "translate") for key in ("rounds", "steps")]
SMALLEST = {
    "simulation": ("--tensors 1 --rounds 1 --sites 2", ("lacuna", "flower-ray")),
    # of 60 MB; with one that small, what is no model's counts for more than it would
    "rounds": ("--tensors 60 --rounds 2 --sites 4", ("serverapp", "worker", "simulation")),
    "bytes": (
        "out --subjects 2 --voxels 16 --ways fp32/fp32 int4-/int8 --override federation.min_cell=1 "
        + " ".join([*TINY.split()[3:], *SHORT]),
        ("int4-/int8",),
    ),
    "secure": ("--tensors 1 --sites 4 --words 32 --drop 0 0.25", ("the same",)),
    "mip": ("--slices 8 --height 16 --width 16", ("scan",)),
    "privacy": ("--methods amm_diff --size tiny --repeats 1 --steps 1 --out privacy.json", ("plain",)),
    "samplers": ("--time-only --size tiny --slices 1 --device cpu --only told", ("told",)),
    "ingest": ("--studies 1 --matrix 64 --slices 48 --phantom 48 --workers 1", ("1 of 1 subjects",)),
    "privacy_quality": (
        "--out . --size tiny --subjects 6 --heldout 1 --edge 16 --public 4 --prior-rounds 1 --rounds 1 --steps 1"
        " --rate 0.5 --epsilon inf --epsilon 8 --start pretrained --draws 1 --jobs 1",
        ("trained",),
    ),
    "likeness": ("--made sites/made --real sites/real --spacing 12 --pixels 16", ("AUC", "FLAIR")),
    "public_prior": (
        "out --subjects 2 --apart 1 1 --voxels 16 --size tiny "
        + " ".join(f"--override {one}" for one in (*TINY.split()[1:], *SHORT) if "depth" not in one),
        ("MB",),
    ),
    "chart": (
        "out --subjects 2 --heldout 1 --edge 16 --clinic 7 --seed 7 --sampler mean"
        f" --classifier 'rates=[0.5] generations=1 size=tiny steps=2 test=0.34 val=0.34' {TINY}",
        ("evaluate",),
    ),
}


def test_every_benchmark_is_run_here() -> None:
    assert {path.stem for path in BENCHMARKS.glob("*.py")} - PARTS == set(SMALLEST)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_at_its_smallest_it_ends_well_and_says_its_figures(name: str, tmp_path: Path) -> None:
    words, says = SMALLEST[name]
    if name == "likeness":
        made = PhantomOptions(family="everyone", subjects=2, heldout=0, coordinator=0, sites=("made", "real"), size=16)
        write_world(made, tmp_path, workers=1)
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / f"{name}.py"), *shlex.split(words)],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for word in says:
        assert word in done.stdout, done.stdout
    assert "Traceback" not in done.stderr
    if name == "rounds":
        a_round_takes_three_models_of_memory_at_the_coordinator_and_four_at_a_site(done.stdout)


def a_round_takes_three_models_of_memory_at_the_coordinator_and_four_at_a_site(said: str) -> None:
    models = {words[0]: float(words[3]) for line in said.splitlines()[2:] if (words := line.split())}
    assert models["serverapp"] <= 3
    assert models["worker"] <= 4
