"""`lacuna-site up` and `down`: the site's containers on this machine's Docker engine, and why they do not run.

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
from docker.types import DeviceRequest, EndpointConfig, LogConfig, Mount

from client.node import container as description
from client.node.container import Container, Parts
from client.node.status import HEALTH, read_record, status
from client.site import enrol
from client.site.keys import federation_key
from client.site.settings import Settings
from shared.base.errors import ConfigError, RunFailed
from shared.base.files import read_bounded
from shared.base.names import Address
from shared.trust import kit
from shared.trust.image import FOLDER, is_signed

LABEL = "lacuna.container"  # the digest of what it and the parts beside it were made of
OF = "lacuna.site"  # whose part it is
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
    """Start the site's containers, or leave those that are as they should be, and wait for the server's answer.

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
        pacs = [Address.parse(address, "pacs") for address in settings.pacs]
        wanted = description.read(
            texts[kit.COMPOSE],
            values,
            cohorts,
            gpu=texts[kit.GPU] if gpu else None,
            pacs=pacs,
            word=settings.passphrase,
        )
        began, name = time.time(), _name(description.SITE, head.site)
        if _runs(engine, head.site, wanted, image):
            say(f"{name} runs already")
        else:
            if _end(engine, head.site, wanted.site.grace):
                say(f"{name} is replaced")
            began = time.time()
            _start(engine, head.site, wanted, image)
            say(f"{name} is started; waiting for the server's answer")
        return _wait(engine, head.site, state, began=began, patience=patience, gpu=gpu, notes=notes)


def down(state: Path, *, say: Callable[[str], None] = lambda _: None) -> bool:
    """Stop and remove the site's containers; the state stays as it is. False when there are none."""
    site = enrol.installed(state).site
    with _engine() as engine:
        if not _found(engine, site):
            return False
        say(f"{_name(description.SITE, site)} is asked to stop")
        _end(engine, site, 30)
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


def _name(part: str, site: str) -> str:
    return f"lacuna-{part}-{site}"


def _labels(site: str, wanted: Parts, image: Any) -> dict[str, str]:
    return {LABEL: f"{wanted.digest} {image.id}", OF: site}


def _found(engine: Any, site: str) -> list[Any]:
    """The site's containers that are there, the site's own first; one of an older Lacuna has its name alone."""
    labelled = engine.containers.list(all=True, filters={"label": f"{OF}={site}"})
    own = _find(engine, _name(description.SITE, site))
    return [*([] if own is None else [own]), *(one for one in labelled if own is None or one.id != own.id)]


def _runs(engine: Any, site: str, wanted: Parts, image: Any) -> bool:
    """Does the site run as it should? A gate that was stopped is started again: the site need not know of it."""
    found = {one.name: one for one in _found(engine, site)}
    label, own = _labels(site, wanted, image)[LABEL], _name(description.SITE, site)
    if found.keys() != {own, *(_name(part, site) for part in wanted.gates)} or found[own].status != "running":
        return False
    if any(one.labels.get(LABEL) != label for one in found.values()):
        return False
    for one in found.values():
        if one.status != "running":
            one.start()
    return True


def _end(engine: Any, site: str, grace: int) -> bool:
    """Stop and remove all that there is of the site; False when there was nothing."""
    found = _found(engine, site)
    for one in found:
        one.stop(timeout=grace)
        one.remove(force=True)
    for network in engine.networks.list(filters={"label": f"{OF}={site}"}):
        network.remove()
    return bool(found)


def _start(engine: Any, site: str, wanted: Parts, image: Any) -> None:
    labels = _labels(site, wanted, image)
    for part, network in wanted.networks.items():
        engine.networks.create(
            _name(part, site),
            driver="bridge",
            internal=network.internal,
            options=dict(network.options),
            labels=labels,
        )
    try:
        for part, container in {**wanted.gates, description.SITE: wanted.site}.items():
            _start_one(engine, site, part, container, image, labels)
    except Exception:
        _end(engine, site, 5)
        raise


def _start_one(engine: Any, site: str, part: str, wanted: Container, image: Any, labels: dict[str, str]) -> None:
    first, *others = (_name(network, site) for network in wanted.networks)
    links = [(_name(other, site), called) for called, other in wanted.links.items()]
    made = engine.containers.create(
        image.id,
        name=_name(part, site),
        mounts=[Mount(bind.target, bind.source, type="bind", read_only=bind.read_only) for bind in wanted.binds],
        log_config=LogConfig(type=wanted.logging["driver"], config=wanted.logging["options"]),
        device_requests=[DeviceRequest(**device) for device in wanted.devices],
        labels=labels,
        network=first,
        networking_config={first: EndpointConfig(engine.api.api_version, links=links)},
        **wanted.options,
    )
    for other in others:
        engine.networks.get(other).connect(made)
    try:
        made.start()
    except APIError as error:
        said = str(error.explanation or error)
        if "device driver" in said or "nvidia" in said.lower():
            raise ConfigError(
                f"gpu: this engine gives none ({said[:200]}): install NVIDIA's driver and container toolkit, or say "
                "--gpu none"
            ) from None
        raise RunFailed(f"container {made.name}: the engine does not start it: {said[:400]}") from None


def _wait(
    engine: Any, site: str, state: Path, *, began: float, patience: float, gpu: bool, notes: tuple[str, ...]
) -> Up:
    end, name = time.monotonic() + patience, _name(description.SITE, site)
    while True:
        found = _find(engine, name)
        if found is None:
            raise RunFailed(f"container {name}: is gone; somebody removed it")
        beat = read_record(state / HEALTH)
        fresh = beat is not None and float(beat["time"]) >= began
        for one in _found(engine, site):
            if one.status in ("exited", "dead", "restarting"):
                _ended(one)
        now = status(state)
        if found.status == "running" and fresh and now.healthy:
            return Up(name=name, said=now.said, seconds=time.time() - began, gpu=gpu, notes=notes)
        if time.monotonic() >= end or (fresh and now.doing == "waiting"):  # it has tried, and knows why not
            why = now.said if fresh else "its node has not begun; " + " / ".join(_printed(found, 3))
            raise RunFailed(f"container {name}: runs, and is not well after {time.time() - began:.0f} s: {why}")
        time.sleep(0.5)


def _ended(found: Any) -> None:
    """Raise RunFailed with the last words of a container that ended; it is not started again for ever."""
    name, code = found.name, found.attrs["State"].get("ExitCode")
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
