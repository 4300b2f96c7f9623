"""Hydra text -> frozen dataclasses, checked once. The only place that knows Hydra."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from torch import nn

from shared.base.errors import ConfigError
from shared.base.options import build, plain, require
from shared.base.owners import keep_local
from shared.base.records import Owners, Phase
from shared.clinical.attach import planned_fingerprint, reads_text
from shared.clinical.probes import same_encoder
from shared.data.intensities import RULES_VERSION
from shared.data.volumes import Grid
from shared.diffusion.samplers import Sampler
from shared.methods import METHODS, Method
from shared.plan import lora
from shared.plan.training import PhaseTraining
from shared.trust.privacy import Privacy, Query, Spending, noise_for

CONFIGS = Path(__file__).parents[2] / "configs"
_HASH = re.compile(r"[0-9a-f]{64}")
_MAY_CHANGE = ("run", "resume", "device", "tracking", "validation")  # between a run and its resumption
_ENCODER = "method.options.text_fingerprint"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A row of a table by name, with its options: a method, a strategy."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an honest update can't exceed."""

    norm: float = 1e3  # l2 of the whole delta
    entry: float = 64.0  # any one weight; with the samples of a round it bounds the integer sums

    def __post_init__(self) -> None:
        require(self.norm > 0, "norm", self.norm, "above 0")
        require(0 < self.entry <= 2**20, "entry", self.entry, "in (0, 2^20]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Federation:
    engine: Literal["local", "ray"] = "local"
    sites: tuple[str, ...] | None = None
    targets: tuple[str, ...] | None = None
    fraction: float = 1.0
    min_sites: int = 2
    min_holders: int = 2
    deadline: float = 3600.0
    retries: int = 2
    estimator: Literal["masked", "delta"] = "masked"
    keep_local: tuple[str, ...] = ()
    min_cell: int = 5
    limits: Limits = Limits()
    alone: bool = False
    disks: str | None = None  # simulation: folder of the sites' own disks, kept over runs; null: in the run
    manifest: str | None = None  # hash of what the federation agreed on; a site's policy may ask that a plan names it
    mixed_preparation: bool = False  # sites whose images were prepared in different ways may train together

    def __post_init__(self) -> None:
        require(0 < self.fraction <= 1, "fraction", self.fraction, "in (0, 1]")
        require(self.min_sites >= 1, "min_sites", self.min_sites, "1 or more")
        require(self.min_holders >= 1, "min_holders", self.min_holders, "1 or more")
        require(self.deadline > 0, "deadline", self.deadline, "above 0 seconds")
        require(self.retries >= 0, "retries", self.retries, "0 or more")
        require(self.min_cell >= 1, "min_cell", self.min_cell, "1 or more")
        known = self.manifest is None or _HASH.fullmatch(self.manifest) is not None
        require(known, "manifest", self.manifest, "64 hex digits, or null")


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    every: int = 5
    slices: int = 16

    def __post_init__(self) -> None:
        require(self.every >= 0, "every", self.every, "0 or more")
        require(self.slices >= 1, "slices", self.slices, "1 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracking:
    uri: str = "none"
    experiment: str = "lacuna"


NOTHING = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """Where a run starts, and which weights it may change."""

    start: str | None = None
    take: tuple[str, ...] = ()  # tensors taken from it (shell patterns), into a method that may be another; (): all
    skip: tuple[str, ...] = ()  # phases that are left as the start has them
    only: tuple[str, ...] = ()
    lora: int = 0

    def __post_init__(self) -> None:
        require(self.lora >= 0, "lora", self.lora, "0 or more")
        named = self.prior is not None
        require(named or not (self.take or self.skip), "start", self.start, "a run, with tuning.take or tuning.skip")
        require(not (self.take and self.lora), "take", self.take, "empty with tuning.lora")

    @property
    def prior(self) -> str | None:
        return None if self.start == NOTHING else self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """What every site must know of a run; travels as JSON in the plan, and never as code."""

    method: Choice
    training: Mapping[str, PhaseTraining]
    grid: Grid
    seed: int
    keep_local: tuple[str, ...]
    min_cell: int
    min_holders: int
    manifest: str | None = None
    privacy: Privacy = field(default_factory=Privacy)
    tuning: Tuning = field(default_factory=Tuning)

    @staticmethod
    def parse(text: str) -> "RunSettings":
        return build(RunSettings, json.loads(text), "plan")

    def text(self) -> str:
        return json.dumps(plain(self), sort_keys=True)

    def build_method(self) -> Method:
        return build_method(self.method)

    def build_net(self, method: Method) -> nn.Module:
        """The network as this run trains it, with its first weights."""
        return lora.adapt(method.build(self.seed), self.tuning.lora, self.seed)

    def phases(self, method: Method) -> tuple[Phase, ...]:
        """A prior brings its own agreed constants: what it was trained around is not summed anew."""
        names = [phase.name for phase in method.phases]
        for name in self.tuning.skip:
            require(name in names, "tuning.skip", name, f"among {', '.join(names)}")
        whole = self.tuning.prior is not None and not self.tuning.take
        return tuple(
            phase
            for phase in method.phases
            if phase.name not in self.tuning.skip and (phase.kind != "sums" or not whole)
        )

    def owners(self, method: Method, net: nn.Module, phase: str) -> Owners:
        """What this run trains in a phase."""
        if not self.tuning.lora:
            every = method.owners(net, phase)
            return keep_local(self._named(every) if self.tuning.only else every, self.keep_local)
        every = method.owners(method.build(self.seed), phase)
        return keep_local(lora.owners(net, every, self._named(every)), self.keep_local)

    def _named(self, every: Owners) -> Owners:
        return {n: o for n, o in every.items() if any(fnmatchcase(n, pattern) for pattern in self.tuning.only)}

    def queries(self, method: Method) -> Spending:
        """What the whole run asks of a private site's subjects."""
        if self.privacy.noise is None:
            return {}
        step = Query(noise=self.privacy.noise, rate=self.privacy.rate)
        found: dict[Query, int] = {}
        for phase in self.phases(method):
            query, n = (
                (step, self.training[phase.name].rounds * self.training[phase.name].steps)
                if (phase.kind == "train")
                else (Query(noise=self.privacy.sums_noise, rate=1.0), 1)
            )
            found[query] = found.get(query, 0) + n
        return found

    @property
    def schema(self) -> str:
        """Hash of what must agree before any number is averaged: method, modalities, grid, intensities, code."""
        agreed = {
            "tuning": plain(self.tuning),
            "method": plain(self.method),
            "grid": plain(self.grid),
            "intensities": RULES_VERSION,
            "lacuna": version("lacuna"),
        }
        return hashlib.sha256(json.dumps(agreed, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    run: str | None
    resume: str | None
    runs: str
    world: str | None
    seed: int
    device: str
    size: Literal["tiny", "small", "paper"]
    method: Choice
    training: Mapping[str, PhaseTraining]
    grid: Grid
    federation: Federation
    strategy: Choice
    sampler: Sampler
    validation: Validation
    tracking: Tracking
    public: str | None = None
    privacy: Privacy = field(default_factory=Privacy)
    tuning: Tuning = field(default_factory=Tuning)

    def build_method(self) -> Method:
        return build_method(self.method)

    def for_sites(self) -> RunSettings:
        return RunSettings(
            method=self.method,
            training=self.training,
            grid=self.grid,
            seed=self.seed,
            keep_local=self.federation.keep_local,
            min_cell=self.federation.min_cell,
            min_holders=self.federation.min_holders,
            manifest=self.federation.manifest,
            privacy=self.privacy,
            tuning=self.tuning,
        )

    def text(self) -> str:
        return json.dumps(plain(self), indent=1, sort_keys=True)

    @staticmethod
    def parse(text: str) -> "Config":
        return build(Config, json.loads(text), "config")


def load(overrides: Sequence[str]) -> Config:
    """Compose configs/ with `key=value` overrides. A wrong key or value is a ConfigError that names it."""
    config = build(Config, _choices(_compose(overrides)), "config")
    method = config.build_method()
    _check_phases(config.training, method, config.method.name)
    return _with_fingerprint(_with_noise(config, method), method)


def load_sampler(kind: str) -> Sampler:
    """A row of configs/sampler by name, with its own steps and samples."""
    return build(Sampler, _compose([f"sampler={kind}"])["sampler"], "sampler")


def build_method(choice: Choice) -> Method:
    if choice.name not in METHODS:
        raise ConfigError(f"method={choice.name}: must be one of {', '.join(METHODS)}")
    return build(METHODS[choice.name], choice.options, "method")


def same_run(stored: Config, wanted: Config) -> None:
    """A resumed run must be the run that was stopped: ConfigError names the first key that differs."""
    before, now = _flat(plain(stored)), _flat(plain(wanted))
    for key in sorted(before.keys() | now.keys()):
        if key == _ENCODER and same_encoder(str(before.get(key)), str(now.get(key))):
            continue  # near, as sites' may be
        if key.split(".")[0] not in _MAY_CHANGE and before.get(key) != now.get(key):
            raise ConfigError(
                f"{key}={now.get(key)!r}: the run being resumed has {before.get(key)!r}; start a new run to change it"
            )


def with_changes(config: Config, **changes: Any) -> Config:
    return dataclasses.replace(config, **changes)


def _compose(overrides: Sequence[str]) -> dict[str, Any]:
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        with initialize_config_dir(config_dir=str(CONFIGS), version_base="1.3"):
            composed = compose("config", overrides=list(overrides))
        resolved = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # the last: `group=null`
        raise ConfigError(_short(error)) from None
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def _choices(values: dict[str, Any]) -> dict[str, Any]:
    """In YAML a row's options stand beside its name; in the record they are one group."""
    for group in ("method", "strategy"):
        options = dict(values[group])
        values[group] = {"name": options.pop("name"), "options": options}
    return values


def _with_noise(config: Config, method: Method) -> Config:
    """A private run says its noise as a number, so that everybody counts with the same one."""
    privacy = config.privacy
    if privacy.mode == "off":
        return config
    if config.tuning.start is None:
        raise ConfigError(
            f"tuning.start=null: with privacy.mode={privacy.mode} a run starts from a public prior; name it by "
            "tuning.start=RUN (`lacuna pretrain world=... run=RUN` makes one), or say tuning.start=none"
        )
    if privacy.noise is not None:
        return config
    one = with_changes(config, privacy=dataclasses.replace(privacy, noise=1.0)).for_sites().queries(method)
    step = Query(noise=1.0, rate=privacy.rate)
    besides = {query: n for query, n in one.items() if query != step}
    noise = noise_for(privacy.epsilon, privacy.delta, rate=privacy.rate, steps=one.get(step, 0), besides=besides)
    return with_changes(config, privacy=dataclasses.replace(privacy, noise=noise))


def _with_fingerprint(config: Config, method: Method) -> Config:
    """What all sites' text encoders must be like; one of a site's own kind is the coordinator's, of its environment."""
    if not reads_text(method) or method.text_fingerprint:
        return config
    options = {**config.method.options, "text_fingerprint": planned_fingerprint(method)}
    return with_changes(config, method=dataclasses.replace(config.method, options=options))


def _check_phases(training: Mapping[str, PhaseTraining], method: Method, name: str) -> None:
    trained = [phase.name for phase in method.phases if phase.kind == "train"]
    for phase in trained:
        if phase not in training:
            raise ConfigError(f"training.{phase}: missing; method {name} has the phases {', '.join(trained)}")


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {k: v for key, entry in value.items() for k, v in _flat(entry, f"{prefix}{key}.").items()}
    return {prefix[:-1]: value}


def _short(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = error.__cause__
    more = [line.strip() for line in str(cause).splitlines() if line.strip()][:2] if cause is not None else []
    return "; ".join(dict.fromkeys(lines[:3] + more))
