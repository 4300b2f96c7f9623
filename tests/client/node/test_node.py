"""A site's node against a real SuperLink: it takes part, refuses code, and leaves nothing behind however it ends."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.flower import superlinks
from support.flower.federations import enter, make
from support.flower.superlinks import answers, program, wait
from support.flower.warm import Warm
from support.model.bundles import bundle

from client.node import family
from client.node.status import CONTACT, HEALTH, read_record, status
from server.federation import provision
from server.federation.federation import CA, SERVER_KEY, opened
from server.federation.federation import SERVER as CERTIFICATE
from server.flower import control
from server.superlink.superlink import sync
from shared.trust.keys import is_encrypted
from shared.trust.passphrase import FILE_VARIABLE

pytestmark = pytest.mark.slow  # left out of `make fast`

WORD = "correct horse battery staple"

ASKS = '''
import json, time
from pathlib import Path
from flwr.app import Message, RecordDict
from flwr.serverapp import ServerApp
app = ServerApp()

@app.main()
def main(grid, context):
    """Asks every node once, and writes what each answered and how long it took."""
    folder = Path(context.run_config["folder"])
    folder.mkdir()
    nodes, began = list(grid.get_node_ids()), time.time()
    ask = [Message(RecordDict(), dst_node_id=node, message_type="train") for node in nodes]
    waiting, told = set(grid.push_messages(ask)), {}
    while waiting:
        for reply in grid.pull_messages(list(waiting)):
            waiting.discard(reply.metadata.reply_to_message_id)
            said = [reply.error.code, reply.error.reason] if reply.has_error() else [0, list(reply.content)]
            told[str(reply.metadata.src_node_id)] = [*said, time.time() - began]
            (folder / "told.partial").write_text(json.dumps(told))
            (folder / "told.partial").replace(folder / "told.json")
        time.sleep(0.2)
'''
MARK = """
import os
from flwr.clientapp import ClientApp
app = ClientApp()
open(os.path.join(os.environ["FLWR_HOME"], "mark"), "w").write("foreign code ran here")

@app.train()
def train(message, context):
    raise RuntimeError("foreign code ran here")
