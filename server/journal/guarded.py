"""MLflow's server behind a password: what `mlflow server --app-name lacuna` runs in its container.

Every request says the name and the password of one file, which is the one that MLflow's own client reads; nothing of
MLflow sees one that does not. Asking whether it is well needs none.
"""

import base64
import configparser
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any, TypeAlias

from shared.base.errors import ConfigError
from shared.base.files import read_secret

PASSWORD = Path("/etc/lacuna/mlflow")
OPEN = ("/health",)
Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Any]]
Send: TypeAlias = Callable[[Any], Awaitable[None]]
Application: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


def app() -> Application:
    from mlflow.server.fastapi_app import app as mlflow

    return guard(mlflow, read_password(PASSWORD))


def read_password(path: Path) -> bytes:
    """What a request must say, from a file as MLflow's client reads it: ~/.mlflow/credentials."""
    found = configparser.ConfigParser(interpolation=None)
    try:
        found.read_string(read_secret(path, "mlflow's password").decode("ascii"))
        name, password = (found["mlflow"][f"mlflow_tracking_{key}"] for key in ("username", "password"))
    except (UnicodeDecodeError, configparser.Error, KeyError):
        raise ConfigError(
            f"mlflow's password {path}: must have [mlflow], with mlflow_tracking_username and mlflow_tracking_password"
        ) from None
    if not name or len(password) < 16:
        raise ConfigError(f"mlflow's password {path}: must be 16 characters or more, of somebody with a name")
    return b"Basic " + base64.b64encode(f"{name}:{password}".encode())


def guard(inner: Application, wanted: bytes) -> Application:
    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if _is_open(scope) or _says(scope, wanted):
            await inner(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"www-authenticate", b'Basic realm="lacuna"'), (b"content-length", b"0")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": b""})

    return guarded


def _is_open(scope: Scope) -> bool:
    return scope["type"] == "lifespan" or (scope["type"] == "http" and scope["path"] in OPEN)


def _says(scope: Scope, wanted: bytes) -> bool:
    said = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
    return len(said) == 1 and hmac.compare_digest(said[0], wanted)
