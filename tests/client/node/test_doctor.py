"""`lacuna-site doctor`: each thing that is wrong is a line that says what to do, and gives its exit code."""

import http.server
import json
import shutil
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from support.cohort.worlds import prepare_here, write_cohort
from support.flower.federations import NOW, enter, make, tls_server
from typer.testing import CliRunner

from client.cli.cli import app
from client.node import doctor, reach
from client.node.reach import Check
from server.federation.federation import SERVER, SERVER_KEY
from shared.base.errors import ConfigError, DataError, RunFailed
from shared.base.names import Address


@contextmanager
def health_server(federation: Path, *, status: int = 200, ahead: float = 0.0) -> Iterator[int]:
    """Over the federation's TLS; its clock is `ahead` seconds before ours."""

    class Health(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(status)
            self.send_header("Date", format_datetime(datetime.now(UTC) + timedelta(seconds=ahead), usegmt=True))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Health)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(federation / SERVER, federation / SERVER_KEY)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("doctor") / "federation", address="localhost:1")


@pytest.fixture(scope="module")
def joined(federation: Path) -> Path:
    enter(federation, federation.parent / "north", "north")
    (federation.parent / "north").chmod(0o700)
    return federation.parent / "north"


@pytest.fixture
def state(joined: Path, tmp_path: Path) -> Path:
    shutil.copytree(joined, tmp_path / "north")
    return tmp_path / "north"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_cohort(tmp_path_factory.mktemp("data") / "strokes", "north", [["T1", "FLAIR"]] * 4 + [["T1"]] * 2)
    prepare_here(folder)
    return folder


