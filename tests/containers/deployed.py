"""A whole federation in containers: the server's stack, and three sites that reach nothing but its proxy.

Everything is made as the runbook says it: federation and sites by their own verbs, the server by its compose file, each
site by the compose file of its kit. What the tests add is three networks without a way out, one for each site's gate.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from containers.engine import ROOT, Engine
from support.cohort.worlds import write_world

PROJECT, PROXY, PORT = "lacuna-test", "proxy.test", 8443
USER = "10001:10001"
DISK = "1500m"  # of the runs: small, to be filled; a model of 116 MB has its checkpoints and a round's updates there
MODALITIES = ("T1", "T2", "FLAIR")
SITES = {  # TOF for the method of test_figures.py alone
    "north": [("T1", "T2", "TOF")] * 5 + [("T1",)],
    "east": [("T1", "FLAIR", "TOF")] * 5,
    "south": [("T1", "T2", "FLAIR", "TOF")] * 5,
}
SERVICES = ("superlink", "executor", "mlflow", "postgres", "proxy")
VOXELS = ("grid.spacing_mm=null", "grid.slice_mm=null")  # as write_world prepares
PLAN = ("size=tiny", *VOXELS, f"method.modalities=[{','.join(MODALITIES)}]", "seed=11")
POLICY = """  # a few made-up people, two holders of a modality, and plans of seconds
[policy]
min_subjects = 1
min_holders = 2
min_samples = 1
"""
ISOLATED = """
services: {{site: {{environment: {{OMP_NUM_THREADS: "1"}}}}}}
networks: {{outside: {{name: {network}, external: true}}}}
"""
RUNS_ON = """
volumes: {{runs: {{driver: local, driver_opts: {{type: none, o: bind, device: {device}}}}}}}
"""


@dataclass(kw_only=True)
class Deployed:
    engine: Engine
    folder: Path
    started: dict[str, float] = field(default_factory=dict)  # seconds from start to healthy, by container
    recorders: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    # --- made

    def make(self) -> None:
        """World, federation, kits: on the host's disk, by the verbs."""
        write_world(self.world, SITES, edge=32)
        modalities = [word for name in (*MODALITIES, "TOF") for word in ("--modality", name)]
        self.verb(
            "server.cli",
            "federation",
            "init",
            "federation",
            "--name",
            "strokes",
            "--address",
            f"{PROXY}:{PORT}",
            *modalities,
            "--method",
            "amm_diff",
            "--method",
            "ddpm",
            "--min-holders",  # the world has two holders of a modality
            "2",
            "--quorum",
            "2",
        )
        for site in SITES:
            self.verb("client.cli", "init", site, "--site", site)
            request = self.folder / site / "enrolment" / f"{site}.request.json"
            self.verb("server.cli", "federation", "admit", str(request))
        for site in SITES:  # each kit names all sites
            kit = self.folder / "federation" / "kits" / f"{site}.kit"
            self.verb("client.cli", "join", str(kit), "--state", site, "--fingerprint", self._signer())
            (self.folder / site / "site.toml").write_text(POLICY)
        self.runs.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "lacuna-test", self.runs], check=True)
        owned = ("federation", *SITES, "runs")
        subprocess.run(["chown", "-R", USER, *[self.folder / name for name in owned]], check=True)
        subprocess.run(["chmod", "-R", "a+rX", self.world], check=True)

    def verb(self, module: str, *words: str) -> str:
        """A verb of this checkout on the host, at the coordinator's or a site's own desk.

        As many threads as the sites' containers have: the order of a sum, and so its last bits, follow their number.
        """
        command = [sys.executable, "-P", "-m", module, *words]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, f"{words}: {done.stdout} {done.stderr}"
        return done.stdout

    def _signer(self) -> str:
        from shared.trust.keys import fingerprint, read_public_key

        return fingerprint(read_public_key(self.folder / "federation" / "signing" / "signing.key.pub"))

    # --- up and down

    def up(self) -> None:
        began = time.monotonic()
        self.compose("up", "-d", "--wait", "--wait-timeout", "300")
        self.started["the server's five, first time"] = time.monotonic() - began
        self.coordinator("lacuna", "federation", "sync", "--superlink", "superlink:8000")
        for site in SITES:
            self.engine.docker("network", "create", "--internal", self.network(site))
            self.plug_in(site)
        began = time.monotonic()
        for site in SITES:
            self.site_compose(site, "up", "-d")
        wait(lambda: all(self.connected(site) for site in SITES), 300, "the sites are connected")
        self.started["three sites, until connected"] = time.monotonic() - began
        for site in SITES:
            self.wait_healthy(self.site(site))

    def renew(self) -> None:
        """With the images of this checkout, on the disks that it has."""
        self.compose("up", "-d", "--wait", "--wait-timeout", "300")
        for site in SITES:
            with suppress(AssertionError):  # the proxy is in that network already
                self.plug_in(site)
            self.site_compose(site, "up", "-d")
        for site in SITES:
            self.wait_healthy(self.site(site))

    def down(self) -> None:
        """By their labels, so that what a killed run left behind goes too."""
        for kind, listing, removal in (
            ("container", ("ps", "-aq"), ("rm", "-f", "-v")),
            ("network", ("network", "ls", "-q"), ("network", "rm")),
            ("volume", ("volume", "ls", "-q"), ("volume", "rm", "-f")),
        ):
            for project in (PROJECT, *(f"{PROJECT}-{site}" for site in SITES)):
                label = f"label=com.docker.compose.project={project}"
                found = self.engine.docker(*listing, "--filter", label).split()
                if found:
                    self.engine.docker(*removal, *found, check=kind != "network")
        for site in SITES:
            self.engine.docker("network", "rm", self.network(site), check=False)
        if self.runs.is_mount():
            subprocess.run(["umount", self.runs], check=True)

    def compose(self, *words: str, check: bool = True, timeout: float = 600) -> str:
        more = self.folder / "runs.yaml"
        more.write_text(RUNS_ON.format(device=self.runs))
        files = ("-f", str(ROOT / "deploy" / "server.compose.yaml"), "-f", str(more))
        return self.engine.docker("compose", *files, *words, check=check, timeout=timeout, **self.settings())

    def settings(self) -> Mapping[str, str]:
        return {
            "LACUNA_SERVER_PROJECT": PROJECT,
            "LACUNA_USER": USER,
            "LACUNA_FEDERATION": str(self.folder / "federation"),
            "LACUNA_PORT": "127.0.0.1:0",
            "LACUNA_SERVER_IMAGE": self.engine.image("server"),
            "LACUNA_PROXY_IMAGE": self.engine.image("proxy"),
            "LACUNA_POSTGRES_IMAGE": self.engine.image("postgres"),
        }

    def site_compose(self, site: str, *words: str, check: bool = True) -> str:
        kit = self.folder / site / "federation" / "compose.yaml"
        alone = self.folder / f"{site}.yaml"
        alone.write_text(ISOLATED.format(network=self.network(site)))
        return self.engine.docker(
            "compose",
            "-f",
            str(kit),
            "-f",
            str(alone),
            *words,
            check=check,
            LACUNA_PROJECT=f"{PROJECT}-{site}",
            LACUNA_IMAGE=self.engine.image("client"),
            LACUNA_STATE=str(self.folder / site),
            LACUNA_COHORT=str(self.world / "sites" / site),
            LACUNA_USER=USER,
        )

    def coordinator_command(self, *words: str) -> list[str]:
        files = ["-f", str(ROOT / "deploy" / "server.compose.yaml"), "-f", str(self.folder / "runs.yaml")]
        return ["docker", "compose", *files, "run", "--rm", "-T", "coordinator", *words]

    def coordinator(self, *words: str, timeout: float = 1800) -> str:
        return self.compose("run", "--rm", "-T", "coordinator", *words, timeout=timeout)

    def plug_in(self, site: str) -> None:
        self.engine.docker("network", "connect", "--alias", PROXY, self.network(site), self.container("proxy"))

    # --- names

    @property
    def world(self) -> Path:
        return self.folder / "world"

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def network(self, site: str) -> str:
        """In which its gate finds the server's proxy."""
        return f"{PROJECT}-only-{site}"

    def alone(self, site: str) -> str:
        """The site's own, of its kit's compose file."""
        return f"{PROJECT}-{site}_alone"

    def container(self, service: str) -> str:
        return f"{PROJECT}-{service}-1"

    def site(self, site: str) -> str:
        return f"{PROJECT}-{site}-site-1"

    def gate(self, site: str) -> str:
        return f"{PROJECT}-{site}-gate-1"

    # --- seen

    def health(self, container: str) -> str:
        return self.engine.docker("inspect", "--format", "{{.State.Health.Status}}", container)

    def connected(self, site: str) -> bool:
        return "connected: the server takes this site's key" in self.logs(self.site(site), 1000)

    def wait_healthy(self, container: str, timeout: float = 240) -> float:
        return wait(lambda: self.health(container) == "healthy", timeout, f"{container} is healthy")

    def processes(self, container: str) -> dict[int, str]:
        """Command lines by the host's process ids; of those that live."""
        listed = (
            line.split(None, 1) for line in self.engine.docker("top", container, "-eo", "pid,args").splitlines()[1:]
        )
        return {int(pid): command for pid, command in listed if "<defunct>" not in command}

    def find(self, container: str, *words: str) -> list[int]:
        """Processes whose command line has all of these words."""
        found = self.processes(container)
        return [pid for pid, command in found.items() if all(word in command for word in words)]

    def rounds(self, run: str) -> list[dict[str, object]]:
        """What the run has written of its rounds; a line that is being written is left out."""
        path = self.runs / run / "rounds.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def logs(self, container: str, lines: int = 40) -> str:
        done = subprocess.run(
            ["docker", "logs", "--tail", str(lines), container],
            env=self.engine.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout + done.stderr

    def everything(self) -> str:
        """For a failure: the last lines of every container."""
        names = [self.container(service) for service in SERVICES] + [self.site(site) for site in SITES]
        return "\n".join(f"--- {name}\n{self.logs(name)}" for name in names)


def wait(happened: Callable[[], bool], timeout: float, what: str) -> float:
    """Seconds that it took."""
    began = time.monotonic()
    while not happened():
        assert time.monotonic() < began + timeout, f"{what}: not in {timeout:.0f} s"
        time.sleep(0.3)
    return time.monotonic() - began


def ok(round: Mapping[str, object]) -> Sequence[str]:
    """The sites whose updates a round took in."""
    sites = round["sites"]
    assert isinstance(sites, dict)
    return sorted(site for site, facts in sites.items() if facts["status"] == "ok")
