"""Who has a copy of the coordinator's folder or a site's has no key, where there is a passphrase; that is nowhere."""

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from typer.testing import CliRunner

from client.site.enrol import NEXT_KEY, init_site
from client.site.keys import OPENED, opened, own_key
from server.cli.cli import app
from server.federation import federation as disk
from server.federation import provision, rotation
from server.federation.provision import NewFederation
from shared.base.errors import ConfigError
from shared.trust import passphrase
from shared.trust.keys import fingerprint, is_encrypted, read_signing_key
from shared.trust.warrant import OWN_KEY

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
NOW = datetime.now(UTC)
WORD = "correct horse battery staple"
SECRET = re.compile(r"passw|secret|token|credential|//[^/]*:[^/]*@|-key=|_key=", re.IGNORECASE)
KEYS = (disk.CA_KEY, disk.SIGNING_KEY)


@pytest.fixture
def word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "word"
    path.touch(mode=0o600)
    path.write_text(f"{WORD}\n")
    monkeypatch.setenv(passphrase.FILE_VARIABLE, str(path))
    return path


@pytest.fixture
def federation(tmp_path: Path) -> Path:
    new = NewFederation(
        name="strokes",
        address="fl.test:443",
        modalities=["T1", "T2"],
        methods=["amm_diff"],
        passphrase=WORD.encode(),
    )
    assert WORD not in repr(new)
    provision.init(tmp_path / "federation", new, now=NOW)
    return tmp_path / "federation"


def test_a_stolen_folder_holds_no_key_that_can_be_read(federation: Path) -> None:
    for name in KEYS:
        content = (federation / name).read_bytes()
        assert is_encrypted(content)
        with pytest.raises(TypeError, match="encrypted"):
            serialization.load_pem_private_key(content, password=None)
        with pytest.raises(ValueError, match=r".*"):
            serialization.load_pem_private_key(content, password=b"correct horse battery stapl")
    assert all(WORD.encode() not in path.read_bytes() for path in federation.rglob("*") if path.is_file())


