"""The parts of a site's node that need no SuperLink: families of processes, reasons and pauses, its records and log."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.flower.federations import enter, make
from support.flower.superlinks import free_port
from typer.testing import CliRunner

from client.cli.cli import app
from client.node import family, node, reach
from client.node import log as node_log
from client.node.status import CONTACT, HEALTH, NodeStatus, status
from client.site.settings import Settings, load
from shared.base.errors import ConfigError, DataError, RunFailed

pytestmark = pytest.mark.slow  # left out of `make fast`


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a site whose server is at a port where nobody is."""
    folder = tmp_path_factory.mktemp("parts")
    enter(make(folder / "federation", address=f"localhost:{free_port()}"), folder / "north", "north")
    return folder / "north"


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def soon(happened: object, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not happened():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.02)


# --- families of processes ------------------------------------------------------------------------------------------

DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
PARENT = f"""
import os, subprocess, sys
from client.node import family
family.adopt_orphans()
between = subprocess.Popen(["sh", "-c", 'setsid "$1" -c "$2" & echo started; wait', "sh", sys.executable, {DEAF!r}])
sys.stdin.readline()
between.kill()
between.wait()
sys.stdin.readline()
family.end(lambda: family.below(os.getpid()), 0.2)
family.bury(())
print("ended", sorted(family.below(os.getpid())), flush=True)
"""
CHILD = """
import os, sys, time
from client.node import family
family.die_with(int(sys.argv[1]))
print(os.getpid(), flush=True)
time.sleep(600)
"""
STARTER = """
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())])
time.sleep(600)
"""


