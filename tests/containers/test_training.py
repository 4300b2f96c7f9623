"""Three rounds over three sites in containers give the bits that `lacuna simulate` gives on one machine."""

from pathlib import Path

import pytest
from containers.conftest import Scene
from containers.deployed import PLAN, SITES, Deployed, ok
from safetensors import safe_open
from safetensors.torch import load_file

ROUNDS = 3
TRAIN = (*PLAN, f"training.translate.rounds={ROUNDS}", "run=first")


@pytest.fixture(scope="module")
def trained(scene: Scene) -> tuple[Path, Path]:
    """The run folder of the deployed federation, and of the simulation."""
    deployed = scene.deployed
    try:
        said = deployed.coordinator("lacuna", "train", *TRAIN, "tracking.uri=http://mlflow:5000", "--wait", "180")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{deployed.everything()}") from None
    assert said.endswith("final")
    deployed.verb("server.cli", "simulate", *TRAIN, "world=world", "runs=simulated", "tracking=none", "device=cpu")
    return deployed.runs / "first", deployed.folder / "simulated" / "first"


def test_the_released_weights_are_the_same_bits(trained: tuple[Path, Path]) -> None:
    ours, theirs = (load_file(folder / "final" / "weights.safetensors") for folder in trained)
    assert ours.keys() == theirs.keys()
    assert all(ours[name].numpy().tobytes() == theirs[name].numpy().tobytes() for name in theirs)


def test_weights_and_their_average_are_the_same_bits_in_every_checkpoint(trained: tuple[Path, Path]) -> None:
    ours, theirs = ({p.parent.name: tensors(p) for p in f.glob("checkpoints/*/tensors.safetensors")} for f in trained)
    assert any(name.startswith("ema/") for found in theirs.values() for name in found)
    assert ours == theirs


def tensors(path: Path) -> dict[str, bytes]:
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name).tobytes() for name in sorted(file.keys())}


def test_every_site_took_part_in_every_round(deployed: Deployed, trained: tuple[Path, Path]) -> None:
    rounds = deployed.rounds("first")
    assert [r["phase"] for r in rounds].count("translate") == ROUNDS
    assert all(list(ok(r)) == sorted(SITES) for r in rounds)


def test_the_sites_keep_their_ledgers_on_their_own_disks(deployed: Deployed, trained: tuple[Path, Path]) -> None:
    for site in SITES:
        assert (deployed.folder / site / "ledger.jsonl").stat().st_size > 0
    assert not (deployed.runs / "first" / "sites").exists()


def test_mlflow_has_the_run_in_postgresql_and_the_model_among_its_artifacts(
    deployed: Deployed, trained: tuple[Path, Path]
) -> None:
    query = "select count(*) from metrics where key = 'loss'"
    printed = deployed.engine.docker(
        "exec",
        deployed.container("postgres"),
        "psql",
        "--host=/tmp",
        "--username=mlflow",
        "--dbname=mlflow",
        "--tuples-only",
        "--command",
        query,
    )
    assert int(printed) >= ROUNDS
    found = deployed.engine.docker(
        "exec", deployed.container("mlflow"), "find", "/srv/artifacts", "-name", "model.json"
    )
    assert len(found.splitlines()) == 1