"""


@dataclass(frozen=True, kw_only=True)
class World:
    folder: Path
    port: int

    def submit(self, name: str, content: bytes) -> Path:
        """Start a run with this bundle; gives the file with the answers."""
        with opened(self.folder / "federation") as found:
            authorities = found.authorities
        with control(f"127.0.0.1:{self.port}", authorities) as link:
            link.start(content, {"folder": str(self.folder / name)})
        return self.folder / name / "told.json"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A SuperLink, and an executor whose ServerApp asks every node once; sites north and south are admitted.

    North's key has a passphrase, which its node reads from a file.
    """
    folder = tmp_path_factory.mktemp("world")
    port = superlinks.free_port()
    federation = make(folder / "federation", address=f"localhost:{port}")
    (folder / "word").touch(mode=0o600)
    (folder / "word").write_text(f"{WORD}\n")
    enter(federation, folder / "south", "south")
    (folder / "cohort").mkdir()
    (folder / "path" / "server").mkdir(parents=True)
    ours = Path(provision.__file__).parents[1]
    (folder / "path" / "server" / "__init__.py").write_text(f"__path__.append({str(ours)!r})")  # all but app.py is ours
    (folder / "path" / "server" / "app.py").write_text(ASKS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{superlinks.BIN}{os.pathsep}{os.environ['PATH']}")  # Flower starts programs by name
        patch.setattr(superlinks, "PATIENCE", 300.0)
        patch.setenv(FILE_VARIABLE, str(folder / "word"))
        enter(federation, folder / "north", "north", word=WORD.encode())
        warm = Warm(folder / "path")  # its server.app is ours
        try:
            flags = (
                "--host",
                "127.0.0.1",
                "--port",
                str(port),
                "--enable-supernode-auth",
                "--isolation",
                "process",
                "--ssl-certfile",
                str(federation / CERTIFICATE),
                "--ssl-keyfile",
                str(federation / SERVER_KEY),
                "--ssl-ca-certfile",
                str(federation / CA),
                "--disable-runtime-dependency-installation",
                "--database",
                str(folder / "state.db"),
            )
            warm.start("flower-superlink", *flags, home=folder / "home", log=folder / "superlink.log")
            wait(lambda: answers(port))
            sync(federation, f"127.0.0.1:{port}")
            flags = ("--runtime-api-address", f"127.0.0.1:{port}", "--root-certificates", str(federation / CA))
            warm.start("flower-superexec", *flags, home=folder / "server-home", log=folder / "executor.log")
            yield World(folder=folder, port=port)
        finally:
            warm.close()


@contextlib.contextmanager
def site(world: World, name: str, *flags: str) -> Iterator["subprocess.Popen[bytes]"]:
    """`lacuna-site run`, ended if it is still there."""
    command = [
        sys.executable,
        "-P",
        "-m",
        "client.cli",
        "run",
        "--state",
        str(world.folder / name),
        "--cohort",
        str(world.folder / "cohort"),
        *flags,
    ]
    with (world.folder / f"{name}.out").open("ab") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


def connected(world: World, name: str, process: "subprocess.Popen[bytes]") -> None:
    state = world.folder / name

    def now() -> bool:  # by this process's records, not by those of the one before
        health, contact = read_record(state / HEALTH) or {}, read_record(state / CONTACT) or {}
        own = health.get("pid") == process.pid and contact.get("pid") in family.below(process.pid)
        return own and status(state).healthy

    wait(now, process)


def named(pids: set[int], word: str) -> list[int]:
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            if word in Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "):
                found.append(pid)
    return found


def hung_worker(process: "subprocess.Popen[bytes]") -> int:
    """The worker of the message under way, stopped: it hears no SIGTERM."""
    wait(lambda: bool(named(family.below(process.pid), "flwr-clientapp")), process)
    (worker,) = named(family.below(process.pid), "flwr-clientapp")
    os.kill(worker, signal.SIGSTOP)
    return worker


def told_by(told: Path) -> dict[int, tuple[str, float]]:
    """By Flower's error code, 0 for none: what was said, after how many seconds."""
    if not told.exists():
        return {}
    return {code: (said, seconds) for code, said, seconds in json.loads(told.read_text()).values()}


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def log_of(world: World, name: str) -> str:
    return (world.folder / name / "node" / "site.log").read_text()


@pytest.mark.slow
def test_code_in_a_bundle_runs_on_a_plain_supernode_and_is_refused_at_a_site(world: World) -> None:
    """The same run at both: south shows what would have happened."""
    shadow = bundle({"client/__init__.py": "", "client/app.py": MARK})
    with socket.create_server(("127.0.0.1", 0)) as listener:
        plain = listener.getsockname()[1]
    state = world.folder / "south"
    flags = (
        "--superlink",
        f"localhost:{world.port}",
        "--root-certificates",
        str(state / "federation" / "ca.crt"),
        "--auth-supernode-private-key",
        str(state / "enrolment" / "site.key"),
        "--port",
        str(plain),
    )
    with (
        program("flower-supernode", *flags, home=world.folder / "south-home", log=world.folder / "south.log"),
        site(world, "north") as north,
    ):
        connected(world, "north", north)
        wait(lambda: "SuperNode ID" in (world.folder / "south.log").read_text())
        told = world.submit("hostile", shadow)
        mark = world.folder / "south-home" / "mark"
        wait(lambda: mark.exists() and 7 in told_by(told), north)
        north_said, seconds = told_by(told)[7]
        assert north_said.startswith(
            "bundle: carries 'client/__init__.py', 'client/app.py'; it may carry pyproject.toml"
        )
        assert seconds < 60  # and not the run's deadline
        assert not (state.parent / "north" / "flwr" / "mark").exists()
        assert not (world.folder / "north" / "flwr" / "apps").exists()
        lines = [line for line in log_of(world, "north").splitlines() if "lacuna: refused: run" in line]
        assert len(lines) == 1
        assert lines[0].endswith(north_said)
        assert north_said in (world.folder / "north" / "ledger.jsonl").read_text()

        told = world.submit("good", bundle({}))  # the site goes on: this one its own code works on
        wait(lambda: 0 in told_by(told), north)  # no error: a refusal of our own, signed, since there is no plan in it
        assert is_encrypted((world.folder / "north" / "enrolment" / "site.key").read_bytes())
        found = [path for path in (world.folder / "north").rglob("*") if path.is_file()]
        assert not any(b"OPENSSH PRIVATE KEY" in path.read_bytes() for path in found), "it was opened in memory alone"


@pytest.mark.slow
def test_whoever_is_killed_nothing_of_the_node_is_left(world: World) -> None:
    good = bundle({})
    with site(world, "north") as first:
        connected(world, "north", first)
        world.submit("one", good)
        worker = hung_worker(first)
        below = family.below(first.pid)
        assert len(below) == 3
        first.kill()  # the supervisor itself: the kernel tells its children
        wait(lambda: all(gone(pid) for pid in below))
        assert not status(world.folder / "north", now=time.time() + 60).running
    with site(world, "north") as again:  # at once: the node had time to take its leave
        connected(world, "north", again)
        world.submit("two", good)
        worker = hung_worker(again)
        (executor,) = named(family.below(again.pid), "supernode executor")
        before = status(world.folder / "north").restarts  # one, where the server still held the first node's key
        os.kill(executor, signal.SIGKILL)
        wait(lambda: gone(worker), again)
        wait(lambda: bool(named(family.below(again.pid) - {executor}, "supernode executor")), again)
        assert status(world.folder / "north").restarts == before

        (node,) = named(family.below(again.pid), "supernode node")
        os.kill(node, signal.SIGKILL)
        wait(lambda: not family.below(again.pid), again)
        wait(lambda: status(world.folder / "north").doing == "waiting", again)
        said = status(world.folder / "north").said
        assert "the node was killed (signal SIGKILL); the server may hold its key for a minute" in said
        assert "trying again in 61 s" in said
        asked = time.monotonic()
        again.terminate()
        assert again.wait(20) == 0
        assert time.monotonic() - asked < 10
    assert status(world.folder / "north").said.endswith("was asked to stop")
