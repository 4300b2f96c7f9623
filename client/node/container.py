"""The site's container, as deploy/site.compose.yaml describes it: its text turned into what the engine is asked for.

There is one description. `docker compose -f compose.yaml up` and `lacuna-site up` read the same words; a key that is
not known here is an error, never left out.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from shared.base.errors import ConfigError
from shared.base.files import canonical, sha256

_VARIABLE = re.compile(r"\$\{([A-Z_]+)(?::([-?])([^}]*))?\}")
_SPAN = re.compile(r"(\d+)(s|m|h)")
SECONDS = {"s": 1, "m": 60, "h": 3600}
COHORT = "/cohort"


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
    devices: tuple[Mapping[str, Any], ...] = ()  # what gpu.yaml reserves

    @property
    def digest(self) -> str:
        """Equal for equal containers."""
        binds = [[bind.source, bind.target, bind.read_only] for bind in self.binds]
        parts = {"image": self.image, "options": self.options, "logging": self.logging, "devices": list(self.devices)}
        return sha256(canonical({**parts, "binds": binds}))


def read(text: str, values: Mapping[str, str], cohorts: Sequence[str], *, gpu: str | None) -> Container:
    """The one service of a kit's compose file, and of gpu.yaml (`gpu`); other cohorts are mounted as the first."""
    service = _filled(yaml.safe_load(text), {**values, "LACUNA_COHORT": cohorts[0]})["services"]["site"]
    unknown = sorted(service.keys() - _OPTIONS.keys() - _OTHERS)
    if unknown:
        raise ConfigError(f"compose.yaml: {unknown[0]}: `lacuna-site up` does not know it; use `docker compose`")
    if service.get("pull_policy") != "never":
        raise ConfigError("compose.yaml: pull_policy must be never")
    options: dict[str, Any] = {}
    for key, value in service.items():
        if key in _OPTIONS:
            options.update(_OPTIONS[key](value))
    binds = [_bind(entry) for entry in service["volumes"]]
    for number, cohort in enumerate(cohorts[1:], start=2):
        binds.append(Bind(source=cohort, target=f"{COHORT}-{number}", read_only=True))
        options["command"] = [*options["command"], "--cohort", f"{COHORT}-{number}"]
    return Container(
        image=service["image"],
        options=options,
        binds=tuple(binds),
        logging=service["logging"],
        grace=_seconds(service["stop_grace_period"]),
        devices=() if gpu is None else _devices(gpu),
    )


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
    "pids_limit": _as("pids_limit"),
    "mem_limit": _as("mem_limit"),
    "restart": lambda value: {"restart_policy": {"Name": value}},
    "healthcheck": _health,
}
_OTHERS = {"image", "pull_policy", "volumes", "stop_grace_period", "logging"}


def owner(state: Path) -> str:
    """uid:gid that owns the state, as whom the container runs; ConfigError for root's."""
    found = state.stat()
    if found.st_uid == 0:
        raise ConfigError(
            f"state={state}: belongs to root, and the site never runs as root: give it to an ordinary user, "
            f"`chown -R 10001:10001 {state}`"
        )
    return f"{found.st_uid}:{found.st_gid}"
