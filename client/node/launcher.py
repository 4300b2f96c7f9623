"""`lacuna-site up` and `down`: the site's container on this machine's Docker engine, and why it does not run.

What is started is what client/node/container.py reads from the compose text that this Lacuna writes for the kit, of an
image that the federation signed; nothing is pulled, no port is opened. Whether it is well is read from the node's own
records (client/node/status.py).
"""

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import requests
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.types import DeviceRequest, LogConfig, Mount

from client.node import container as description
from client.node.container import Container
from client.node.status import HEALTH, read_record, status
from client.site import enrol
from client.site.keys import federation_key
from client.site.settings import Settings
from shared.base.errors import ConfigError, RunFailed
from shared.base.files import read_bounded
from shared.trust import kit
from shared.trust.image import FOLDER, is_signed

LABEL = "lacuna.container"  # the digest of what it was made of
NVIDIA = "nvidia"
SOCKET = "unix:///var/run/docker.sock"
LAST = 15  # lines of a container that ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Up:
    name: str
    said: str
    seconds: float
    gpu: bool
    notes: tuple[str, ...] = ()


def up(
    state: Path,
    settings: Settings,
    *,
    patience: float = 180.0,
    say: Callable[[str], None] = lambda _: None,
) -> Up:
    """Start the site's container, or leave one that is as it should be, and wait until its node has the server's ear.

    ConfigError for what has to be mended here first; RunFailed, with the reason, when it is not well in time. It is
    then left running, since it tries again and again, unless it ended by itself.
    """
    state = state.resolve()
    head, texts = _texts(state)
    cohorts = _cohorts(settings)
    if settings.image is None:
        raise ConfigError(
            f'image: none; [site] image = "..." in {state}/site.toml, or --image; deploy/images.sh makes it'
        )
    with _engine() as engine:
        image = _image(engine, settings.image)
        _check_signed(state, settings, str(image.id))
        gpu, notes = _gpu(engine, settings.gpu)
        values = {
            "LACUNA_IMAGE": settings.image,
            "LACUNA_STATE": str(state),
            "LACUNA_USER": description.owner(state),
            "LACUNA_MEMORY": settings.memory,
        }
        wanted = description.read(texts[kit.COMPOSE], values, cohorts, gpu=texts[kit.GPU] if gpu else None)
        name = _name(head.site)
        began, old = time.time(), _find(engine, name)
        if old is not None and old.status == "running" and old.labels.get(LABEL) == _label(wanted, image):
            say(f"{name} runs already")
        else:
            if old is not None:
                say(f"{name} is replaced")
                old.stop(timeout=wanted.grace)
                old.remove(force=True)
            began = time.time()
            _start(engine, name, wanted, image)
            say(f"{name} is started; waiting for the server's answer")
        return _wait(engine, name, state, began=began, patience=patience, gpu=gpu, notes=notes)


def down(state: Path, *, say: Callable[[str], None] = lambda _: None) -> bool:
    """Stop and remove the site's container; the state stays as it is. False when there is none."""
    name = _name(enrol.installed(state).site)
    with _engine() as engine:
        found = _find(engine, name)
        if found is None:
            return False
        say(f"{name} is asked to stop")
        found.stop(timeout=30)
        found.remove(force=True)
        return True


# --- what is asked of the engine ------------------------------------------------------------------------------------


def _texts(state: Path) -> tuple[kit.Head, dict[str, str]]:
    """The kit's head, and the compose files as this Lacuna writes them for that kit."""
    if not (state / enrol.HEAD).exists():
        raise ConfigError(f"{state}: has no kit yet; `lacuna-site join KIT --state {state}` comes first")
    head = enrol.installed(state)
    folder = state / enrol.FEDERATION
    address = kit.read_address(read_bounded(folder / kit.ADDRESSES, "addresses"), str(folder))
    files = kit.site_files(head.site, head.federation, address)
    return head, {name: content.decode("utf-8") for name, content in files.items()}


def _cohorts(settings: Settings) -> Sequence[str]:
    if not settings.cohorts:
        raise ConfigError("cohorts: none; [site] cohorts = [...] in STATE/site.toml, or --cohort")
    for cohort in settings.cohorts:
        if not Path(cohort).is_dir():
            raise ConfigError(f"cohort={cohort}: is no folder")
    return settings.cohorts


def _name(site: str) -> str:
    return f"lacuna-site-{site}"


def _label(wanted: Container, image: Any) -> str:
    return f"{wanted.digest} {image.id}"


def _start(engine: Any, name: str, wanted: Container, image: Any) -> None:
    made = engine.containers.create(
        image.id,
        name=name,
        mounts=[Mount(bind.target, bind.source, type="bind", read_only=bind.read_only) for bind in wanted.binds],
        log_config=LogConfig(type=wanted.logging["driver"], config=wanted.logging["options"]),
        device_requests=[DeviceRequest(**device) for device in wanted.devices],
        labels={LABEL: _label(wanted, image)},
        **wanted.options,
    )
    try:
        made.start()
    except APIError as error:
        made.remove(force=True)
        said = str(error.explanation or error)
        if "device driver" in said or "nvidia" in said.lower():
            raise ConfigError(
                f"gpu: this engine gives none ({said[:200]}): install NVIDIA's driver and container toolkit, or say "
                "--gpu none"
            ) from None
        raise RunFailed(f"container {name}: the engine does not start it: {said[:400]}") from None


