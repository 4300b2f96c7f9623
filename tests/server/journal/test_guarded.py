"""MLflow asks for a password, and the one in the federation's folder is it; none stands in an environment or a flag."""

import asyncio
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from server.federation import federation as disk
from server.federation import provision
from server.journal.guarded import guard, read_password
from shared.base.errors import ConfigError

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("f") / "federation"
    new = provision.NewFederation(name="strokes", address="fl.test:443", modalities=["T1", "T2"], methods=["amm_diff"])
    provision.init(folder, new, now=datetime.now(UTC))
    return folder


class Behind:
    """What a request reaches that is let through."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.seen.append((scope["type"], scope.get("path", "")))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"figures"})


def ask(wanted: bytes, path: str, auth: tuple[str, str] | None = None, header: str = "") -> tuple[int, list[Any]]:
    behind = Behind()

    async def once() -> int:
        transport = httpx.ASGITransport(app=guard(behind, wanted))
        async with httpx.AsyncClient(transport=transport, base_url="http://mlflow:5000") as client:
            headers = {"Authorization": header} if header else {}
            return (await client.get(path, auth=auth, headers=headers)).status_code

    return asyncio.run(once()), behind.seen


PATHS = ["/", "/ajax-api/2.0/mlflow/runs/search", "/health/", "/health/x", "//health", "/HEALTH", "/version"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("auth", "header"),
    [
        (None, ""),
        (("lacuna", ""), ""),
        (("lacuna", "wrong"), ""),
        (("admin", "password1234"), ""),
        (None, "Bearer x"),
        (None, "Basic"),
        (None, "basic x"),
    ],
)
def test_nothing_of_mlflow_sees_a_request_without_the_password(
    federation: Path, path: str, auth: tuple[str, str] | None, header: str
) -> None:
    status, seen = ask(read_password(federation / disk.MLFLOW), path, auth, header)
    assert (status, seen) == (401, [])


def test_with_the_password_and_for_its_health_it_answers(federation: Path) -> None:
    wanted = read_password(federation / disk.MLFLOW)
    name, password = re.findall(r"= (\S+)", (federation / disk.MLFLOW).read_text())
    assert ask(wanted, "/", (name, password)) == (200, [("http", "/")])
    assert ask(wanted, "/health") == (200, [("http", "/health")])


def test_a_websocket_without_the_password_is_closed() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    behind = Behind()
    scope = {"type": "websocket", "path": "/health", "headers": []}
    asyncio.run(guard(behind, b"Basic x")(scope, None, send))  # type: ignore[arg-type]
    assert (sent, behind.seen) == ([{"type": "websocket.close", "code": 1008}], [])


def test_mlflows_own_client_reads_the_same_file(federation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.utils import credentials

    monkeypatch.setattr(credentials, "_get_credentials_path", lambda: str(federation / disk.MLFLOW))
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    found = credentials.read_mlflow_creds()
    name, password = re.findall(r"= (\S+)", (federation / disk.MLFLOW).read_text())
    assert (found.username, found.password) == (name, password)


def test_passwords_are_long_their_owners_and_another_each_time(federation: Path, tmp_path: Path) -> None:
    new = provision.NewFederation(name="strokes", address="fl.test:443", modalities=["T1", "T2"], methods=["amm_diff"])
    provision.init(tmp_path / "again", new, now=datetime.now(UTC))
    for name in (disk.MLFLOW, disk.POSTGRES, disk.PGPASS):
        assert (federation / name).read_text() != (tmp_path / "again" / name).read_text()
        assert len(re.findall(r"[0-9a-f]{48}", (federation / name).read_text())) == 1
    modes = [(federation / name).stat().st_mode & 0o777 for name in (disk.MLFLOW, disk.PGPASS)]
    assert modes == [0o600, 0o600]
    assert os.stat(federation).st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "content", ["", "[mlflow]\n", "[mlflow]\nmlflow_tracking_username = a\nmlflow_tracking_password = short\n"]
)
def test_a_password_that_is_none_starts_no_server(content: str, tmp_path: Path) -> None:
    path = tmp_path / "mlflow"
    path.touch(mode=0o600)
    path.write_text(content)
    with pytest.raises(ConfigError, match="mlflow's password"):
        read_password(path)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="lets others at it"):
        read_password(path)


def test_no_secret_stands_in_an_environment_or_a_flag_of_the_server() -> None:
    services = yaml.safe_load((DEPLOY / "server.compose.yaml").read_text())["services"]
    for name, service in services.items():
        told = [*map(str, service.get("command", [])), *(f"{k}={v}" for k, v in service.get("environment", {}).items())]
        secret = [word for word in told if re.search(r"(?i)password|secret|token|PGPASS\w*=(?!/)", word)]
        assert secret == [], name
    assert services["mlflow"]["command"][0] == "--app-name=lacuna"
