"""kill -9 of the SuperLink and of a site's worker, without containers: the run goes on by itself to the same bits."""

from collections.abc import Iterator

import pytest
from support.flower.deployed import SITES, Scene, meanwhile, staged
from support.rounds.federation import weights_digest

from server.journal import facts
from server.superlink import submission

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with staged(tmp_path_factory.mktemp("deployed")) as made:
        yield made


def times(scene: Scene, run: str) -> int:
    sent = submission.find(scene.runs / run)
    assert sent is not None
    return sent.times


def test_a_superlink_that_is_killed_and_comes_back_on_its_database_costs_no_round(scene: Scene) -> None:
    def kill() -> None:
        scene.deployed.kill(scene.deployed.superlink)
        scene.deployed.start_superlink()

    with meanwhile(lambda: scene.rounds("linkless") >= 2, kill):
        assert scene.train("run=linkless") == 0
    assert times(scene, "linkless") == 1  # its ServerApp lived through it
    assert weights_digest(scene.runs / "linkless") == scene.digest


def test_a_worker_that_is_killed_is_asked_again(scene: Scene) -> None:
    def worker() -> list[int]:
        return scene.deployed.children(scene.deployed.nodes["north"][1])

    with meanwhile(lambda: scene.rounds("worker") >= 2 and bool(worker()), lambda: scene.deployed.kill(*worker())):
        assert scene.train("run=worker") == 0
    assert weights_digest(scene.runs / "worker") == scene.digest
    done = facts.read(scene.runs / "worker" / "rounds.jsonl")
    assert all(one.sites[site].status == "ok" for one in done for site in SITES)
