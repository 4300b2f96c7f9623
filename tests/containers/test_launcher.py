"""`lacuna-site up` on a real engine: the site's container against a SuperLink on the host, and why it is not well."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from containers.engine import Engine
from containers.lookups import RECORDER
from support.flower import superlinks
from support.flower.federations import NOW, enter, make
from support.flower.superlinks import answers, program, wait

from client.node.container import called
from server.federation import provision
from server.federation.federation import CA, SERVER, SERVER_KEY, SIGNING_KEY
from server.superlink.superlink import sync
from shared.trust import image
from shared.trust.keys import read_signing_key

SITES = ("near", "revoked", "lost")
USER = 10001
LOOK = """
import json, socket, sys
todo = json.loads(sys.argv[1])
said = {}
for host, port in todo["connect"]:
    try:
        with socket.create_connection((host, port), timeout=3) as channel:
            channel.settimeout(3)
            said[f"{host}:{port}"] = channel.recv(99).decode() if todo["read"] else "answers"
    except TimeoutError:
        said[f"{host}:{port}"] = "silent"
    except OSError:
        said[f"{host}:{port}"] = "no"
for name in todo["lookup"]:
    try:
        said[name] = socket.getaddrinfo(name, 443)[0][4][0]
    except OSError:
        said[name] = "no"
print(json.dumps(said))
"""


@dataclass(frozen=True, kw_only=True)
class Host:
    """The engine's own machine: sites' states, and a SuperLink that containers reach over the bridge."""

    engine: Engine
    folder: Path
    bridge: str  # this machine, as containers call it
    port: int

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
    bridge = docker.gateway("bridge")
    port = superlinks.free_port()
    federation = make(folder / "federation", address=f"{bridge}:{port}")
    for name in SITES:
        enter(federation, folder / name, name)
        (folder / name / image.FOLDER).mkdir()
        id = docker.docker("image", "inspect", "--format", "{{.Id}}", docker.image("client"))
        signed = image.sign([id], read_signing_key(federation / SIGNING_KEY))
        (folder / name / image.FOLDER / "images.sig").write_bytes(signed)
    found = Host(engine=docker, folder=folder, bridge=bridge, port=port)
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
            found.site("down", name)
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
    for listing in (("ps", "-aq"), ("network", "ls", "-q")):
        assert host.engine.docker(*listing, "--filter", "label=lacuna.site=near") == "", "it leaves nothing"


@contextmanager
def saying(word: str, host: str = "0.0.0.0") -> Iterator[int]:
    """A port of this machine that says a word to whoever comes."""
    with socket.create_server((host, 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    channel, _ = listener.accept()
                    with channel, suppress(OSError):
                        channel.sendall(word.encode())

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.fixture
def stranger(host: Host) -> Iterator[str]:
    """Another container's address, in another network of this engine, where it answers at port 80."""
    serve = "import http.server as h; h.HTTPServer(('', 80), h.SimpleHTTPRequestHandler).serve_forever()"
    words = ("--network=lacuna-strange", "--entrypoint=python", host.engine.image("client"), "-P", "-c", serve)
    host.engine.docker("network", "create", "lacuna-strange")
    try:
        host.engine.docker("run", "-d", "--name=lacuna-stranger", *words)
        yield host.engine.address("lacuna-stranger", "lacuna-strange")
    finally:
        host.engine.docker("rm", "-f", "lacuna-stranger", check=False)
        host.engine.docker("network", "rm", "lacuna-strange", check=False)


def look(
    host: Host, container: str, connect: Sequence[tuple[str, int]], lookup: Sequence[str] = (), *, read: bool = False
) -> dict[str, str]:
    todo = json.dumps({"connect": connect, "lookup": lookup, "read": read})
    found: dict[str, str] = json.loads(host.engine.docker("exec", container, "python", "-P", "-c", LOOK, todo))
    return found


def test_from_inside_the_site_reaches_the_server_and_what_it_named_alone(host: Host, stranger: str) -> None:
    """Neither another container, nor this machine, nor a name server. Its gate can, and passes two addresses on."""
    with saying("pacs") as pacs, saying("another") as another:
        settings = host.folder / "near" / "site.toml"
        settings.write_text(f'[site]\npacs = ["{host.bridge}:{pacs}"]\n')
        done = host.up("near")
        assert done.returncode == 0, done.stderr
        at_gates = [("superlink", host.port), (called(host.bridge), pacs), (called(host.bridge), another)]
        said = look(host, "lacuna-site-near", at_gates[1:], read=True)
        assert list(said.values()) == ["pacs", "no"]
        assert look(host, "lacuna-site-near", at_gates[:1]) == {f"superlink:{host.port}": "answers"}
        gates = [host.engine.gateway(f"lacuna-{part}-near") for part in ("alone", "outside")]
        machine = [(address, port) for address in (host.bridge, *gates) for port in (host.port, pacs, another)]
        closed = [(stranger, 80), *machine, ("192.0.2.1", 443), ("1.1.1.1", 53)]
        said = look(host, "lacuna-site-near", closed)
        assert {address: word for address, word in said.items() if word == "answers"} == {}
        control = look(host, "lacuna-gate-near", [(host.bridge, another)], read=True)
        assert control == {f"{host.bridge}:{another}": "another"}, "a container that has a way out finds it"
        checks = host.engine.docker(
            "exec", "lacuna-site-near", "lacuna-site", "doctor", "--state", "/state", "--json", check=False
        )
        found = {check["name"]: check for check in json.loads(checks)}
        assert (found["gate"]["status"], found["tls"]["status"], found["health"]["status"]) == ("ok", "ok", "ok")
    assert f"reaches {host.bridge}:{host.port} alone" in host.site("status", "near").stdout
    settings.unlink()


def test_no_question_of_the_site_reaches_a_name_server(host: Host) -> None:
    """Else whoever runs in it could say anything to anybody, letter by letter. Heard on this machine's own wires."""
    assert host.up("near").returncode == 0
    heard = host.folder / "heard.jsonl"
    recorder = subprocess.Popen([sys.executable, "-S", str(RECORDER), str(heard)])
    try:
        wait(lambda: heard.exists() and "listens" in heard.read_text(), recorder)
        name = f"{secrets.token_hex(8)}.example.org"
        look(host, "lacuna-site-near", [], [name, f"2.{name}"])
        time.sleep(3)
        assert name not in heard.read_text()
        open_name = f"{secrets.token_hex(8)}.example.org"
        look(host, "lacuna-gate-near", [], [open_name])
        wait(lambda: open_name in heard.read_text(), recorder)  # it would have been heard
    finally:
        recorder.kill()
        recorder.wait()


def test_a_gate_that_ended_is_said_and_comes_back_with_up(host: Host) -> None:
    assert host.up("near").returncode == 0
    host.engine.docker("stop", "lacuna-gate-near")
    checks = host.engine.docker(
        "exec", "lacuna-site-near", "lacuna-site", "doctor", "--state", "/state", "--json", check=False
    )
    failed = next(check for check in json.loads(checks) if check["status"] == "fail" and check["name"] == "name")
    assert "the site's gate" in failed["remedy"]
    again = host.up("near", "--wait", "300")
    assert again.returncode == 0, again.stderr
    assert "runs already" in again.stdout, "it was not ended for that: Flower would hold its key for a minute"
    assert host.engine.docker("inspect", "lacuna-gate-near", "--format", "{{.State.Running}}") == "true"
    assert list(look(host, "lacuna-site-near", [("superlink", host.port)]).values()) == ["answers"]
    host.site("down", "near")


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
