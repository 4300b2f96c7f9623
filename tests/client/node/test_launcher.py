"""`lacuna-site up`: the engine is asked for what the compose file says, and each thing that is missing is named."""

import os
import socket
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from docker.errors import APIError, ImageNotFound, NotFound
from support.flower.federations import enter, make
from typer.testing import CliRunner

from client.cli.cli import app
from client.node import container, gate, launcher
from client.site.settings import Settings
from server.federation.federation import OWN_NAMES
from shared.base.errors import ConfigError, RunFailed
from shared.base.names import Address
from shared.trust import kit
from shared.trust.passphrase import FILE_VARIABLE

ADDRESS = Address(host="fl.example.org", port=443)
VALUES = {"LACUNA_IMAGE": "lacuna-client:1", "LACUNA_STATE": "/srv/state", "LACUNA_USER": "10001:10001"}


def texts() -> dict[str, str]:
    return {name: content.decode() for name, content in kit.site_files("north", "strokes", ADDRESS).items()}


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("launcher")
    enter(make(folder / "federation"), folder / "north", "north")
    return folder / "north"


# --- one description --------------------------------------------------------------------------------------------------


def test_every_word_of_the_compose_file_reaches_the_engine() -> None:
    found = container.read(texts()[kit.COMPOSE], VALUES, ["/data/strokes"], gpu=None).site
    service = yaml.safe_load(texts()[kit.COMPOSE])["services"]["site"]
    assert set(service) == set(container._OPTIONS) | container._OTHERS  # nothing is known that is not there, or reverse
    for same in ("entrypoint", "command", "environment", "cap_drop", "security_opt", "pids_limit", "read_only", "init"):
        assert found.options[same] == service[same]
    assert found.image == "lacuna-client:1"
    assert found.options["user"] == "10001:10001"
    assert found.options["mem_limit"] == "16g"
    assert found.options["restart_policy"] == {"Name": "unless-stopped"}
    assert found.options["tmpfs"] == {"/tmp": "mode=1777,size=1g"}
    assert found.options["healthcheck"]["test"] == service["healthcheck"]["test"]
    assert found.options["healthcheck"]["interval"] == 30 * 10**9
    assert found.logging == service["logging"]
    assert [(bind.source, bind.target, bind.read_only) for bind in found.binds] == [
        ("/srv/state", "/state", False),
        ("/srv/state/enrolment", "/state/enrolment", True),
        ("/srv/state/federation", "/state/federation", True),
        ("/data/strokes", "/cohort", True),
    ]
    assert (found.grace, found.devices) == (30, ())


def test_the_site_is_in_a_network_that_leads_to_its_gate_alone() -> None:
    found = container.read(texts()[kit.COMPOSE], VALUES, ["/a"], gpu=None)
    alone = found.networks["alone"]
    assert (alone.internal, alone.options) == (True, {"com.docker.network.bridge.inhibit_ipv4": "true"})
    assert (found.site.networks, found.site.links) == (("alone",), {"fl.example.org": "gate"})
    assert found.site.options["dns"] == ["127.0.0.1"]
    assert found.site.options["environment"]["LACUNA_GATE"] == "fl.example.org"
    (door,) = found.gates.values()
    assert (door.networks, door.options["command"], door.binds) == (("alone", "outside"), ["fl.example.org:443"], ())
    for part in (found.site, door):
        assert (part.image, part.options["user"]) == ("lacuna-client:1", "10001:10001")
        assert (part.options["read_only"], part.options["cap_drop"]) == (True, ["ALL"])


def test_a_pacs_has_a_gate_of_its_own_and_one_host_has_one() -> None:
    named = ["pacs.example:443", "10.0.0.5:104", "pacs.example:11112", "fl.example.org:8080", "pacs.example:443"]
    pacs = [Address.parse(word, "pacs") for word in named]
    found = container.read(texts()[kit.COMPOSE], VALUES, ["/a"], gpu=texts()[kit.GPU], pacs=pacs)
    assert {name: door.options["command"] for name, door in found.gates.items()} == {
        "gate": ["fl.example.org:443", "fl.example.org:8080"],
        "gate2": ["pacs.example:443", "pacs.example:11112"],
        "gate3": ["10.0.0.5:104"],
    }
    assert found.site.links == {"fl.example.org": "gate", "pacs.example": "gate2", "ip-10-0-0-5": "gate3"}
    assert found.site.devices
    assert not any(door.devices for door in found.gates.values())


def test_the_passphrase_of_the_key_is_a_file_that_the_site_sees_and_the_gate_does_not() -> None:
    found = container.read(texts()[kit.COMPOSE], VALUES, ["/a"], gpu=None, word="/run/secrets/word")
    assert found.site.options["environment"][FILE_VARIABLE] == container.WORD
    bind = found.site.binds[-1]
    assert (bind.source, bind.target, bind.read_only) == ("/run/secrets/word", container.WORD, True)
    assert found.gates["gate"].binds == ()
    assert FILE_VARIABLE not in found.gates["gate"].options["environment"]


