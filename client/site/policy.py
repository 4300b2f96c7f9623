"""What this site allows: its policy; whether a plan keeps to it, client/site/checks.py says.

The policy stands in STATE/site.toml under [policy], or as keys of Flower's node config; one key never in both with two
values. It is read anew for every message, so a change counts from the next one on. Its defaults are a hospital's; what
a simulation says instead stands in server/runs/simulation.py.
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
DELTA = 1e-5  # of a budget for which nobody said another
_HOLDERS = {
    1: ": one site's own update may be",
    2: "; of two holders each can compute the other's update, from the mean and its own",
}
RULES = ("max_rounds", "repeats", "min_samples", "min_subjects", "min_cell", "min_holders", "epsilon")  # with defaults
_MANIFEST = re.compile(r"any|installed|[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What a site allows; a key that is None is no rule."""

    methods: tuple[str, ...] | None = None
    phases: tuple[str, ...] | None = None
    sizes: tuple[str, ...] | None = None
    max_rounds_per_day: int | None = None
    max_hours_per_day: float | None = None  # of work on rounds, as measured here
    max_rounds: int = 2000  # of a run, over all its phases
    repeats: Literal["same", "any"] = "same"  # a round that was answered is answered again for the same weights alone
    min_samples: int = 32  # steps x batch of a round; a site that trains privately has noise instead
    min_subjects: int = 5  # people behind every sum, and behind every part of an update
    min_cell: int = 5  # smaller counts of subjects leave only as "fewer than this"; a plan may ask for more
    min_holders: int = 3  # a run must not release what fewer sites than this trained
    metrics: tuple[str, ...] | None = None  # the others are left out of what is sent
    epsilon: float | None = None  # train with differential privacy only, and spend no more than this, ever
    delta: float | None = None  # None: 1e-5, once the budget is made
    about: int | None = None  # a public round figure of its subjects; None: their number to the nearest ten
    manifest: str | None = None  # that a plan must name; None: the installed kit's, where there is one
    secure: Literal["allowed", "required"] = "allowed"  # runs whose coordinator sees sums of sites alone
    approve: Literal["auto", "ask"] = "auto"

    def __post_init__(self) -> None:
        _among(self.methods, "methods", tuple(METHODS))
        _among(self.sizes, "sizes", SIZES)
        _among(self.metrics, "metrics", RELEASED, empty=True)
        _among(self.phases, "phases", None)
        at_least_one = ("max_rounds", "min_samples", "min_subjects", "min_cell", "min_holders")
        for key in ("max_rounds_per_day", "about", *at_least_one):
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
        yield "max_rounds", f"a run may have at most {self.max_rounds} rounds, over all its phases"
        yield (
            "repeats",
            "a round that was answered is answered again for the same weights alone"
            if self.repeats == "same"
            else "any: a round is answered as often as asked, each time for other weights if it is so wished",
        )
        yield "min_samples", f"a round's update is of {self.min_samples} slices or more (steps x batch)"
        subjects, holders = self.min_subjects, self.min_holders
        yield (
            "min_subjects",
            f"takes no part with fewer than {subjects} training subjects; sends no sum, and no part of an update, that "
            "fewer are behind"
            if subjects > 1
            else "1: a sum may be over one person, and is that person's image; so may an update be",
        )
        yield "min_cell", f"smaller counts of subjects leave only as fewer than {self.min_cell}"
        yield "min_holders", f"what fewer than {holders} sites trained must not be released{_HOLDERS.get(holders, '')}"
        yield "metrics", f"sends {_listed(self.metrics, 'all of ' + ', '.join(RELEASED))}, and no other"
        if self.epsilon is None:
            yield "epsilon", "differential privacy is not required; a private run needs a budget that was made here"
        else:
            delta = DELTA if self.delta is None else self.delta
            yield "epsilon", f"trains privately only, and spends {self.epsilon:g} in all, at delta {delta:g}"
        says = {
            None: "a plan must name the installed kit's, where there is one, and keep to it",
            "any": "is not looked at",
            "installed": "a plan must name the installed kit's, and keep to it",
        }
        yield "manifest", says.get(self.manifest, f"a plan must name {self.manifest}")
        yield (
            "secure",
            "required: takes part only where the coordinator sees sums of sites alone"
            if self.secure == "required"
            else "allowed: takes part where the coordinator sees this site's own update, and where it sees sums alone",
        )
        yield (
            "approve",
            "each run waits for `lacuna-site plans approve`" if self.approve == "ask" else "no one is asked",
        )


_LINES: Mapping[str, tuple[str, str]] = {  # of what `lacuna-site init` writes; "": the default
    "methods": ('["amm_diff"]', "a run of any other is refused; no rule without this line, as in the next four"),
    "phases": ('["translate"]', "and these phases alone"),
    "sizes": ('["tiny", "small"]', ""),
    "max_rounds_per_day": ("50", "in any 24 hours, over all runs"),
    "max_hours_per_day": ("8.0", "of work; a round that gets there ends"),
    "max_rounds": ("", "of a run, over all its phases"),
    "repeats": ("", 'a round that was answered is answered again for the same weights alone; "any": for all'),
    "min_samples": ("", "slices behind an update: steps x batch of a round"),
    "min_subjects": ("", "people behind every sum, and behind every part of an update"),
    "min_cell": ("", "smaller counts of subjects leave only as fewer than this"),
    "min_holders": ("", "what fewer sites trained is not released; of two, each can compute the other's update"),
    "metrics": ('["loss", "samples"]', "others are left out of what is sent"),
    "epsilon": ("8.0", "train privately only, and never spend more; without it no run is private here"),
    "delta": (f"{DELTA:g}", "of that budget, when it is made"),
    "about": ("70", "the round figure of subjects that is told of a private site"),
    "manifest": ('"installed"', 'the kit\'s is asked of each plan anyway; "any": none is'),
    "secure": ('"required"', 'takes part only where the coordinator sees sums of sites alone; "allowed" without'),
    "approve": ('"ask"', 'each run waits for `lacuna-site plans approve`; "auto" without this line'),
}


def template() -> str:
    """STATE/site.toml as `lacuna-site init` writes it: every key of the policy, explained, and none set."""
    rules = []
    for key, (example, words) in _LINES.items():
        value = example or json.dumps(getattr(Policy(), key))
        rules.append(f"# {key} = {value}".ljust(34) + (f"# {words}" if words else ""))
    return (
        "# What this site decides about itself. It never leaves, and is read anew for every message.\n"
        "# A line counts without its first #; until then its default holds. `lacuna-site policy` says what holds.\n"
        '\n[site]\n# cohorts = ["/data/strokes"]     # folders that `lacuna-site prepare` has prepared\n'
        "\n[policy]\n" + "\n".join(line.rstrip() for line in rules) + "\n"
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