def _wait(
    engine: Any, name: str, state: Path, *, began: float, patience: float, gpu: bool, notes: tuple[str, ...]
) -> Up:
    end = time.monotonic() + patience
    while True:
        found = _find(engine, name)
        if found is None:
            raise RunFailed(f"container {name}: is gone; somebody removed it")
        beat = read_record(state / HEALTH)
        fresh = beat is not None and float(beat["time"]) >= began
        if found.status in ("exited", "dead", "restarting"):
            _ended(found, name)
        now = status(state)
        if found.status == "running" and fresh and now.healthy:
            return Up(name=name, said=now.said, seconds=time.time() - began, gpu=gpu, notes=notes)
        if time.monotonic() >= end or (fresh and now.doing == "waiting"):  # it has tried, and knows why not
            why = now.said if fresh else "its node has not begun; " + " / ".join(_printed(found, 3))
            raise RunFailed(f"container {name}: runs, and is not well after {time.time() - began:.0f} s: {why}")
        time.sleep(0.5)


def _ended(found: Any, name: str) -> None:
    """Raise RunFailed with the last words of a container that ended; it is not started again for ever."""
    code = found.attrs["State"].get("ExitCode")
    if found.attrs["State"].get("OOMKilled"):
        raise RunFailed(f"container {name}: was ended for memory: give it more, [site] memory in STATE/site.toml")
    lines = _printed(found, LAST)
    found.stop(timeout=5)
    kinds = ("ConfigError", "DataError", "PlanRefused", "RunFailed")
    said = next((line for line in reversed(lines) if any(kind in line for kind in kinds)), " / ".join(lines[-3:]))
    raise RunFailed(f"container {name}: ended with exit code {code}: {said or 'without a word'}")


def _printed(found: Any, lines: int) -> list[str]:
    text: str = found.logs(tail=lines).decode("utf-8", "replace")
    return [line for line in text.splitlines() if line]


# --- what the engine has --------------------------------------------------------------------------------------------


@contextmanager
def _engine() -> Iterator[Any]:
    """Connect to the Docker engine; ConfigError, with what to do, when there is none or we may not use it."""
    host = os.environ.get("DOCKER_HOST") or SOCKET
    try:
        _knock(host)
    except OSError as error:
        raise ConfigError(_no_engine(host, error)) from None
    try:
        engine = docker.from_env(timeout=60)
    except DockerException as error:
        raise ConfigError(_no_engine(host, error)) from None
    try:
        yield engine
    except APIError as error:
        raise RunFailed(f"docker: {str(error.explanation or error)[:400]}") from None
    except (DockerException, requests.RequestException) as error:
        raise ConfigError(_no_engine(host, error)) from None
    finally:
        engine.close()


def _knock(host: str) -> None:
    """Ask whether anybody answers at the socket; docker itself leaves sockets open that it cannot connect."""
    scheme, _, rest = host.partition("://")
    if scheme == "unix":
        with socket.socket(socket.AF_UNIX) as channel:
            channel.connect(rest)
    elif scheme == "tcp":
        name, _, port = rest.strip("/").rpartition(":")
        socket.create_connection((name, int(port)), timeout=10).close()


def _no_engine(host: str, error: BaseException) -> str:
    without = "or run the site without Docker, `lacuna-site run`"
    if isinstance(error, PermissionError):
        return (
            f"docker: {host} is closed to this user: let the administrator add you to the group `docker`, or set "
            f"DOCKER_HOST to a rootless engine, {without}"
        )
    if isinstance(error, OSError) and not isinstance(error, requests.RequestException):
        return (
            f"docker: no engine answers at {host} ({error.strerror or error}): start it, or set DOCKER_HOST, {without}"
        )
    return f"docker: the engine at {host} can't be used: {str(error)[:300]}; {without}"


def _image(engine: Any, name: str) -> Any:
    try:
        return engine.images.get(name)
    except ImageNotFound:
        raise ConfigError(
            f"image={name}: is not here, and none is fetched: build it (deploy/images.sh), or `docker load` it"
        ) from None


def _check_signed(state: Path, settings: Settings, id: str) -> None:
    """ConfigError for an image that the federation did not sign, unless this hospital says that it built it."""
    if settings.built == "federation" and not is_signed(id, state / FOLDER, federation_key(state)):
        raise ConfigError(
            f"image={settings.image}: {id}: is not signed by the federation: put the file of signatures that came with "
            f'it into {state / FOLDER}; one that this hospital built itself needs [site] built = "here" in site.toml'
        )


def _gpu(engine: Any, wanted: str) -> tuple[bool, tuple[str, ...]]:
    """Should the container get the GPU? `auto`: where the engine has NVIDIA's runtime or its device interface."""
    info = engine.info()
    there = NVIDIA in (info.get("Runtimes") or {}) or any(
        NVIDIA in str(device.get("ID", "")) for device in info.get("DiscoveredDevices") or []
    )
    if wanted == "auto" and not there:
        return False, ("no GPU runtime on this engine: the site trains on the CPU",)
    return wanted != "none", ()


def _find(engine: Any, name: str) -> Any:
    try:
        return engine.containers.get(name)
    except NotFound:
        return None
