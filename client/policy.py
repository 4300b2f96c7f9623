"""What this site allows: its policy, and whether a plan keeps to it; else PlanRefused, with the rule that both see.

The policy stands in STATE/site.toml under [policy], or as keys of Flower's node config; one key never in both with two
values. It is read anew for every message, so a change counts from the next one on.
"""

import json
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from shared import manifest
from shared.config import RunSettings
from shared.data.volumes import Grid
from shared.errors import ConfigError, DataError, PlanRefused
from shared.files import parse_canonical, read_bounded, sha256
from shared.manifest import Manifest, Plane
from shared.methods import METHODS, Method
from shared.options import build, require
from shared.records import RELEASED
from shared.vocabulary import Modality

if TYPE_CHECKING:
    from client.site import Site

SETTINGS = "site.toml"
KIT, AGREED = "federation/kit.json", "federation/federation.json"
SIZES = ("tiny", "small", "paper")
_MANIFEST = re.compile(r"any|installed|[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """None means no rule."""

    methods: tuple[str, ...] | None = None
    phases: tuple[str, ...] | None = None
    sizes: tuple[str, ...] | None = None
    max_rounds_per_day: int | None = None
    max_hours_per_day: float | None = None  # of work on rounds, as measured here
    min_subjects: int = 1  # with fewer the site does not train
    min_holders: int = 1  # a run must not release what fewer sites than this trained
    metrics: tuple[str, ...] | None = None  # the others are left out of what is sent
    epsilon: float | None = None  # train with differential privacy only, and spend no more than this, ever
    delta: float | None = None
    about: int | None = None  # a public round figure of its subjects; None: their number to the nearest ten
    manifest: str | None = None  # installed, or a hash: a plan must name it; None: it may not name another
    approve: Literal["auto", "ask"] = "auto"

    def __post_init__(self) -> None:
        _among(self.methods, "methods", tuple(METHODS))
        _among(self.sizes, "sizes", SIZES)
        _among(self.metrics, "metrics", RELEASED, empty=True)
        _among(self.phases, "phases", None)
        for key in ("max_rounds_per_day", "min_subjects", "min_holders", "about"):
            value = getattr(self, key)
            require(value is None or value >= 1, key, value, "1 or more")
        for key in ("max_hours_per_day", "epsilon"):
            value = getattr(self, key)
            require(value is None or 0 < value < float("inf"), key, value, "above 0")
        require(self.delta is None or 0 < self.delta < 1, "delta", self.delta, "in (0, 1)")
        known = self.manifest is None or _MANIFEST.fullmatch(self.manifest) is not None
        require(known, "manifest", self.manifest, "installed, any, or the 64 hex digits of a manifest's hash")

    def releasable(self, metrics: Mapping[str, float]) -> dict[str, float]:
        return {name: value for name, value in metrics.items() if self.metrics is None or name in self.metrics}

    def words(self) -> Iterator[tuple[str, str]]:
        """Each key, and what it means here."""
        yield "methods", _listed(self.methods, "any that is installed here")
        yield "phases", _listed(self.phases, "any")
        yield "sizes", _listed(self.sizes, "any")
        yield "max_rounds_per_day", _most(self.max_rounds_per_day, "rounds in any 24 hours")
        yield (
            "max_hours_per_day",
            _most(self.max_hours_per_day, "hours of work in any 24; a round that gets there ends"),
        )
        subjects, holders = self.min_subjects, self.min_holders
        yield "min_subjects", f"takes no part with fewer than {subjects} training subjects" if subjects > 1 else "1"
        yield "min_holders", f"what fewer than {holders} sites trained must not be released" if holders > 1 else "1"
        yield "metrics", f"sends {_listed(self.metrics, 'all of ' + ', '.join(RELEASED))}, and no other"
        if self.epsilon is None:
            yield "epsilon", "differential privacy is not required"
        else:
            delta = "the run's" if self.delta is None else f"{self.delta:g}"
            yield "epsilon", f"trains privately only, and spends {self.epsilon:g} in all, at delta {delta}"
        says = {
            None: "a plan that names one must name the installed kit's, and keep to it",
            "any": "is not looked at",
            "installed": "a plan must name the installed kit's, and keep to it",
        }
        yield "manifest", says.get(self.manifest, f"a plan must name {self.manifest}")
        yield (
            "approve",
            "each run waits for `lacuna-site plans approve`" if self.approve == "ask" else "no one is asked",
        )


# --- reading --------------------------------------------------------------------------------------------------------


def read(state: Path, node_config: Mapping[str, Any] | None = None) -> Policy:
    """From STATE/site.toml and the node config; ConfigError for a key that is unknown, wrong, or in both but unlike."""
    table = _table(state / SETTINGS)
    values: dict[str, Any] = dict(table)
    for name, given in (node_config or {}).items():
        key = name.replace("-", "_")
        value = _typed(key, given)
        if key in table and _comparable(table[key]) != _comparable(value):
            raise ConfigError(
                f"policy.{key}: {value!r} in the node config and {table[key]!r} in {SETTINGS}; say it once"
            )
        values[key] = value
    return build(Policy, values, "policy")


def _table(path: Path) -> Mapping[str, Any]:
    if not path.exists():
        return {}
    try:
        found = tomllib.loads(read_bounded(path, "site").decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{SETTINGS}: is no TOML: {error}") from None
    table = found.get("policy", {})
    if not isinstance(table, dict):
        raise ConfigError(f"{SETTINGS}: policy={table!r}: must be a table, [policy]")
    return table


def _typed(key: str, given: Any) -> Any:
    """A node config knows texts and numbers only: `methods="amm_diff,mmdm"` is a list, `epsilon="8.0"` a number."""
    hints = typing.get_type_hints(Policy)
    if not isinstance(given, str) or key not in hints:
        return given
    kinds = typing.get_args(hints[key]) if isinstance(hints[key], types.UnionType) else (hints[key],)
    if any(typing.get_origin(kind) is tuple for kind in kinds):
        return [word for word in re.split(r"[,\s]+", given) if word]
    if int in kinds or float in kinds:
        try:
            return json.loads(given)
        except ValueError:
            return given
    return given


def _comparable(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def _among(words: tuple[str, ...] | None, key: str, known: tuple[str, ...] | None, *, empty: bool = False) -> None:
    if words is None:
        return
    require(bool(words) or empty, key, list(words), "one or more; leave the key out for no rule")
    for word in words:
        if known is not None and word not in known:
            raise ConfigError(f"{key}={word!r}: must be among {', '.join(known)}")


def _listed(words: tuple[str, ...] | None, none: str) -> str:
    return none if words is None else ", ".join(words) or "nothing"


def _most(number: float | None, unit: str) -> str:
    return "no limit" if number is None else f"at most {number:g} {unit}"


# --- checking -------------------------------------------------------------------------------------------------------


def check_schema(site: "Site", settings: RunSettings, schema: str) -> None:
    """What the coordinator hashed must be what this site's installed code makes of the same settings."""
    if settings.schema != schema:
        raise PlanRefused(f"{site.name}: schema {schema[:12]} differs from this site's {settings.schema[:12]}")


def check(site: "Site", settings: RunSettings, method: Method) -> None:
    """What the policy says of a whole run."""
    policy, name = site.policy, settings.method.name
    _allow(site, "method", name, "methods", policy.methods)
    if policy.sizes is not None:
        _allow(site, "size", str(getattr(method, "size", "none")), "sizes", policy.sizes)
    if settings.min_holders < policy.min_holders:
        _refuse(site, "min_holders", settings.min_holders, f"min_holders: at least {policy.min_holders}")
    _check_manifest(site, settings, method)


def check_round(site: "Site", settings: RunSettings, method: Method, phase: str, round: int) -> None:
    """A round that the run's own settings do not have, or of a phase that the policy does not allow."""
    kinds = {one.name: one.kind for one in settings.phases(method)}
    if phase not in kinds:
        _refuse(site, "phase", phase[:80], f"the method: {', '.join(kinds)}")
    refused = phase_refused(site, phase)
    if refused is not None:
        raise PlanRefused(f"{site.name}: {refused}")
    rounds = 1 if kinds[phase] == "sums" else settings.training[phase].rounds
    if not 0 <= round < rounds:
        _refuse(site, "round", round, f"the run's own settings: {phase} has the rounds 0 to {rounds - 1}")


def phase_refused(site: "Site", phase: str) -> str | None:
    phases = site.policy.phases
    if phases is None or phase in phases:
        return None
    return _says("phase", phase, f"phases: {', '.join(phases)}")


def is_private(site: "Site", settings: RunSettings) -> bool:
    """Does the site train this run privately? A run without privacy, at a site that requires it, is PlanRefused."""
    mode, epsilon = settings.privacy.mode, site.policy.epsilon
    if mode == "off" and epsilon is not None:
        raise PlanRefused(
            f"{site.name}: its policy asks for differential privacy (epsilon {epsilon:g} in all), and the plan "
            "has none: privacy.mode=off; `privacy=mixed` lets it train privately beside others"
        )
    return mode == "on" or (mode == "mixed" and epsilon is not None)


def why_not(site: "Site", method: Method, patterns: Mapping[tuple[Modality, ...], int], phase: str) -> str | None:
    """The reason why this site takes no part, or None; `patterns` are its training subjects' modalities."""
    refused = phase_refused(site, phase)
    if refused is not None:
        return refused
    if not patterns:
        return "holds none of the method's modalities"
    lacking = {pattern: method.lacks(pattern, phase) for pattern in patterns}
    subjects = sum(n for pattern, n in patterns.items() if lacking[pattern] is None)
    if not subjects:
        commonest = max(patterns, key=lambda pattern: (patterns[pattern], pattern))
        return f"no subject can train {phase}: lacks {lacking[commonest]}"
    if subjects < site.policy.min_subjects:
        return f"has fewer training subjects than its policy asks for ({site.policy.min_subjects})"
    return None


def installed_manifest(state: Path) -> Manifest | None:
    """What the installed kit says that the federation agreed on; None without a kit."""
    if not (state / KIT).exists():
        return None
    named = parse_canonical(read_bounded(state / KIT, "site"), KIT).get("manifest")
    content = read_bounded(state / AGREED, "site")
    if sha256(content) != named:
        raise DataError(f"{AGREED}: has not the hash that {KIT} gives; join the kit again")
    return manifest.parse(content, "the installed kit")


def _check_manifest(site: "Site", settings: RunSettings, method: Method) -> None:
    """A plan that names what was agreed must keep to it; whether it must name it, the policy says."""
    rule, named = site.policy.manifest, settings.manifest
    if rule == "any":
        return
    agreed = installed_manifest(site.state)
    if rule == "installed" and agreed is None:
        _refuse(site, "manifest", named, "manifest=installed, and no kit is installed here")
    wanted = rule if rule not in (None, "installed") else None if agreed is None else agreed.digest
    if wanted is not None and named != wanted and (named is not None or rule is not None):
        _refuse(site, "manifest", named, f"manifest: {wanted}")
    if agreed is None or named != agreed.digest:
        return
    name, holders = settings.method.name, settings.min_holders
    others = [modality for modality in method.modalities if modality not in agreed.modalities]
    plane, planes = _plane(settings.grid), "any" if agreed.grid is None else _plane(agreed.grid)
    for key, value, keeps, has in (
        ("method", name, name in agreed.methods, ", ".join(agreed.methods)),
        ("modalities", ", ".join(others), not others, ", ".join(agreed.modalities)),
        ("min_holders", holders, holders >= agreed.min_holders, f"{agreed.min_holders} or more"),
        ("grid", plane, planes in ("any", plane), planes),
    ):
        if not keeps:
            raise PlanRefused(f"{site.name}: plan.{key}={value}: the federation's manifest, which it names, has {has}")


def _plane(grid: Grid | Plane) -> str:
    return f"{grid.height}x{grid.width}" + ("" if grid.spacing_mm is None else f"@{grid.spacing_mm:g}")


def _allow(site: "Site", key: str, value: str, rule: str, allowed: tuple[str, ...] | None) -> None:
    if allowed is not None and value not in allowed:
        _refuse(site, key, value, f"{rule}: {', '.join(allowed)}")


def _refuse(site: "Site", key: str, value: object, rule: str) -> None:
    raise PlanRefused(f"{site.name}: {_says(key, value, rule)}")


def _says(key: str, value: object, rule: str) -> str:
    return f"plan.{key}={value}: this site's policy allows only {rule}"
