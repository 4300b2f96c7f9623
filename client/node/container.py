"""The site's containers, as deploy/site.compose.yaml describes them: its text turned into what the engine is asked for.

`site` does the work, in a network that leads to `gate` alone; the gate passes on to the server. For each host of a PACS
that the site names there is another gate, of the same words.

There is one description. `docker compose -f compose.yaml up` and `lacuna-site up` read the same words; a key that is
not known here is an error, never left out.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from shared.base.errors import ConfigError
from shared.base.files import canonical, sha256
from shared.base.names import Address, is_ip
from shared.base.options import plain
from shared.trust.passphrase import FILE_VARIABLE

_VARIABLE = re.compile(r"\$\{([A-Z_]+)(?::([-?])([^}]*))?\}")
_SPAN = re.compile(r"(\d+)(s|m|h)")
SECONDS = {"s": 1, "m": 60, "h": 3600}
COHORT, SITE, GATE = "/cohort", "site", "gate"
WORD = "/run/passphrase"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bind:
    source: str
    target: str
    read_only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    image: str
    options: Mapping[str, Any]  # of the engine, by docker's names
    binds: tuple[Bind, ...]
    logging: Mapping[str, Any]
    grace: int  # seconds between SIGTERM and SIGKILL
    networks: tuple[str, ...]
    links: Mapping[str, str]  # what it finds another part by, to that part's name
    devices: tuple[Mapping[str, Any], ...] = ()  # what gpu.yaml reserves


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    internal: bool
    options: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    site: Container
    gates: Mapping[str, Container]  # by name; the first is the server's
    networks: Mapping[str, Network]

    @property
    def digest(self) -> str:
        """Equal for equal parts."""
        return sha256(canonical(plain(self)))


def read(
    text: str,
    values: Mapping[str, str],
    cohorts: Sequence[str],
    *,
    gpu: str | None,
    pacs: Sequence[Address] = (),
    word: str | None = None,
) -> Parts:
    """A kit's compose file, and gpu.yaml (`gpu`), gates to a PACS, and the file of the key's passphrase (`word`); other
    cohorts are mounted as the first."""
    filled = _filled(yaml.safe_load(text), {**values, "LACUNA_COHORT": cohorts[0]})
    services = filled["services"]
    if services.keys() != {SITE, GATE}:
        raise ConfigError(f"compose.yaml: services: {', '.join(services)}: must be {SITE} and {GATE}")
    site, gate = _container(services[SITE]), _container(services[GATE])
    more, command = list(site.binds), list(site.options["command"])
    for number, cohort in enumerate(cohorts[1:], start=2):
        more.append(Bind(source=cohort, target=f"{COHORT}-{number}", read_only=True))
        command += ["--cohort", f"{COHORT}-{number}"]
    environment = dict(site.options["environment"])
    if word is not None:
        more.append(Bind(source=word, target=WORD, read_only=True))
        environment[FILE_VARIABLE] = WORD
    gates, links = _gates(gate, pacs)
    return Parts(
        site=replace(
            site,
            binds=tuple(more),
            options={**site.options, "command": command, "environment": environment},
            links={**site.links, **links},
            devices=() if gpu is None else _devices(gpu),
        ),
        gates=gates,
        networks={name: _network(found) for name, found in filled["networks"].items()},
    )


def _gates(gate: Container, pacs: Sequence[Address]) -> tuple[dict[str, Container], dict[str, str]]:
    """The server's gate and one for each other host, and by what names the site finds those."""
    (server,) = (Address.parse(word, GATE) for word in gate.options["command"])
    hosts: dict[str, list[Address]] = {server.host: [server]}
    for address in pacs:
        if address not in hosts.setdefault(address.host, []):
            hosts[address.host].append(address)
    gates, links = {}, {}
    for number, (host, addresses) in enumerate(hosts.items(), start=1):
        name = GATE if number == 1 else f"{GATE}{number}"
        gates[name] = replace(gate, options={**gate.options, "command": [str(address) for address in addresses]})
        links[called(host)] = name
    return gates, links


def called(host: str) -> str:
    """An IP address is looked up by nobody, so the site has to call it by a name: ip-10-0-0-5."""
    return f"ip-{re.sub('[.:]', '-', host)}" if is_ip(host) else host


