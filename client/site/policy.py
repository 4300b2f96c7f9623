"""What this site allows: its policy; whether a plan keeps to it, client/site/checks.py says.

The policy stands in STATE/site.toml under [policy], or as keys of Flower's node config; one key never in both with two
values. It is read anew for every message, so a change counts from the next one on.
"""

import json
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from client.site.settings import SETTINGS
from shared.base.errors import ConfigError
from shared.base.options import build, require
from shared.base.records import RELEASED
from shared.methods import METHODS

SIZES = ("tiny", "small", "paper")
_MANIFEST = re.compile(r"any|installed|[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What a site allows; a key that is None is no rule."""

    methods: tuple[str, ...] | None = None
    phases: tuple[str, ...] | None = None
    sizes: tuple[str, ...] | None = None
    max_rounds_per_day: int | None = None
    max_hours_per_day: float | None = None  # of work on rounds, as measured here
    min_subjects: int = 5  # with fewer the site does not train, and none of its sums is over fewer
    min_holders: int = 1  # a run must not release what fewer sites than this trained
    metrics: tuple[str, ...] | None = None  # the others are left out of what is sent
    epsilon: float | None = None  # train with differential privacy only, and spend no more than this, ever
    delta: float | None = None
    about: int | None = None  # a public round figure of its subjects; None: their number to the nearest ten
    manifest: str | None = None  # that a plan must name; None: the installed kit's, where there is one
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
        """Say each key, and what it means here."""
        yield "methods", _listed(self.methods, "any that is installed here")
        yield "phases", _listed(self.phases, "any")
        yield "sizes", _listed(self.sizes, "any")
        yield "max_rounds_per_day", _most(self.max_rounds_per_day, "rounds in any 24 hours")
        yield (
            "max_hours_per_day",
            _most(self.max_hours_per_day, "hours of work in any 24; a round that gets there ends"),
        )
        subjects, holders = self.min_subjects, self.min_holders
        yield (
            "min_subjects",
            f"takes no part with fewer than {subjects} training subjects, and sums nothing that fewer have"
            if subjects > 1
            else "1: a sum may be over one person, and is that person's image",
        )
        yield "min_holders", f"what fewer than {holders} sites trained must not be released" if holders > 1 else "1"
        yield "metrics", f"sends {_listed(self.metrics, 'all of ' + ', '.join(RELEASED))}, and no other"
        if self.epsilon is None:
            yield "epsilon", "differential privacy is not required"
        else:
            delta = "the run's" if self.delta is None else f"{self.delta:g}"
            yield "epsilon", f"trains privately only, and spends {self.epsilon:g} in all, at delta {delta}"
        says = {
            None: "a plan must name the installed kit's, where there is one, and keep to it",
            "any": "is not looked at",
            "installed": "a plan must name the installed kit's, and keep to it",
        }
        yield "manifest", says.get(self.manifest, f"a plan must name {self.manifest}")
        yield (
            "approve",
            "each run waits for `lacuna-site plans approve`" if self.approve == "ask" else "no one is asked",
        )


# --- making it ------------------------------------------------------------------------------------------------------


def make_policy(table: Mapping[str, Any], node_config: Mapping[str, Any] | None = None) -> Policy:
    """Make it of [policy] and the node config; ConfigError for a key that is unknown, wrong, or in both but unlike."""
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