def test_a_server_without_a_name_is_called_by_one_that_its_certificate_has() -> None:
    files = kit.site_files("north", "strokes", Address(host="203.0.113.7", port=443))
    found = container.read(files[kit.COMPOSE].decode(), VALUES, ["/a"], gpu=None)
    assert found.site.links == {"superlink": "gate", "ip-203-0-113-7": "gate"}
    assert "superlink" in OWN_NAMES
    environment = found.site.options["environment"]
    assert str(gate.reached(Address(host="203.0.113.7", port=443), environment)) == "superlink:443"
    assert found.gates["gate"].options["command"] == ["203.0.113.7:443"]


def test_a_second_cohort_is_mounted_as_the_first_is() -> None:
    found = container.read(texts()[kit.COMPOSE], VALUES, ["/a", "/b"], gpu=None).site
    assert [(bind.source, bind.target, bind.read_only) for bind in found.binds[3:]] == [
        ("/a", "/cohort", True),
        ("/b", "/cohort-2", True),
    ]
    assert found.options["command"] == ["run", "--state", "/state", "--cohort", "/cohort", "--cohort", "/cohort-2"]


def test_a_gpu_is_asked_for_as_gpu_yaml_does() -> None:
    with_gpu = container.read(texts()[kit.COMPOSE], VALUES, ["/a"], gpu=texts()[kit.GPU])
    assert with_gpu.site.devices == ({"driver": "nvidia", "count": -1, "capabilities": [["gpu"]]},)
    without = container.read(texts()[kit.COMPOSE], VALUES, ["/a"], gpu=None)
    assert with_gpu.digest != without.digest == container.read(texts()[kit.COMPOSE], VALUES, ["/a"], gpu=None).digest


COHORT_BIND = "type: bind\n        source: ${LACUNA_COHORT"
TMPFS = "    tmpfs:\n      - /tmp:mode=1777,size=1g"
CHANGES = (  # of the compose file's text, and what is said then
    (
        TMPFS,
        "    privileged: true",
        "privileged: `lacuna-site up` does not know it",
    ),
    ("pull_policy: never", "pull_policy: always", "pull_policy must be never"),
    (COHORT_BIND, COHORT_BIND.replace("bind", "volume"), "/cohort: must be a bind"),
    ("create_host_path: false", "create_host_path: true", "/state: must be a bind"),
    ("interval: 30s", "interval: soon", "'soon': must be a time"),
    ("    internal: true", "    external: true", "networks: .*not known"),
    ("  gate:\n    <<", "  gates:\n    <<", "services: site, gates: must be site and gate"),
)


@pytest.mark.parametrize(("old", "new", "says"), CHANGES)
def test_a_word_that_is_not_known_is_an_error_and_not_left_out(old: str, new: str, says: str) -> None:
    before = texts()[kit.COMPOSE]
    assert old in before
    with pytest.raises(ConfigError, match=says):
        container.read(before.replace(old, new), VALUES, ["/a"], gpu=None)


def test_what_compose_calls_missing_is_missing_here() -> None:
    with pytest.raises(ConfigError, match="LACUNA_IMAGE: missing; it is the client image of this hospital"):
        container.read(texts()[kit.COMPOSE], {**VALUES, "LACUNA_IMAGE": ""}, ["/a"], gpu=None)


def test_a_state_that_belongs_to_root_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert container.owner(tmp_path) == f"{os.getuid()}:{os.getgid()}" if os.getuid() else True
    root = SimpleNamespace(st_uid=0, st_gid=0, st_mode=stat.S_IFDIR | 0o700)
    monkeypatch.setattr(Path, "stat", lambda self, **_: root)
    with pytest.raises(ConfigError, match="belongs to root, and the site never runs as root"):
        container.owner(tmp_path)


# --- no engine, for real ----------------------------------------------------------------------------------------------


def asked(state: Path, tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("DOCKER_HOST", engine)
    words = ["up", "--state", str(state), "--cohort", str(tmp_path), "--image", "lacuna-client:1"]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, ConfigError)
    return str(done.exception)


