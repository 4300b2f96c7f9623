"""Three sites in containers hide their updates from a coordinator that is killed on the way: the simulation's bits."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from containers.conftest import Scene
from containers.deployed import PLAN, SITES, Deployed, wait
from safetensors.torch import load_file

from server.rounds.secure.circles import FILE

TRAIN = (
    *PLAN,
    "method.pretext=false",
    "method.anchor=none",
    "training.translate.rounds=2",
    "privacy=secure",
    "federation.deadline=120",
)


@pytest.fixture(scope="module")
def simulated(scene: Scene) -> Path:
    scene.deployed.verb(
        "server.cli", "simulate", *TRAIN, "world=world", "runs=simulated", "run=hidden", "tracking=none", "device=cpu"
    )
    return scene.deployed.folder / "simulated" / "hidden"


def test_killed_between_updates_and_their_sum_a_run_ends_in_the_bits_of_a_simulation(
    scene: Scene, simulated: Path
) -> None:
    """The ServerApp is killed (-9) as soon as it has written down which sums it asks for, in a round of training."""
    deployed = scene.deployed
    command = deployed.coordinator_command("lacuna", "train", *TRAIN, "run=hidden", "--wait", "180")
    folder = deployed.runs / "hidden"
    with (deployed.folder / "hidden.log").open("wb") as log:
        follower = subprocess.Popen(
            command, env=deployed.engine.environment | dict(deployed.settings()), stdout=log, stderr=subprocess.STDOUT
        )
        killed = False

        def step() -> bool:
            nonlocal killed
            if not killed and asked(folder) == "translate":
                for pid in deployed.find(deployed.container("executor"), "flwr-serverapp"):
                    os.kill(pid, signal.SIGKILL)
                    killed = True
            return follower.poll() is not None

        wait(step, 900, "the run's end")
    assert follower.returncode == 0, (deployed.folder / "hidden.log").read_text()[-4000:] + deployed.everything()
    assert killed
    ours, theirs = (load_file(one / "final" / "weights.safetensors") for one in (folder, simulated))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].numpy().tobytes() == theirs[name].numpy().tobytes() for name in theirs)
    assert not (folder / FILE).exists()


def asked(folder: Path) -> str:
    try:
        return str(json.loads((folder / FILE).read_text())["phase"])
    except (OSError, ValueError):
        return ""


def test_no_site_told_its_loss_or_counts(scene: Scene) -> None:
    for done in rounds_of(scene.deployed):
        assert {site["loss"] for site in done["sites"].values()} == {None}  # type: ignore[attr-defined]
        assert set(done["sites"]) == set(SITES)  # type: ignore[call-overload]


def rounds_of(deployed: Deployed) -> list[dict[str, object]]:
    return deployed.rounds("hidden")