def _container(service: Mapping[str, Any]) -> Container:
    unknown = sorted(service.keys() - _OPTIONS.keys() - _OTHERS)
    if unknown:
        raise ConfigError(f"compose.yaml: {unknown[0]}: `lacuna-site up` does not know it; use `docker compose`")
    if service.get("pull_policy") != "never":
        raise ConfigError("compose.yaml: pull_policy must be never")
    options: dict[str, Any] = {}
    for key, value in service.items():
        if key in _OPTIONS:
            options.update(_OPTIONS[key](value))
    return Container(
        image=service["image"],
        options=options,
        binds=tuple(_bind(entry) for entry in service.get("volumes", ())),
        logging=service["logging"],
        grace=_seconds(service["stop_grace_period"]),
        networks=tuple(service["networks"]),
        links={name: part for part, name in (link.split(":", 1) for link in service.get("links", ()))},
    )


def _network(found: Mapping[str, Any]) -> Network:
    if found.keys() - {"internal", "driver_opts"}:
        raise ConfigError(f"compose.yaml: networks: {sorted(found)}: one of them is not known to `lacuna-site up`")
    return Network(internal=found.get("internal", False), options=found.get("driver_opts", {}))


def _devices(text: str) -> tuple[Mapping[str, Any], ...]:
    reserved = yaml.safe_load(text)["services"]["site"]["deploy"]["resources"]["reservations"]["devices"]
    return tuple(
        {
            "driver": entry["driver"],
            "count": -1 if entry["count"] == "all" else int(entry["count"]),
            "capabilities": [entry["capabilities"]],
        }
        for entry in reserved
    )


def _filled(value: Any, values: Mapping[str, str]) -> Any:
    """With `${NAME}`, `${NAME:-default}` and `${NAME:?why}` filled in, as compose does."""
    if isinstance(value, dict):
        return {key: _filled(entry, values) for key, entry in value.items()}
    if isinstance(value, list):
        return [_filled(entry, values) for entry in value]
    if not isinstance(value, str):
        return value

    def fill(found: re.Match[str]) -> str:
        name, kind, rest = found.groups()
        if values.get(name):
            return values[name]
        if kind == "-":
            return str(rest)
        raise ConfigError(f"{name}: missing; it is {rest or 'needed'}")

    return _VARIABLE.sub(fill, value)


def _bind(entry: Mapping[str, Any]) -> Bind:
    unknown = entry.keys() - {"type", "source", "target", "read_only", "bind"}
    if unknown or entry["type"] != "bind" or entry["bind"] != {"create_host_path": False}:
        raise ConfigError(f"compose.yaml: volumes: {entry.get('target')}: must be a bind of a folder that is there")
    return Bind(
        source=os.path.abspath(entry["source"]), target=entry["target"], read_only=entry.get("read_only", False)
    )


def _health(value: Mapping[str, Any]) -> Mapping[str, Any]:
    test = {"test": list(value["test"]), "retries": value["retries"]}
    spans = {key: _seconds(value[key]) * 1_000_000_000 for key in ("interval", "timeout", "start_period")}
    if value.keys() - test.keys() - spans.keys():
        raise ConfigError(f"compose.yaml: healthcheck: {sorted(value)}: one of them is not known to `lacuna-site up`")
    return {"healthcheck": {**test, **spans}}


def _seconds(text: str) -> int:
    found = _SPAN.fullmatch(text)
    if found is None:
        raise ConfigError(f"compose.yaml: {text!r}: must be a time like 30s")
    return int(found[1]) * SECONDS[found[2]]


def _tmpfs(value: Sequence[str]) -> Mapping[str, Any]:
    return {"tmpfs": dict(entry.split(":", 1) for entry in value)}


def _as(name: str) -> Callable[[Any], Mapping[str, Any]]:
    return lambda value: {name: value}


# compose's key -> docker's
_OPTIONS: Mapping[str, Callable[[Any], Mapping[str, Any]]] = {
    "user": _as("user"),
    "init": _as("init"),
    "entrypoint": _as("entrypoint"),
    "command": _as("command"),
    "environment": _as("environment"),
    "tmpfs": _tmpfs,
    "read_only": _as("read_only"),
    "cap_drop": _as("cap_drop"),
    "security_opt": _as("security_opt"),
    "dns": _as("dns"),
    "pids_limit": _as("pids_limit"),
    "mem_limit": _as("mem_limit"),
    "restart": lambda value: {"restart_policy": {"Name": value}},
    "healthcheck": _health,
}
_OTHERS = {"image", "pull_policy", "volumes", "stop_grace_period", "logging", "networks", "links"}


def owner(state: Path) -> str:
    """uid:gid that owns the state, as whom the container runs; ConfigError for root's."""
    found = state.stat()
    if found.st_uid == 0:
        raise ConfigError(
            f"state={state}: belongs to root, and the site never runs as root: give it to an ordinary user, "
            f"`chown -R 10001:10001 {state}`"
        )
    return f"{found.st_uid}:{found.st_gid}"