def test_without_an_engine_the_line_says_what_to_do(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = asked(state, tmp_path, f"unix://{tmp_path}/none.sock", monkeypatch)
    assert said.startswith("docker: no engine answers")
    assert "`lacuna-site run`" in said
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert asked(state, tmp_path, f"tcp://127.0.0.1:{port}", monkeypatch).startswith("docker: no engine answers")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead.sock"))  # there, and nobody listens
        assert asked(state, tmp_path, f"unix://{tmp_path}/dead.sock", monkeypatch).startswith(
            "docker: no engine answers"
        )


def test_a_closed_socket_is_told_from_a_missing_engine() -> None:
    closed = launcher._no_engine("unix:///var/run/docker.sock", PermissionError(13, "Permission denied"))
    assert "closed to this user" in closed
    assert "group `docker`" in closed


# --- an engine that has not what is needed ----------------------------------------------------------------------------


class Engine:
    """As much of docker's as `up` asks for; the site's own container does not start."""

    def __init__(self, error: str) -> None:
        self.error, self.asked, self.there = error, {}, []
        self.api = SimpleNamespace(api_version="1.45")
        self.containers = SimpleNamespace(create=self.create, list=lambda **_: list(self.there), get=self.get)
        self.networks = SimpleNamespace(create=self.network, list=lambda **_: list(self.nets), get=self.network)
        self.nets: list[Any] = []

    def network(self, name: str, **asked: Any) -> Any:
        found = SimpleNamespace(name=name, connect=lambda _: None)
        if asked:
            self.asked[name] = asked
            self.nets.append(found)
        found.remove = lambda: self.nets.remove(found)
        return found

    def create(self, image: str, name: str, **asked: Any) -> Any:
        self.asked[name] = asked
        made = SimpleNamespace(id=name, name=name, stop=lambda timeout: None, start=lambda: self.start(name))
        made.remove = lambda force: self.there.remove(made)
        self.there.append(made)
        return made

    def start(self, name: str) -> None:
        if "-site-" in name:
            raise APIError("500 Server Error", explanation=self.error)

    def get(self, name: str) -> Any:
        raise NotFound(name)


def test_an_engine_without_gpu_is_told_so_and_nothing_is_left() -> None:
    wanted = container.read(texts()[kit.COMPOSE], VALUES, ["/a"], gpu=texts()[kit.GPU])
    engine = Engine('could not select device driver "nvidia" with capabilities: [[gpu]]')
    with pytest.raises(ConfigError, match=r"gpu: this engine gives none.*--gpu none"):
        launcher._start(engine, "north", wanted, SimpleNamespace(id="sha256:1"))
    assert (engine.there, engine.nets) == ([], [])
    assert engine.asked["lacuna-site-north"]["device_requests"][0]["Driver"] == "nvidia"
    assert engine.asked["lacuna-site-north"]["device_requests"][0]["Count"] == -1
    assert engine.asked["lacuna-gate-north"]["device_requests"] == []
    assert engine.asked["lacuna-alone-north"]["internal"] is True


@pytest.mark.parametrize(
    ("info", "wanted", "gets"),
    [
        ({"Runtimes": {"runc": {}}}, "auto", False),
        ({"Runtimes": {"runc": {}, "nvidia": {}}}, "auto", True),
        ({"DiscoveredDevices": [{"ID": "nvidia.com/gpu=all"}]}, "auto", True),
        ({"Runtimes": {"runc": {}, "nvidia": {}}}, "none", False),
        ({"Runtimes": {}}, "all", True),  # asked for: the engine itself must say no
    ],
)
def test_a_gpu_is_taken_where_the_engine_has_one(info: dict[str, Any], wanted: str, gets: bool) -> None:
    found, notes = launcher._gpu(SimpleNamespace(info=lambda: info), wanted)
    assert found is gets
    assert bool(notes) == (wanted == "auto" and not gets)


def test_an_image_is_never_fetched() -> None:
    def none(_: str) -> None:
        raise ImageNotFound("no such image")

    with pytest.raises(ConfigError, match=r"image=lacuna-client:1: is not here, and none is fetched"):
        launcher._image(SimpleNamespace(images=SimpleNamespace(get=none)), "lacuna-client:1")


def test_a_container_that_ended_is_told_by_its_own_last_line() -> None:
    stopped: list[int] = []
    found = SimpleNamespace(
        name="lacuna-site-north",
        attrs={"State": {"ExitCode": 2, "OOMKilled": False}},
        logs=lambda tail: b"starting\nConfigError: site key: mode 0640 lets others at it\n",
        stop=lambda timeout: stopped.append(timeout),
    )
    with pytest.raises(RunFailed, match="exit code 2: ConfigError: site key: mode 0640"):
        launcher._ended(found)
    assert stopped
    found.attrs["State"]["OOMKilled"] = True
    with pytest.raises(RunFailed, match="was ended for memory"):
        launcher._ended(found)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("gpu", "some"),
        ("memory", "much"),
        ("image", "-rm"),
        ("device", "tpu"),
        ("cohorts", ("data",)),
        ("cohorts", ("/a:b",)),
        ("pacs", ("https://pacs.example",)),
        ("passphrase", "word"),
    ],
)
def test_a_wrong_setting_is_named(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{key}="):
        Settings(**{key: value})
