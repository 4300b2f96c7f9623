"""One long run over real containers, and what can happen to it: after each fault all three sites are back unaided.

Each test breaks one thing and waits until a later round has every site's update again. What it cost (seconds until
then, rounds that went on without a site, submissions) is printed at the end as a table.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from containers.conftest import Scene
from containers.deployed import PLAN, SITES, Deployed, ok, wait

RUN, ROUNDS = "faults", 1900  # more than it has time for: it is stopped at the end
SLOW = 30.0  # seconds for a round on a machine that has nothing to tell
LOGGED = """
select max(rounds) from (
    select count(distinct step) as rounds from metrics join runs using (run_uuid)
    where key = 'seconds' and name = 'translate' group by run_uuid
) as each_run
"""  # of the run that has most of them


@dataclass(kw_only=True)
class Campaign:
    deployed: Deployed
    deadline: float  # of a round: a site that is paused for longer misses it
    follower: "subprocess.Popen[bytes]"
    table: list[tuple[str, float, int, int, str]] = field(default_factory=list)

    @property
    def patience(self) -> float:
        """A vanished site's key is held for a minute, and a start takes its time where others work too."""
        return 300 + 4 * self.deadline

    def rounds(self) -> list[dict[str, object]]:
        return [r for r in self.deployed.rounds(RUN) if r["phase"] == "translate"]

    def whole(self, after: int) -> bool:
        """Has a round begun after that many were there, and taken in every site's update?"""
        return any(list(ok(r)) == sorted(SITES) for r in self.rounds()[after:])

    def submissions(self) -> int:
        return int(json.loads((self.deployed.runs / RUN / "submission.json").read_text())["times"])

    def working(self) -> bool:
        return self.follower.poll() is None

    def survive(self, fault: str, broken: Callable[[], None], *, healed: Callable[[], None] | None = None) -> None:
        """Break it, heal it if a hand is needed for that, and wait until a round that began later is whole."""
        before, times = len(self.rounds()), self.submissions()
        began = time.monotonic()
        broken()
        if healed is not None:
            healed()
        # the round that was under way when it broke may still be whole: the one after it counts
        wait(
            lambda: self.whole(before + 1) or not self.working(),
            self.patience,
            f"{fault}: all sites in one round again",
        )
        assert self.working(), f"{fault}: the run ended\n{self.log()}"
        seconds = time.monotonic() - began
        since = self.rounds()[before:]
        without = sum(list(ok(r)) != sorted(SITES) for r in since)
        why = sorted({str(f["reason"])[:60] for r in since for f in r["sites"].values() if f["status"] != "ok"})  # type: ignore[attr-defined]
        self.table.append((fault, seconds, without, self.submissions() - times, "; ".join(why)))

    def log(self) -> str:
        return (self.deployed.folder / "follower.log").read_text()[-4000:] + self.deployed.everything()


@pytest.fixture(scope="module")
def campaign(scene: Scene) -> Iterator[Campaign]:
    deployed = scene.deployed
    deployed.compose("ps")  # writes runs.yaml
    if (deployed.runs / RUN).exists():  # of a scene that was used before
        deployed.coordinator("lacuna", "stop", RUN)
        shutil.rmtree(deployed.runs / RUN)
    slowest = max((float(str(r["seconds"])) for r in deployed.rounds("first")), default=SLOW)
    deadline = max(60.0, 3.5 * slowest)
    command = deployed.coordinator_command(
        "lacuna",
        "train",
        *PLAN,
        "method.pretext=false",
        "method.anchor=none",
        f"training.translate.rounds={ROUNDS}",
        "training.translate.steps=1",
        "training.translate.batch=1",
        f"run={RUN}",
        "--wait",
        "180",
        f"federation.deadline={deadline:.0f}",
        "tracking.uri=http://mlflow:5000",
    )
    with (deployed.folder / "follower.log").open("wb") as log:
        follower = subprocess.Popen(
            command, env=deployed.engine.environment | dict(deployed.settings()), stdout=log, stderr=subprocess.STDOUT
        )
    campaign = Campaign(deployed=deployed, deadline=deadline, follower=follower)
    try:
        wait(lambda: campaign.whole(1) or not campaign.working(), campaign.patience, "the first rounds")
        assert campaign.working(), campaign.log()
        yield campaign
    finally:
        campaign.follower.terminate()
        campaign.follower.wait(60)
        rows = [f"{fault:<40} {s:>7.0f} {n:>7} {t:>7}  {why}" for fault, s, n, t, why in campaign.table]
        print("\n".join(["", f"{'fault':<40} {'seconds':>7} {'without':>7} {'resent':>7}  said", *rows]))


def kill(deployed: Deployed, container: str, *words: str) -> None:
    """kill -9 of the processes in a container whose command line has these words, as soon as there is one."""
    found: list[int] = []

    def seen() -> bool:
        found[:] = deployed.find(container, *words)
        return bool(found)

    wait(seen, 120, f"{container} runs {' '.join(words)}")
    for pid in found:
        os.kill(pid, signal.SIGKILL)


def test_a_sites_worker_is_killed(campaign: Campaign) -> None:
    d = campaign.deployed

    def fresh() -> None:
        """Not one that has sent its update and is about to end."""
        old = set(d.find(d.site("north"), "flwr-clientapp"))
        new: set[int] = set()

        def begun() -> bool:
            new.update(set(d.find(d.site("north"), "/flwr-clientapp")) - old)
            return bool(new)

        wait(begun, 240, "a new worker")
        for pid in new:
            os.kill(pid, signal.SIGKILL)

    campaign.survive(
        "kill -9 of a site's worker", fresh
    )  # the node starts another after 90 s: in time, or a round late


