"""`lacuna-site up` on a real engine: the site's container against a SuperLink on the host, and why it is not well."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from containers.engine import Engine
from support.flower import superlinks
from support.flower.federations import NOW, enter, make
from support.flower.superlinks import answers, program, wait

from server.federation import provision
from server.federation.federation import CA, SERVER, SERVER_KEY, SIGNING_KEY
from server.superlink.superlink import sync
from shared.trust import image
from shared.trust.keys import read_signing_key

SITES = ("near", "revoked", "lost")
USER = 10001


@dataclass(frozen=True, kw_only=True)
class Host:
    """The engine's own machine: sites' states, and a SuperLink that containers reach over the bridge."""

    engine: Engine
    folder: Path

    def site(self, verb: str, name: str, *words: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-P", "-m", "client.cli", verb, "--state", str(self.folder / name), *words]
        return subprocess.run(
            command, env=self.engine.environment, capture_output=True, text=True, timeout=400, check=False
        )

    def up(self, name: str, *words: str) -> "subprocess.CompletedProcess[str]":
        return self.site(
            "up", name, "--cohort", str(self.folder / "cohort"), "--image", self.engine.image("client"), *words
        )


@pytest.fixture(scope="module")
def host(docker: Engine) -> Iterator[Host]:
    folder = Path(tempfile.mkdtemp(prefix="lacuna-launcher-", dir="/var/tmp"))
    folder.chmod(0o755)
    (folder / "cohort").mkdir()
    bridge = docker.docker("network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}")
    port = superlinks.free_port()
    federation = make(folder / "federation", address=f"{bridge}:{port}")
    for name in SITES:
        enter(federation, folder / name, name)
        (folder / name / image.FOLDER).mkdir()
        id = docker.docker("image", "inspect", "--format", "{{.Id}}", docker.image("client"))
        signed = image.sign([id], read_signing_key(federation / SIGNING_KEY))
        (folder / name / image.FOLDER / "images.sig").write_bytes(signed)
    found = Host(engine=docker, folder=folder)
    flags = (
        "--host",
        "0.0.0.0",
        "--port",
        str(port),
        "--enable-supernode-auth",
        "--isolation",
        "process",
        "--ssl-certfile",
        str(federation / SERVER),
        "--ssl-keyfile",
        str(federation / SERVER_KEY),
        "--ssl-ca-certfile",
        str(federation / CA),
        "--disable-runtime-dependency-installation",
        "--database",
        str(folder / "state.db"),
    )
    try:
        with program("flower-superlink", *flags, home=folder / "home", log=folder / "superlink.log") as superlink:
            wait(lambda: answers(port), superlink)
            sync(federation, f"127.0.0.1:{port}")
            provision.revoke(federation, "revoked", now=NOW)
            sync(federation, f"127.0.0.1:{port}")
            for name in SITES:
                subprocess.run(["chown", "-R", f"{USER}:{USER}", folder / name], check=True)
            yield found
    finally:
        for name in SITES:
            docker.docker("rm", "-f", f"lacuna-site-{name}", check=False)
        shutil.rmtree(folder, ignore_errors=True)


def test_up_starts_the_container_of_the_compose_file_waits_for_it_and_down_ends_it(host: Host) -> None:
    done = host.up("near")
    assert done.returncode == 0, done.stderr
    assert "lacuna-site-near: connected" in done.stdout
    assert "no GPU runtime on this engine" in done.stdout
    facts = host.engine.docker(
        "inspect",
        "lacuna-site-near",
        "--format",
        "{{.Config.User}} {{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}} {{.HostConfig.RestartPolicy.Name}} "
        "{{.HostConfig.PortBindings}} {{.HostConfig.Init}}",
    )
    assert facts == f"{USER}:{USER} true [ALL] unless-stopped map[] true"
    assert host.site("status", "near").returncode == 0
    assert "SuperNode ID" in host.site("logs", "near", "--lines", "200").stdout

    again = host.up("near")
    assert again.returncode == 0
    assert "runs already" in again.stdout
    replaced = host.up("near", "--memory", "4g")
    assert replaced.returncode == 0, replaced.stderr
    assert "is replaced" in replaced.stdout
    down = host.site("down", "near")
    assert (down.returncode, "asked to stop" in down.stdout) == (0, True)
    assert "was asked to stop" in host.site("status", "near").stdout
    assert "there is no container" in host.site("down", "near").stdout


def test_a_site_that_is_not_well_is_explained_and_left_trying(host: Host) -> None:
    done = host.up("revoked", "--wait", "300")
    assert done.returncode == 5
    assert (
        "the server does not take the key of site revoked" in done.stderr or "turned site revoked away" in done.stderr
    )
    assert host.engine.docker("inspect", "lacuna-site-revoked", "--format", "{{.State.Running}}") == "true"
    host.site("down", "revoked")


def test_what_has_to_be_mended_here_comes_first(host: Host) -> None:
    gpu = host.up("lost", "--gpu", "all")
    assert (gpu.returncode, "gpu: this engine gives none" in gpu.stderr) == (2, True)
    missing = host.site("up", "lost", "--cohort", str(host.folder / "cohort"), "--image", "lacuna-client:none")
    assert (missing.returncode, "is not here, and none is fetched" in missing.stderr) == (2, True)
    signature = host.folder / "lost" / image.FOLDER / "images.sig"
    signature.rename(host.folder / "lost" / "images.away")
    unsigned = host.up("lost")
    assert (unsigned.returncode, "is not signed by the federation" in unsigned.stderr) == (2, True)
    (host.folder / "lost" / "images.away").rename(signature)
    key = host.folder / "lost" / "enrolment" / "site.key"
    key.chmod(0o640)
    open_key = host.up("lost", "--wait", "300")
    assert open_key.returncode == 5
    assert "mode 0640 lets others at it" in open_key.stderr
    key.chmod(0o600)
    os.chown(host.folder / "lost", 0, 0)
    root = host.up("lost")
    assert (root.returncode, "never runs as root" in root.stderr) == (2, True)
