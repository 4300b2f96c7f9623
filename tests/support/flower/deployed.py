"""A whole federation on loopback: a SuperLink with TLS and a database, an executor, SuperNodes with their keys."""

import contextlib
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from support.cohort.worlds import write_world
from support.flower.federations import enter
from support.flower.superlinks import answers, free_port, wait
from support.flower.warm import Warm
from support.rounds.federation import weights_digest

from server.cli import cli
from server.federation import provision
from server.federation.federation import CA, SERVER, SERVER_KEY, opened
from server.journal import facts
from server.superlink.superlink import SuperLink, sync

SITES = {"north": [("T1", "T2")], "east": [("T1", "T2")]}
POLICY = "min-subjects=1 min-samples=1 min-holders=2"  # what a hospital would not say: two sites of one subject each
PLAN = (
    "size=tiny",
    "tracking=none",
    "device=cpu",
    "method.modalities=[T1,T2]",
    "strategy=fedadam",
    "federation.deadline=90",  # a message that a busy machine loses is sent again
    "grid.height=16",
    "grid.width=16",
    "grid.spacing_mm=null",
    "grid.slice_mm=null",
    "training.pretext.steps=1",
    "training.pretext.batch=1",
    "training.translate.rounds=3",
    "training.translate.steps=1",
    "training.translate.batch=1",
)


def _fast_disk() -> Path:
    """Flower's database waits for the disk once for every tensor of every message: minutes, on a busy one."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="lacuna-", dir=memory if memory.is_dir() else None))


@dataclass(kw_only=True)
class Deployed:
    """Every program by its process id."""

    folder: Path
    world: Path
    port: int = field(default_factory=free_port)
    warm: Warm = field(default_factory=Warm)
    disk: Path = field(default_factory=_fast_disk)  # outlives the SuperLink, not the test
    superlink: int = 0
    executor: int = 0
    nodes: dict[str, tuple[int, int]] = field(default_factory=dict)  # site -> SuperNode, its executor

    @property
    def federation(self) -> Path:
        return self.folder / "federation"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def link(self) -> SuperLink:
        with opened(self.federation) as found:
            return SuperLink(address=self.address, authorities=found.authorities.decode())

    def start(self, sites: Sequence[str], modalities: Sequence[str]) -> None:
        new = provision.NewFederation(
            name="loopback",
            address=f"localhost:{self.port}",
            modalities=list(modalities),
            methods=["amm_diff"],
            min_holders=2,  # there are two sites
            quorum=2,
        )
        provision.init(self.federation, new, now=_now())
        for site in sites:
            enter(self.federation, self.folder / site, site, now=_now())
        self.start_superlink()
        sync(self.federation, self.address)
        self.start_executor()
        for site in sites:
            self.start_site(site)
        wait(lambda: all(state.online for state in self.link.sites().values()))

    def start_superlink(self) -> None:
        flags = (
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--enable-supernode-auth",
            "--isolation",
            "process",
            "--ssl-certfile",
            str(self.federation / SERVER),
            "--ssl-keyfile",
            str(self.federation / SERVER_KEY),
            "--ssl-ca-certfile",
            str(self.federation / CA),
            "--disable-runtime-dependency-installation",
            "--database",
            str(self.disk / "state.db"),
        )
        self.superlink = self._start("flower-superlink", *flags, name="superlink")
        wait(lambda: answers(self.port))

    def start_executor(self) -> None:
        flags = ("--runtime-api-address", self.address, "--root-certificates", str(self.federation / CA))
        self.executor = self._start("flower-superexec", *flags, name="executor")

    def start_site(self, site: str) -> None:
        state, own = self.folder / site, free_port()
        cohort = self.world / "sites" / site
        flags = (
            "--superlink",
            self.address,
            "--root-certificates",
            str(state / "federation" / "ca.crt"),
            "--auth-supernode-private-key",
            str(state / "enrolment" / "site.key"),
            "--port",
            str(own),
            "--isolation",
            "process",
            "--node-config",
            f'site="{site}" cohort="{cohort}" state="{state}" device="cpu" {POLICY}',
        )
        node = self._start("flower-supernode", *flags, name=site)
        wait(lambda: answers(own))
        executor = self._start(
            "flower-superexec", "--runtime-api-address", f"127.0.0.1:{own}", "--insecure", name=f"{site}-executor"
        )
        self.nodes[site] = (node, executor)

    def kill(self, *pids: int) -> None:
        for pid in pids:
            self.warm.kill(pid)

    def children(self, executor: int) -> list[int]:
        """The apps that an executor has started and that still run."""
        found = []
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                rest = status.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(rest[1]) == executor and rest[0] != "Z":
                found.append(int(status.parent.name))
        return found

    def logs(self) -> Mapping[str, str]:
        return {path.name: path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log"))}

    def close(self) -> None:
        self.warm.close()
        shutil.rmtree(self.disk)

    def _start(self, program: str, *flags: str, name: str) -> int:
        return self.warm.start(program, *flags, home=self.folder / f"home-{name}", log=self.folder / f"{name}.log")


@contextlib.contextmanager
def meanwhile(happened: Callable[[], bool], then: Callable[[], object]) -> Iterator[None]:
    """Beside the block: waits for something, then acts. Fails where it never happened."""
    failed: list[BaseException] = []
    over = threading.Event()

    def work() -> None:
        try:
            while not happened():
                assert not over.wait(0.05), "it ended before that"
            then()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if failed:
        raise failed[0]


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


@dataclass(frozen=True, kw_only=True)
class Scene:
    deployed: Deployed
    runs: Path
    digest: str  # of the weights that `lacuna simulate` gives

    def lacuna(self, *words: str) -> int:
        """Its exit code."""
        with pytest.raises(SystemExit) as ended:
            cli.run_app(lambda: cli.app(list(words)))
        return int(ended.value.code or 0)

    def train(self, *more: str) -> int:
        return self.lacuna("train", *PLAN, f"runs={self.runs}", *more, *self.there)

    @property
    def there(self) -> tuple[str, ...]:
        return ("--superlink", self.deployed.address, "--federation", str(self.deployed.federation))

    def rounds(self, run: str) -> int:
        return len(facts.read(self.runs / run / "rounds.jsonl"))

    def last_round(self, run: str) -> int:
        return facts.read(self.runs / run / "rounds.jsonl")[-1].round + 1

    def server_apps(self) -> list[int]:
        return self.deployed.children(self.deployed.executor)


@contextlib.contextmanager
def staged(folder: Path) -> Iterator[Scene]:
    """Two sites that are online, and what `lacuna simulate` makes of their cohorts."""
    world = write_world(folder / "world", SITES, edge=16)
    deployed = Deployed(folder=folder / "programs", world=world)
    deployed.folder.mkdir()
    runs = folder / "runs"
    try:
        cli.app(["simulate", *PLAN, f"world={world}", f"runs={runs}", "run=here"], standalone_mode=False)
        deployed.start(list(SITES), ["T1", "T2"])
        yield Scene(deployed=deployed, runs=runs, digest=weights_digest(runs / "here"))
    finally:
        for name, text in deployed.logs().items():  # shown where a test fails
            print(f"--- {name}\n{text[-2000:]}")
        deployed.close()