def look(federation: Path, port: int, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> list[Check]:
    authorities = (federation / "ca" / "ca.crt").read_bytes()
    return reach.look(Address(host="localhost", port=port), authorities, now=now)


def last(checks: list[Check]) -> tuple[str, str, str, str]:
    return checks[-1].name, checks[-1].status, checks[-1].found, checks[-1].remedy


# --- the way to the server --------------------------------------------------------------------------------------------


def test_a_well_server_is_found_so_step_by_step(federation: Path) -> None:
    with health_server(federation) as port:
        found = look(federation, port)
    assert [(check.name, check.status) for check in found] == [
        (name, "ok") for name in ("name", "tcp", "tls", "health", "clock")
    ]


@pytest.mark.parametrize(
    ("ahead", "status"), [(0, "ok"), (-20, "ok"), (45, "warn"), (-45, "warn"), (400, "fail"), (-400, "fail")]
)
def test_the_clock_is_compared_with_the_servers(federation: Path, ahead: int, status: str) -> None:
    with health_server(federation, ahead=ahead) as port:
        name, found_status, found, remedy = last(look(federation, port))
    assert (name, found_status) == ("clock", status)
    assert ("behind" if ahead > 0 else "ahead of") in found or ahead == 0
    assert bool(remedy) == (status != "ok")


def test_each_thing_between_here_and_the_server_has_its_own_line(
    federation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authorities = (federation / "ca" / "ca.crt").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", _unknown)
        unknown = reach.look(Address(host="fl.example.invalid", port=443), authorities)
    assert last(unknown)[:3] == ("name", "fail", "fl.example.invalid is unknown (Name or service not known)")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert last(look(federation, port))[:2] == ("tcp", "fail")
    other = make(tmp_path / "other")
    with health_server(other) as port:
        name, status, found, remedy = last(look(federation, port))
        assert (name, status) == ("tls", "fail")
        assert "another CA than the federation's" in remedy
    with health_server(federation) as port:
        elsewhere = reach.look(Address(host="127.0.0.2", port=port), authorities)
        assert last(elsewhere)[:2] in [("tcp", "fail"), ("tls", "fail")]  # no certificate for that address
    with health_server(federation, status=502) as port:
        name, status, found, _ = last(look(federation, port)[:-1])
        assert (name, status, found) == ("health", "fail", "/health answers 502")
    with tls_server(federation / SERVER, federation / SERVER_KEY) as port:  # speaks TLS, but no HTTP
        assert last(look(federation, port))[:2] == ("health", "fail")


def _unknown(*_: object, **__: object) -> None:
    raise socket.gaierror(-2, "Name or service not known")


def test_an_expired_certificate_asks_for_the_clock_first(tmp_path: Path) -> None:
    old = make(tmp_path / "old", now=NOW - timedelta(days=3 * 365))  # the server's holds for two years
    with health_server(old) as port:
        name, status, found, remedy = last(look(old, port))
    assert (name, status) == ("tls", "fail")
    assert "expired" in found
    assert remedy.startswith("the clock here says")


# --- the whole --------------------------------------------------------------------------------------------------------


def by_name(checks: list[Check]) -> dict[str, list[Check]]:
    found: dict[str, list[Check]] = {}
    for check in checks:
        found.setdefault(check.name, []).append(check)
    return found


def test_a_site_that_is_well_says_so_and_names_no_subject(state: Path, cohort: Path) -> None:
    checks = doctor.examine(state, [cohort], offline=True)
    assert doctor.error_of(checks) is None
    found = by_name(checks)
    assert found["data"][0].found == "strokes, 16x16: 6 subjects, 4 to train on; has T1 6, FLAIR 4" or (
        "6 subjects" in found["data"][0].found and "T1 6" in found["data"][0].found
    )
    assert {
        "state",
        "settings",
        "kit",
        "key",
        "certificates",
        "version",
        "data",
        "disk",
        "memory",
        "gpu",
        "node",
    } == set(found)
    assert "secret" not in json.dumps([check.line() for check in checks])  # subjects are called so


def break_key_mode(state: Path) -> None:
    (state / "enrolment" / "site.key").chmod(0o640)


def break_key(state: Path) -> None:
    from shared.trust.keys import new_site_key

    (state / "enrolment" / "site.key").write_bytes(new_site_key())


def break_manifest(state: Path) -> None:
    path = state / "federation" / "federation.json"
    path.write_bytes(path.read_bytes().replace(b'"quorum": 2', b'"quorum": 3'))


def break_settings(state: Path) -> None:
    (state / "site.toml").write_text('[site]\ncohort = "/data"\n')


def leave(state: Path) -> None:
    shutil.rmtree(state / "federation")


@pytest.mark.parametrize(
    ("harm", "name", "says"),
    [
        (break_key_mode, "key", "mode 0640 lets others at it"),
        (break_key, "key", "is not the one that the kit was made for"),
        (break_manifest, "kit", "does not fit federation.json: one of them was changed"),
        (break_settings, "settings", "site.cohort='/data': unknown key"),
        (leave, "kit", "none is joined"),
    ],
)
def test_what_is_wrong_with_the_state_is_a_line_with_what_to_do(
    state: Path, cohort: Path, harm: Callable[[Path], None], name: str, says: str
) -> None:
    harm(state)
    checks = doctor.examine(state, [cohort], offline=True)
    failed = [check for check in checks if check.status == "fail"]
    assert [check.name for check in failed] == [name]
    assert says in failed[0].found
    assert failed[0].remedy
    assert isinstance(doctor.error_of(checks), ConfigError)


def test_certificates_are_warned_of_and_then_fail(state: Path, cohort: Path) -> None:
    for days, status in ((3600, "ok"), (3630, "warn"), (3700, "fail")):
        moment = NOW + timedelta(days=days)
        (found,) = by_name(doctor.examine(state, [cohort], offline=True, now=lambda: moment))["certificates"]  # noqa: B023
        assert found.status == status


def test_data_that_cant_be_used_is_a_data_error(state: Path, cohort: Path, tmp_path: Path) -> None:
    for folders, says in (
        ([], "no cohort is named"),
        ([tmp_path / "none"], "is no folder"),
        ([tmp_path], "is not prepared"),
    ):
        checks = doctor.examine(state, folders, offline=True)
        (found,) = by_name(checks)["data"]
        assert (found.status, says in found.found) == ("fail", True)
        assert isinstance(doctor.error_of(checks), DataError)
    broken = shutil.copytree(cohort, tmp_path / "broken")
    next(broken.glob("derivatives/lacuna/*/*/vol.npy")).unlink()
    (found,) = by_name(doctor.examine(state, [broken], offline=True))["data"]
    assert "missing or changed" in found.found
    assert "secret" not in found.line()


def test_memory_and_disk_are_measured_against_what_a_round_needs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for free, status in ((64e9, "ok"), (5e9, "warn"), (1e9, "fail")):
        assert doctor._memory(free).status == status
    assert doctor._available_memory() > 0
    usage = shutil.disk_usage(tmp_path)._replace(free=10**8)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    (found,) = doctor._disk(tmp_path)
    assert found.status == "fail"


def test_the_verb_gives_the_exit_code_of_what_failed(state: Path, cohort: Path) -> None:
    words = ["doctor", "--state", str(state), "--cohort", str(cohort)]
    done = CliRunner().invoke(app, [*words, "--offline", "--json"])
    assert done.exit_code == 0
    assert {entry["status"] for entry in json.loads(done.stdout)} <= {"ok", "warn"}
    done = CliRunner().invoke(app, words)  # nobody is at port 1
    assert isinstance(done.exception, RunFailed)
    assert "FAIL  tcp           localhost:1 does not answer" in done.stdout
    assert "-> the server may be down" in done.stdout
    assert str(done.exception).startswith("doctor: 1 of ")
