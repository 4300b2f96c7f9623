"""The Docker engine of the container tests, found or started; Lacuna's images on it, kept between runs by content."""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = Path(os.environ.get("LACUNA_DOCKER_TOOLS", ROOT.parent / "shared" / "tools"))
IMAGES = ("server", "client", "proxy", "postgres")
BASES = {"LACUNA_PYTHON": "localhost/python:3.11-bookworm", "LACUNA_DEBIAN": "localhost/debian:bookworm"}
WHEELS, AUTHORITIES = Path("/opt/wheels"), Path("/etc/ssl/certs/ca-certificates.crt")


class NoEngine(Exception):
    """Why there is none: the tests are skipped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    environment: dict[str, str]
    tag: str  # of this checkout's images

    def docker(self, *words: str, check: bool = True, timeout: float = 600, **more: str) -> str:
        """What it prints; a failure's own words if it fails."""
        command = ["docker", *words]
        done = subprocess.run(
            command, env=self.environment | more, capture_output=True, text=True, timeout=timeout, check=False
        )
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stdout[-2000:]} {done.stderr[-4000:]}"
        return done.stdout.strip()

    def image(self, name: str) -> str:
        return f"lacuna-{name}:{self.tag}"

    def pid(self, container: str) -> int:
        """Of its first process, as the host numbers it."""
        return int(self.docker("inspect", "--format", "{{.State.Pid}}", container))

    def gateway(self, network: str) -> str:
        """This machine's own address in a network."""
        return self.docker("network", "inspect", network, "--format", "{{(index .IPAM.Config 0).Gateway}}")

    def address(self, container: str, network: str) -> str:
        found = json.loads(self.docker("inspect", "--format", "{{json .NetworkSettings.Networks}}", container))
        return str(found[network]["IPAddress"])


@contextmanager
def engine() -> Iterator[Engine]:
    """Stopped at the end if it was started here. LACUNA_KEEP_ENGINE=1 leaves it up, for the next run's sake."""
    mine = False
    tools = TOOLS / "docker-up.sh"
    if os.geteuid() == 0 and tools.exists():
        mine = subprocess.run([tools, "status"], capture_output=True, check=False).returncode != 0
        try:
            up = subprocess.run([tools, "up"], capture_output=True, text=True, timeout=600, check=False)
        except subprocess.TimeoutExpired:
            raise NoEngine("no Docker engine could be started in 10 minutes") from None
        if up.returncode != 0:
            raise NoEngine(f"no Docker engine could be started: {up.stderr.strip().splitlines()[-1:]}")
        environment = _environment(tools)
    else:
        environment = dict(os.environ)
        if os.geteuid() != 0:
            raise NoEngine("the tests look into other processes' networks: they need root")
        if shutil.which("docker") is None or subprocess.run(["docker", "version"], capture_output=True).returncode != 0:
            raise NoEngine("no Docker engine answers, and there is none that could be started here")
    try:
        yield Engine(environment=environment, tag=_digest())
    finally:
        if mine and os.environ.get("LACUNA_KEEP_ENGINE") != "1":
            subprocess.run([tools, "down"], capture_output=True, timeout=120, check=False)


def _environment(tools: Path) -> dict[str, str]:
    printed = subprocess.run(
        ["bash", "-c", f'eval "$({tools} env)"; env -0'], capture_output=True, check=True
    ).stdout.decode()
    return dict(line.split("=", 1) for line in printed.split("\0") if "=" in line)


def build(engine: Engine) -> None:
    """The images of this checkout, those that are not there yet; older ones of the same tests are dropped."""
    there = engine.docker("images", "--format", "{{.Repository}}:{{.Tag}}").splitlines()
    missing = [name for name in IMAGES if engine.image(name) not in there]
    if not missing:
        return
    environment = engine.environment | {"LACUNA_TORCH": "2.13.0+cpu"}
    if (TOOLS / "docker-base-image.sh").exists():
        subprocess.run([TOOLS / "docker-base-image.sh"], env=engine.environment, check=True, stdout=subprocess.DEVNULL)
        environment |= BASES
    if any(WHEELS.glob("torch-*.whl")):
        environment["LACUNA_WHEELS"] = str(WHEELS)
    if AUTHORITIES.exists():
        environment["LACUNA_CA"] = str(AUTHORITIES)
    subprocess.run([ROOT / "deploy" / "images.sh", engine.tag, *missing], env=environment, check=True, timeout=1800)
    for image in there:
        if image.startswith(tuple(f"lacuna-{name}:test-" for name in missing)) and not image.endswith(engine.tag):
            engine.docker("rmi", image, check=False)


def _digest() -> str:
    """Of every file that a build can see (.dockerignore), so that the tag names the content."""
    digest = hashlib.sha256()
    for path in _context():
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return f"test-{digest.hexdigest()[:12]}"


def _context() -> Sequence[Path]:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    found = [p for name in allowed for p in ((ROOT / name).rglob("*") if (ROOT / name).is_dir() else [ROOT / name])]
    return sorted(p for p in found if p.is_file() and "__pycache__" not in p.parts)
