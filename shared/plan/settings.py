"""What a site reads of a run: settings that travel as JSON in the plan. Hydra makes them, in config.py alone."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from shared.base.errors import ConfigError
from shared.base.options import build, plain, require
from shared.base.owners import keep_local
from shared.base.records import Owners, Phase
from shared.data.intensities import rules_version
from shared.data.volumes import Grid
from shared.diffusion.samplers import Sampler
from shared.methods import METHODS, Method
from shared.plan import lora
from shared.plan.integers import Estimator, Word
from shared.plan.packed import Bits, Step
from shared.plan.training import PhaseTraining
from shared.trust.privacy import Privacy, Query, Spending

CONFIGS = Path(__file__).parents[2] / "configs"
NOTHING = "none"


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
    relative: float = 3.0  # times the round's median norm, of three sites or more; honest ones were within 1.3
    apart: float = 1.5  # of a site's sums from the median of the sites' means, as a part of that median
    weight: float = 10.0  # times what a person counts for in sums at the median site

    def __post_init__(self) -> None:
        require(self.norm > 0, "norm", self.norm, "above 0")
        require(0 < self.entry <= 2**20, "entry", self.entry, "in (0, 2^20]")
        require(self.relative > 1, "relative", self.relative, "above 1")
        require(self.apart > 0, "apart", self.apart, "above 0")
        require(self.weight > 1, "weight", self.weight, "above 1")


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
    up: Bits = "fp32"
    down: Step = "fp32"
    secure: bool = False  # the coordinator sees sums of sites alone: then each site holds itself to these three
    limits: Limits = field(default_factory=Limits)
    estimator: Estimator = "masked"
    word: Word = 64
    manifest: str | None = None
    privacy: Privacy = field(default_factory=Privacy)
    tuning: Tuning = field(default_factory=Tuning)

    @staticmethod
    def parse(text: str) -> "RunSettings":
        return build(RunSettings, json.loads(text), "plan")

    @staticmethod
    def of_run(config: Mapping[str, Any]) -> "RunSettings":
        """Of a run's config.json, which keeps some of them in its group `federation`."""
        own, group = RunSettings.__dataclass_fields__, config["federation"]
        if not isinstance(group, Mapping):
            raise ConfigError(f"config.federation={group!r}: must be a group of keys")
        values = {key: value for key, value in {**config, **group}.items() if key in own}
        return build(RunSettings, values, "config")

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
        found: dict[Query, int] = {}
        for phase in self.phases(method):
            for query, n in self.round_queries(phase).items():
                rounds = phase.rounds if phase.kind == "sums" else self.training[phase.name].rounds
                found[query] = found.get(query, 0) + n * rounds
        return found

    def round_queries(self, phase: Phase) -> dict[Query, int]:
        """What one round of a phase asks of them."""
        if phase.kind == "sums":
            return {Query(noise=self.privacy.sums_noise, rate=1.0): 1}
        assert self.privacy.noise is not None, "a private run says its noise"
        return {Query(noise=self.privacy.noise, rate=self.privacy.rate): self.training[phase.name].steps}

    @property
    def schema(self) -> str:
        """Hash of what must agree before any number is averaged: method, modalities, grid, intensities, code."""
        agreed = {
            "tuning": plain(self.tuning),
            "method": plain(self.method),
            "grid": plain(self.grid),
            "intensities": rules_version(self.build_method().modalities),
            "lacuna": version("lacuna"),
        }
        return hashlib.sha256(json.dumps(agreed, sort_keys=True).encode()).hexdigest()


def build_method(choice: Choice) -> Method:
    if choice.name not in METHODS:
        raise ConfigError(f"method={choice.name}: must be one of {', '.join(METHODS)}")
    return build(METHODS[choice.name], choice.options, "method")


def load_sampler(kind: str) -> Sampler:
    """A row of configs/sampler by name, with its own steps and samples."""
    rows = {path.stem: path for path in sorted((CONFIGS / "sampler").glob("*.yaml"))}
    if kind not in rows:
        raise ConfigError(f"sampler={kind}: must be one of {', '.join(rows)}")
    return build(Sampler, yaml.safe_load(rows[kind].read_text(encoding="utf-8")), "sampler")
