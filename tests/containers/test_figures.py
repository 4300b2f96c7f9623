"""What it takes: sizes of the images, seconds to start, peak memory of each process for a model of 116 MB.

Printed as a table, for docs/log.md; what is asserted is only that each figure was really taken.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from containers.deployed import VOXELS, Deployed
from containers.engine import IMAGES

BIG = (  # a network of the paper's width on small pictures: its weights are what is measured
    "method=ddpm",
    "size=paper",
    "training=ddpm_tiny",
    "seed=3",
    "grid.height=32",
    "grid.width=32",
    *VOXELS,
    "training.diffusion.rounds=2",
    "training.diffusion.steps=1",
    "training.diffusion.batch=1",
    "run=big",
)
PARTS = {  # words of a command line, and which process that is
    "server.superlink.process": "SuperLink",
    "flower-superexec": "executor",
    "flwr-serverapp": "ServerApp",
    "mlflow server": "MLflow",
    "postgres": "PostgreSQL",
    "nginx": "proxy",
    "client.node.supernode node": "a site's SuperNode",
    "client.node.supernode executor": "a site's executor",
    "flwr-clientapp": "a site's worker",
    "lacuna-site run": "a site's supervisor",
    "lacuna train": "coordinator",
}
CGROUP = Path("/sys/fs/cgroup/memory/docker")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def figures() -> Iterator[list[str]]:
    lines: list[str] = []
    yield lines
    print("\n".join(["", *lines]))


def test_sizes_of_the_images(deployed: Deployed, figures: list[str]) -> None:
    for name in IMAGES:
        size = int(deployed.engine.docker("inspect", "--format", "{{.Size}}", deployed.engine.image(name)))
        figures.append(f"image {name:<10} {size / 1e6:6.0f} MB")
        assert 0 < size < 4e9


def test_seconds_to_start(deployed: Deployed, figures: list[str]) -> None:
    for what, seconds in deployed.started.items():
        figures.append(f"start of {what:<34} {seconds:5.0f} s")
        assert seconds > 0


@pytest.mark.skipif(not CGROUP.is_dir(), reason="SKIPPED: cgroups of another kind; the figures are of version 1")
def test_memory_of_each_process_for_a_model_of_116_mb(deployed: Deployed, figures: list[str]) -> None:
    with sampled(deployed) as idle:
        pass
    with sampled(deployed) as busy:
        deployed.coordinator(
            "lacuna", "train", *BIG, "tracking=none", "--wait", "120", "federation.deadline=1800", timeout=1800
        )
    megabytes = (deployed.runs / "big" / "final" / "weights.safetensors").stat().st_size / 1e6
    assert megabytes > 100
    figures.append(f"peak memory with weights of {megabytes:.0f} MB, two rounds, three sites (before them), in MB:")
    for part in dict.fromkeys(PARTS.values()):
        before = f"({idle[part]:.0f})" if part in idle else ""
        figures.append(f"  {part:<22} {busy.get(part, float('nan')):6.0f} {before}")
    assert busy["ServerApp"] > megabytes
    assert busy["a site's worker"] > megabytes


@contextmanager
def sampled(deployed: Deployed) -> Iterator[dict[str, float]]:
    """The highest resident memory that any process of each kind had until the block ends, or has ever had."""
    peak: dict[str, float] = {}
    over = threading.Event()

    def look() -> None:
        for procs in CGROUP.glob("*/cgroup.procs"):
            for pid in procs.read_text().split():
                with suppress(OSError, StopIteration):
                    words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                    kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
                    part = next(part for word, part in PARTS.items() if word in words)
                    peak[part] = max(peak.get(part, 0.0), kilobytes / 1e3)

    def watch() -> None:
        while not over.wait(0.5):
            look()

    look()
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()