def test_without_the_passphrase_nothing_is_signed_and_the_line_says_what_to_do(
    federation: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(passphrase.FILE_VARIABLE, raising=False)
    before = {path: path.read_bytes() for path in federation.rglob("*") if path.is_file()}
    for verb in (
        lambda: read_signing_key(federation / disk.SIGNING_KEY),
        lambda: rotation.rotate_server(federation, now=NOW),
        lambda: rotation.rotate_signing(federation),
        lambda: rotation.rotate_ca(federation, now=NOW),
    ):
        with pytest.raises(ConfigError, match="is encrypted, and nobody is here to be asked; LACUNA_PASSPHRASE_FILE"):
            verb()
    assert before == {path: path.read_bytes() for path in before}


def test_another_passphrase_opens_nothing(federation: Path, word: Path) -> None:
    word.write_text("correct horse battery stapler\n")
    with pytest.raises(ConfigError, match="the passphrase is another"):
        read_signing_key(federation / disk.SIGNING_KEY)


@pytest.mark.usefixtures("word")
def test_with_it_keys_are_renewed_and_stay_encrypted(federation: Path) -> None:
    before = {name: (federation / name).read_bytes() for name in KEYS}
    rotation.rotate_signing(federation)
    rotation.rotate_ca(federation, now=NOW)
    rotation.rotate_server(federation, now=NOW)
    for name in KEYS:
        content = (federation / name).read_bytes()
        assert is_encrypted(content)
        assert content != before[name]
    read_signing_key(federation / disk.SIGNING_KEY)
    assert not is_encrypted((federation / disk.SERVER_KEY).read_bytes())  # nobody sits beside a proxy that restarts


@pytest.mark.parametrize(("content", "mode"), [(WORD, 0o644), ("short", 0o600), ("two lines\nof a passphrase", 0o600)])
def test_a_passphrase_that_others_can_read_or_guess_is_refused(
    federation: Path, word: Path, content: str, mode: int
) -> None:
    word.write_text(content)
    word.chmod(mode)
    with pytest.raises(ConfigError, match=r"passphrase .*(lets others at it|one line of 12 characters or more)"):
        read_signing_key(federation / disk.SIGNING_KEY)


def test_init_takes_a_passphrase_from_a_file_and_from_no_flag(
    tmp_path: Path, word: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["federation", "init", str(tmp_path / "f"), "--name", "strokes", "--address", "fl.test:443"]
    words += ["--modality", "T1", "--modality", "T2", "--method", "amm_diff", "--passphrase"]
    monkeypatch.setenv("COLUMNS", "200")
    assert CliRunner().invoke(app, [*words, WORD]).exit_code != 0  # it takes no value
    assert not (tmp_path / "f").exists()
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.exception
    assert WORD not in done.output
    assert all(is_encrypted((tmp_path / "f" / name).read_bytes()) for name in KEYS)


# --- who sees them ----------------------------------------------------------------------------------------------------


def seen(service: dict[str, object]) -> dict[str, str]:
    """What of the federation's folder is mounted where."""
    mounts = service.get("volumes", [])
    assert isinstance(mounts, list)
    return {m["target"]: str(m["source"]) for m in mounts if isinstance(m, dict) and m["type"] == "bind"}


def test_the_verbs_that_need_no_ca_do_not_see_its_key() -> None:
    services = yaml.safe_load((DEPLOY / "server.compose.yaml").read_text())["services"]
    whole = [name for name, service in services.items() if "/srv/federation" in seen(service)]
    assert sorted(whole) == ["coordinator", "keeper"]
    hidden = {target for target, source in seen(services["coordinator"]).items() if source == "/dev/null"}
    assert hidden == {f"/srv/federation/{name}" for name in (disk.CA_KEY, disk.SERVER_KEY)}
    for name, service in services.items():
        for source in seen(service).values():
            assert not source.endswith(("/ca", "/signing", "/signing.key", "/ca.key")), name
    assert [name for name, s in services.items() if any(t[-7:] == "/server" for t in seen(s).values())] == [
        "superlink",
        "proxy",
    ]


@pytest.mark.parametrize("name", ["server.compose.yaml", "site.compose.yaml"])
def test_no_secret_stands_in_an_environment_or_on_a_command_line(name: str) -> None:
    """A variable or a flag of that name may say where a file is, and nothing else."""
    said = []
    for service in yaml.safe_load((DEPLOY / name).read_text())["services"].values():
        words = [f"{key}={value}" for key, value in service.get("environment", {}).items()]
        words += [*service.get("command", []), *service.get("entrypoint", [])]
        said += [word for word in words if SECRET.search(word)]
    assert [word for word in said if not re.search(r"=/(etc|srv|state|run)/", word)] == []


# --- a site's


def test_a_stolen_state_holds_no_key_that_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    init_site(tmp_path / "north", "north", word=WORD.encode())
    content = (tmp_path / "north" / OWN_KEY).read_bytes()
    assert is_encrypted(content)
    for wrong in (None, b"correct horse battery stapl"):
        with pytest.raises((TypeError, ValueError), match=r".*"):
            serialization.load_pem_private_key(content, password=wrong)
    files = [path for path in (tmp_path / "north").rglob("*") if path.is_file()]
    assert all(WORD.encode() not in path.read_bytes() for path in files)
    monkeypatch.delenv(passphrase.FILE_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match=f"is encrypted, and nobody is here.*{passphrase.FILE_VARIABLE}"):
        own_key(tmp_path / "north")


def test_a_sites_verbs_and_a_second_key_work_with_the_passphrase(tmp_path: Path, word: Path) -> None:
    state = tmp_path / "north"
    made = init_site(state, "north", word=WORD.encode())
    assert fingerprint(own_key(state).public_key()) == made.fingerprint
    init_site(state, "north", again=True, word=WORD.encode())
    assert is_encrypted((state / NEXT_KEY).read_bytes())
    word.write_text("another passphrase\n")
    with pytest.raises(ConfigError, match=r"site\.key: the passphrase is another, or the file was damaged"):
        own_key(state)


def test_the_node_opens_its_key_in_memory_and_nowhere_else(
    tmp_path: Path, word: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower's node and every worker read it there, and it is gone with the process that opened it."""
    state = tmp_path / "north"
    made = init_site(state, "north", word=WORD.encode())
    with opened(state / OWN_KEY) as path:
        assert path.stat().st_mode & 0o777 == 0o600
        for _ in range(2):  # each reads it from the beginning
            assert path.read_bytes().startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----")
        monkeypatch.setenv(OPENED, str(path))
        word.unlink()  # the workers need no passphrase
        assert fingerprint(own_key(state).public_key()) == made.fingerprint
        assert not any(b"OPENSSH" in one.read_bytes() for one in state.rglob("*") if one.is_file())
    with pytest.raises(ConfigError, match="missing"):
        own_key(state)


def test_a_key_without_a_passphrase_is_read_where_it_lies(tmp_path: Path) -> None:
    init_site(tmp_path / "north", "north")
    with opened(tmp_path / "north" / OWN_KEY) as path:
        assert path == tmp_path / "north" / OWN_KEY
