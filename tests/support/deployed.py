"""A whole federation on loopback: a SuperLink with TLS and its database, an executor, SuperNodes with keys of their own."""

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from support.federations import enter
from support.superlinks import answers, free_port, wait
from support.warm import Warm, alive

from server import provision
from server.federation import CA, SERVER, SERVER_KEY, opened
from server.superlink import SuperLink, sync


@dataclass(kw_only=True)
class Deployed:
    """Every program by its process id."""

    folder: Path
    world: Path
    port: int = field(default_factory=free_port)
    warm: Warm = field(default_factory=Warm)
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
        provision.init(
            self.federation,
            name="loopback",
            address=f"localhost:{self.port}",
            modalities=list(modalities),
            methods=["amm_diff"],
            now=_now(),
        )
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
            "--host", "127.0.0.1", "--port", str(self.port), "--enable-supernode-auth", "--isolation", "process",
            "--ssl-certfile", str(self.federation / SERVER), "--ssl-keyfile", str(self.federation / SERVER_KEY),
            "--ssl-ca-certfile", str(self.federation / CA),
            "--disable-runtime-dependency-installation", "--database", str(self.folder / "state.db"),
        )  # fmt: skip
        self.superlink = self._start("flower-superlink", *flags, name="superlink")
        wait(lambda: answers(self.port))

    def start_executor(self) -> None:
        flags = ("--runtime-api-address", self.address, "--root-certificates", str(self.federation / CA))
        self.executor = self._start("flower-superexec", *flags, name="executor")

    def start_site(self, site: str) -> None:
        state, own = self.folder / site, free_port()
        cohort = self.world / "sites" / site
        flags = (
            "--superlink", self.address, "--root-certificates", str(state / "federation" / "ca.crt"),
            "--auth-supernode-private-key", str(state / "enrolment" / "site.key"),
            "--port", str(own), "--isolation", "process",
            "--node-config", f'site="{site}" cohort="{cohort}" state="{state / "work"}" device="cpu"',
        )  # fmt: skip
        node = self._start("flower-supernode", *flags, name=site)
        wait(lambda: answers(own))
        executor = self._start(
            "flower-superexec", "--runtime-api-address", f"127.0.0.1:{own}", "--insecure", name=f"{site}-executor"
        )
        self.nodes[site] = (node, executor)

    def kill_site(self, site: str) -> None:
        for pid in self.nodes.pop(site):
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

    def _start(self, program: str, *flags: str, name: str) -> int:
        return self.warm.start(program, *flags, home=self.folder / f"home-{name}", log=self.folder / f"{name}.log")


def when(happened: Callable[[], bool], then: Callable[[], object], seconds: float = 60.0) -> None:
    """In a thread beside the run: waits, then acts."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)
    then()


def kill_9(pids: Sequence[int]) -> None:
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    while any(alive(pid) for pid in pids):
        time.sleep(0.02)


def _now():  # type: ignore[no-untyped-def]
    from datetime import UTC, datetime

    return datetime.now(UTC).replace(microsecond=0)