@pytest.fixture
def processes() -> Iterator[list["subprocess.Popen[str]"]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def python(processes: list["subprocess.Popen[str]"], *words: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    processes.append(process)
    return process


def test_an_orphan_that_is_deaf_and_in_a_session_of_its_own_is_ended_all_the_same(
    processes: list["subprocess.Popen[str]"],
) -> None:
    parent = python(processes, "-c", PARENT)
    assert parent.stdout is not None
    assert parent.stdin is not None
    assert {parent.stdout.readline(), parent.stdout.readline()} == {"started\n", "deaf\n"}
    (deaf,) = (
        pid
        for pid in family.below(parent.pid)
        if b"signal.signal" in Path(f"/proc/{pid}/cmdline").read_bytes()
        and b"setsid" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    parent.stdin.write("\n")
    parent.stdin.flush()
    soon(lambda: family.below(parent.pid) == {deaf})  # its own parent is killed, and it comes to ours
    parent.stdin.write("\n")
    parent.stdin.flush()
    assert parent.stdout.readline() == "ended []\n"
    assert gone(deaf)


def test_a_child_is_told_when_its_parent_is_killed(processes: list["subprocess.Popen[str]"]) -> None:
    parent = python(processes, "-c", STARTER, CHILD)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    soon(lambda: gone(child))


PATIENT = """
import os, signal, subprocess, sys, threading, time
from client.node import family
asked = []
def count(*_):
    asked.append(1)
signal.signal(signal.SIGTERM, count)
family.die_with(int(sys.argv[1]))
print(os.getpid(), flush=True)
while not asked:
    time.sleep(0.01)
time.sleep(1)
open(sys.argv[2], "w").write(str(len(asked)))
"""
THREADED = """
import os, subprocess, sys, threading, time
subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid()), sys.argv[2]])
for _ in range(50):
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
time.sleep(600)
"""


def test_a_child_of_a_parent_with_many_threads_is_told_once(
    processes: list["subprocess.Popen[str]"], tmp_path: Path
) -> None:
    parent = python(processes, "-c", THREADED, PATIENT, str(tmp_path / "asked"))
    assert parent.stdout is not None
    parent.stdout.readline()
    parent.kill()
    soon((tmp_path / "asked").exists)
    soon(lambda: (tmp_path / "asked").read_text() != "")
    assert (tmp_path / "asked").read_text() == "1"


def test_a_child_whose_parent_is_gone_already_does_not_begin(processes: list["subprocess.Popen[str]"]) -> None:
    orphan = python(processes, "-c", CHILD, "1")  # not its parent
    assert orphan.wait(60) == -signal.SIGTERM


# --- reasons and pauses ---------------------------------------------------------------------------------------------


def ended(said: str, code: int) -> SimpleNamespace:
    return SimpleNamespace(last_words=lambda: said, code=lambda: code, ended=lambda: f"code {code}")


NOT_TAKEN = "Exit Code: 305 Failed to initialize the connection to the SuperLink. [code: 2004] Failed to activate"


@pytest.mark.parametrize(
    ("said", "code", "network", "why", "pauses"),
    [
        (
            NOT_TAKEN,
            1,
            None,
            "does not take the key of site north: it is not registered or was revoked",
            (61, 122, 600),
        ),
        ("", -9, None, "the node was killed", (61, 61, 61)),
        ("", 0, None, "turned site north away: its key was revoked", (61, 122, 600)),
        ("Exit Code: 305 name", 1, "name: x is unknown: ask", "name: x is unknown: ask", (10, 20, 300)),
        ("Exit Code: 1 boom", 1, None, "the node ended (code 1): Exit Code: 1 boom", (5, 10, 300)),
    ],
)
def test_how_a_node_ended_gives_the_reason_and_the_pause(
    state: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: str,
    code: int,
    network: str | None,
    why: str,
    pauses: tuple[int, int, int],
) -> None:
    monkeypatch.setattr(node, "network_failure", lambda _: network)
    ending = node._Ending.of(ended(said, code), node.Identity.read(state), False, 3.0)  # type: ignore[arg-type]
    assert why in ending.why
    assert (ending.pause(1), ending.pause(2), ending.pause(50)) == pauses
    assert not ending.steady


def test_every_pause_after_a_key_that_was_not_taken_is_longer_than_flower_holds_it(state: Path) -> None:
    from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL, HEARTBEAT_PATIENCE

    assert node.HELD > HEARTBEAT_PATIENCE * HEARTBEAT_DEFAULT_INTERVAL


def test_the_first_thing_that_does_not_work_on_the_way_is_the_reason(state: Path) -> None:
    assert "does not answer" in str(node.network_failure(node.Identity.read(state)))


def test_a_node_that_finds_nobody_says_why_and_gives_up_when_told_to(state: Path, tmp_path: Path) -> None:
    """For real: `lacuna-site run`, Flower's node and all."""
    command = [
        sys.executable,
        "-P",
        "-m",
        "client.cli",
        "run",
        "--state",
        str(state),
        "--cohort",
        str(tmp_path),
        "--give-up",
        "8",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == RunFailed.exit_code
    assert "RunFailed: site north: no contact in" in done.stderr
    assert "does not answer (Connection refused): the server may be down" in done.stderr
    assert "does not answer" in status(state).said
    assert not status(state).running


def cohort(folder: Path) -> Settings:
    return Settings(cohorts=(str(folder),))


def test_what_only_a_hand_here_can_mend_ends_it_at_once(state: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cohorts: none"):
        node.run(state, Settings())
    with pytest.raises(ConfigError, match="is no folder"):
        node.run(state, cohort(tmp_path / "none"))
    with pytest.raises(ConfigError, match="no site was made here"):
        node.run(tmp_path, cohort(tmp_path))
    key = state / "enrolment" / "site.key"
    key.chmod(0o644)
    with pytest.raises(ConfigError, match="mode 0644 lets others at it"):
        node.run(state, cohort(tmp_path))
    key.chmod(0o600)
    with node._alone(state), pytest.raises(ConfigError, match="a node runs with it already"):
        node.run(state, cohort(tmp_path))


# --- its records ----------------------------------------------------------------------------------------------------


def records(folder: Path, health: dict[str, object], contact: dict[str, object] | None = None) -> NodeStatus:
    (folder / "node").mkdir(exist_ok=True)
    (folder / HEALTH).write_text(json.dumps({"time": 1000.0, "pid": 1, "restarts": 2, "why": None, **health}))
    if contact is not None:
        (folder / CONTACT).write_text(json.dumps({"time": 1000.0, "pid": 2, **contact}))
    return status(folder, now=1005.0)


CONNECTED, IDLE = {"doing": "connected"}, {"doing": "idle"}
WORK = {"doing": "work", "run": "7", "round": "3", "what": "train"}


@pytest.mark.parametrize(
    ("health", "contact", "healthy", "doing", "says"),
    [
        (CONNECTED, IDLE, True, "connected", "connected, waits for work; the server answered 5 s ago"),
        (CONNECTED, WORK, True, "working", "works on round 3 of run 7 (train), since 5 s"),
        (CONNECTED, {**IDLE, "time": 700.0}, False, "silent", "the server last answered 5 minutes ago"),
        ({**CONNECTED, "why": "name: gone"}, {**IDLE, "time": 700.0}, False, "silent", "; name: gone"),
        ({"doing": "waiting", "why": "no key"}, None, False, "waiting", "no key"),
        ({"doing": "starting"}, None, False, "starting", "starting"),
        ({"doing": "connected", "time": 900.0}, {"doing": "idle"}, False, "ended", "the last one vanished 105 s ago"),
        ({"doing": "ended", "why": "was asked to stop"}, None, False, "ended", "ended 5 s ago: was asked to stop"),
    ],
)
def test_the_status_is_told_from_the_records(
    tmp_path: Path, health: dict[str, object], contact: dict[str, object] | None, healthy: bool, doing: str, says: str
) -> None:
    found = records(tmp_path, health, contact)
    assert (found.healthy, found.doing) == (healthy, doing)
    assert says in found.said


def test_a_record_that_is_not_whole_is_none(tmp_path: Path) -> None:
    assert status(tmp_path).doing == "absent"
    (tmp_path / "node").mkdir()
    (tmp_path / HEALTH).write_text('{"time": 1')
    assert status(tmp_path).doing == "absent"


def test_the_verb_is_quiet_and_gives_the_exit_code_for_a_health_check(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["status", "--state", str(tmp_path), "--quiet"])
    assert (done.exit_code, done.stdout) == (RunFailed.exit_code, "")
    records(tmp_path, {"doing": "connected", "time": time.time()}, {"doing": "idle", "time": time.time()})
    done = CliRunner().invoke(app, ["status", "--state", str(tmp_path)])
    assert (done.exit_code, done.stdout.endswith("2 restarts\n")) == (0, True)


def test_the_log_is_followed_into_its_next_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no node has run"):
        list(node_log.tail(tmp_path, 5))
    path = tmp_path / node_log.LOG
    path.parent.mkdir()
    path.write_text("one\ntwo\nthree\n")
    assert list(node_log.tail(tmp_path, 2)) == ["two", "three"]
    lines = node_log.tail(tmp_path, 1, follow=True, pause=0.01)
    assert next(lines) == "three"
    with path.open("a") as file:
        file.write("four\n")
    assert next(lines) == "four"
    os.replace(path, path.with_suffix(".log.1"))
    path.write_text("five\n")
    assert next(lines) == "five"
    lines.close()


# --- its settings ---------------------------------------------------------------------------------------------------


def test_the_settings_are_the_files_and_what_is_said_goes_first(tmp_path: Path) -> None:
    assert load(tmp_path) == Settings()
    (tmp_path / "site.toml").write_text('[site]\ncohorts = ["/data"]\ndevice = "cpu"\n[policy]\nanything = 1\n')
    found = load(tmp_path)
    assert (found.cohorts, found.device) == (("/data",), "cpu")
    assert found.having({"device": "cuda", "cohorts": None}) == Settings(cohorts=("/data",), device="cuda")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[site]\ncohort = 1\n", "site.cohort=1: unknown key"),
        ("[sites]\n", r"\[sites\] is unknown"),
        ("site = 3\n", "site must be a table"),
        ("[site]\ndevice = 'tpu'\n", "device='tpu': must be one of auto, cpu, cuda"),
        ("[site\n", "can't be read"),
    ],
)
def test_a_setting_that_is_wrong_is_named_with_its_file(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "site.toml").write_text(text)
    with pytest.raises(ConfigError, match=says) as error:
        load(tmp_path)
    assert "site.toml" in str(error.value)


def test_a_check_is_one_line() -> None:
    check = reach.Check(name="clock", status="warn", found="40 s behind", remedy="set it")
    assert check.line() == "clock: 40 s behind: set it"
