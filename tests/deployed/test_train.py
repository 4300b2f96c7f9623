"""`lacuna train` and its sisters on a real SuperLink: TLS, node keys, an executor, two sites, a process for each app.

What takes Flower minutes to notice (a SuperLink killed, a worker killed) is in test_faults.py.
"""

import json
from collections.abc import Iterator

import pytest
from support.flower.deployed import PLAN, Scene, meanwhile, staged
from support.rounds.federation import weights_digest

from server.journal import chronicle
from server.journal.chronicle import Tail
from server.journal.events import RoundFinished
from server.superlink import submission

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with staged(tmp_path_factory.mktemp("deployed")) as made:
        yield made


class TestTrain:
    def test_gives_the_bits_of_a_simulation(self, scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
        assert scene.train("run=first") == 0
        out, err = capsys.readouterr()
        assert out.strip() == str(scene.runs / "first" / "final")
        assert "online: east, north" in err
        assert "translate 3/3" in err  # the live view, from another process
        assert weights_digest(scene.runs / "first") == scene.digest

    def test_a_killed_server_app_is_submitted_again_and_ends_in_the_same_bits(
        self, scene: Scene, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def kill() -> None:
            scene.deployed.kill(*scene.server_apps())

        with meanwhile(lambda: scene.rounds("killed") >= 2, kill):
            assert scene.train("run=killed") == 0
        assert "its ServerApp was killed" in capsys.readouterr().err
        sent = submission.find(scene.runs / "killed")
        assert sent is not None
        assert sent.times == 2
        assert weights_digest(scene.runs / "killed") == scene.digest

    def test_so_it_is_when_the_executor_dies_and_comes_back(self, scene: Scene) -> None:
        def kill() -> None:
            scene.deployed.kill(scene.deployed.executor)
            scene.deployed.start_executor()

        with meanwhile(lambda: scene.rounds("orphan") >= 2, kill):
            assert scene.train("run=orphan") == 0
        assert weights_digest(scene.runs / "orphan") == scene.digest

    def test_stop_ends_it_whole_and_resume_goes_on_to_the_same_bits(
        self, scene: Scene, capsys: pytest.CaptureFixture[str]
    ) -> None:
        runs = ("--runs", str(scene.runs))
        stopped: list[int] = []
        with meanwhile(
            lambda: scene.rounds("halted") >= 2, lambda: stopped.append(scene.lacuna("stop", "halted", *runs))
        ):
            assert scene.train("run=halted") == 5
        assert stopped == [0]
        out, err = capsys.readouterr()
        assert "halted: stopped after" in out
        assert "RunFailed: stopped after" in err  # whoever followed it is told as well
        assert not chronicle.at_work(scene.runs / "halted")
        assert scene.lacuna("status", "halted", "--json", *runs) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["standing"]["state"], told["standing"]["round"]) == ("stopped", scene.last_round("halted"))
        assert all(site["online"] for site in told["sites"].values())
        assert scene.lacuna("stop", "halted", *runs) == 0
        assert "has ended already: stopped" in capsys.readouterr().out
        assert scene.lacuna("resume", "halted", *runs, *scene.there) == 0
        assert weights_digest(scene.runs / "halted") == scene.digest

    def test_a_run_that_fails_gives_its_own_exit_code_and_is_not_submitted_again(
        self, scene: Scene, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert scene.train("run=refused", "federation.limits.norm=1e-9") == 5
        assert "over the limit 1e-09" in capsys.readouterr().err
        assert scene.train("run=unknown", "federation.targets=[T3]") == 2
        for run in ("refused", "unknown"):
            sent = submission.find(scene.runs / run)
            assert sent is not None
            assert sent.times == 1

    def test_what_cannot_start_leaves_nothing_behind(self, scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
        for words, code, said in (
            ((*PLAN, "federation.min_sites=3"), 5, "federation.min_sites=3: 2 of 2 sites are online"),
            ((*PLAN, "federation.sites=[north,west]"), 2, "federation.sites=west"),
            ((*PLAN, "federation.min_holders=1"), 2, "federation.min_holders=1: the federation agreed on 2"),
            ((*PLAN, "federation.alone=true"), 2, "federation.alone=true"),
            (("method=pix2pix", "size=tiny"), 2, "method=pix2pix: the federation agreed on amm_diff"),
            ((*PLAN, "--superlink", "127.0.0.1:1"), 2, "superlink=127.0.0.1:1: can't be reached"),
        ):
            assert scene.lacuna("train", *scene.there, f"runs={scene.runs}", "run=never", *words) == code
            assert said in capsys.readouterr().err
        assert not (scene.runs / "never").exists()

    def test_detached_it_goes_on_alone_and_can_be_followed(
        self, scene: Scene, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert scene.train("run=alone", "--detach") == 0
        assert capsys.readouterr().out.strip() == "alone"
        assert scene.lacuna("follow", "alone", "--runs", str(scene.runs)) == 0
        assert weights_digest(scene.runs / "alone") == scene.digest
        assert scene.lacuna("follow", "alone", "--runs", str(scene.runs)) == 0  # of one that is over, the end

    def test_status_tells_of_simulations_too(self, scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
        assert scene.lacuna("status", "--runs", str(scene.runs), "--json") == 0
        told = {one["run"]: one for one in json.loads(capsys.readouterr().out)}
        assert (told["here"]["state"], told["here"]["where"]) == ("finished", "here")
        assert scene.lacuna("status", "here", "--runs", str(scene.runs)) == 0
        assert "finished" in capsys.readouterr().out
        assert scene.lacuna("stop", "here", "--runs", str(scene.runs)) == 2
        assert scene.lacuna("resume", "here", "--runs", str(scene.runs), *scene.there) == 2
        assert "lacuna simulate resume=here" in capsys.readouterr().err
        assert any(isinstance(event, RoundFinished) for event in Tail(scene.runs / "here").new())