@pytest.mark.slow
def test_a_sites_node_is_killed(campaign: Campaign) -> None:
    d = campaign.deployed
    campaign.survive("kill -9 of a SuperNode", lambda: kill(d, d.site("east"), "client.node.supernode", " node "))


@pytest.mark.slow
def test_a_sites_container_is_killed_whole(campaign: Campaign) -> None:
    d = campaign.deployed
    campaign.survive("kill -9 of a site's first process", lambda: kill(d, d.site("south"), "lacuna-site", "run"))


def test_the_serverapp_is_killed(campaign: Campaign) -> None:
    d = campaign.deployed
    campaign.survive("kill -9 of the ServerApp", lambda: kill(d, d.container("executor"), "flwr-serverapp"))


@pytest.mark.slow
def test_the_executor_is_killed(campaign: Campaign) -> None:
    d = campaign.deployed
    campaign.survive("kill -9 of the executor", lambda: kill(d, d.container("executor"), "flower-superexec"))


def test_the_superlink_is_killed(campaign: Campaign) -> None:
    d = campaign.deployed
    campaign.survive("kill -9 of the SuperLink", lambda: kill(d, d.container("superlink"), "server.superlink.process"))


@pytest.mark.slow
def test_the_superlink_and_its_database_are_restarted(campaign: Campaign) -> None:
    d = campaign.deployed
    campaign.survive("restart of the SuperLink", lambda: d.compose("restart", "superlink") and None)


@pytest.mark.slow
def test_a_site_is_paused_past_the_deadline(campaign: Campaign) -> None:
    d = campaign.deployed

    def pause() -> None:
        d.engine.docker("pause", d.site("north"))
        time.sleep(campaign.deadline + 20)

    campaign.survive(
        "pause of a site past the deadline", pause, healed=lambda: d.engine.docker("unpause", d.site("north")) and None
    )


@pytest.mark.slow
def test_a_sites_network_is_cut_and_heals(campaign: Campaign) -> None:
    d = campaign.deployed

    def cut() -> None:
        d.engine.docker("network", "disconnect", d.network("east"), d.container("proxy"))
        time.sleep(60)

    campaign.survive("network of a site cut for 60 s", cut, healed=lambda: d.plug_in("east"))


@pytest.mark.slow
def test_the_proxy_is_killed(campaign: Campaign) -> None:
    d = campaign.deployed
    campaign.survive("kill -9 of the proxy", lambda: kill(d, d.container("proxy"), "nginx: master"))


@pytest.mark.slow
def test_postgresql_is_down_for_a_minute(campaign: Campaign) -> None:
    """The run goes on meanwhile, and MLflow has every round in the end."""
    d = campaign.deployed
    d.compose("stop", "postgres")
    began, before = time.monotonic(), len(campaign.rounds())
    wait(
        lambda: time.monotonic() > began + 60 and len(campaign.rounds()) > before + 1,
        campaign.patience,
        "rounds without MLflow",
    )
    d.compose("start", "postgres")
    campaign.survive("PostgreSQL down for a minute", lambda: None)

    def logged() -> bool:
        printed = d.engine.docker(
            "exec",
            d.container("postgres"),
            "psql",
            "--host=/tmp",
            "--username=mlflow",
            "--dbname=mlflow",
            "--tuples-only",
            "--command",
            LOGGED,
            check=False,
        )
        return printed.strip().isdigit() and int(printed) >= before + 2

    wait(logged, campaign.patience, "MLflow has caught up")


def fill(path: Path) -> None:
    with suppress(OSError), path.open("wb", buffering=0) as file:
        for _ in range(2**20):
            file.write(bytes(2**16))


def test_the_servers_disk_is_full_during_a_checkpoint(campaign: Campaign) -> None:
    """What was written stays whole; with room again it goes on, by itself or by one `resume`."""
    d = campaign.deployed
    usage = shutil.disk_usage(d.runs)
    assert usage.total < 2**31, "a small disk of its own"
    ballast = d.runs / "ballast"
    before = len(campaign.rounds())
    began = time.monotonic()
    fill(ballast)
    wait(lambda: not campaign.working() or campaign.submissions() > 9, campaign.patience, "the run has stopped")
    ballast.unlink()
    said = campaign.log()
    newest = max((d.runs / RUN / "checkpoints").iterdir(), key=lambda p: p.name)
    assert newest.exists()
    campaign.follower.wait(60)
    assert campaign.follower.returncode == 5, said
    stood = len(campaign.rounds())
    assert stood >= before
    command = d.coordinator_command("lacuna", "resume", RUN, "--wait", "60")
    with (d.folder / "follower.log").open("ab") as log:
        campaign.follower = subprocess.Popen(
            command, env=d.engine.environment | dict(d.settings()), stdout=log, stderr=subprocess.STDOUT
        )
    wait(lambda: campaign.whole(stood), campaign.patience, "a whole round after the disk was full")
    campaign.table.append(("full disk, then resume", time.monotonic() - began, 0, 1, "resumed by hand"))


def test_the_run_stops_whole_and_says_so(campaign: Campaign) -> None:
    d = campaign.deployed
    said = d.coordinator("lacuna", "stop", RUN)
    assert "stopped after translate round" in said
    assert campaign.follower.wait(120) == 5
    assert '"finished"' not in (d.runs / RUN / "outcome.json").read_text()
