"""Hydra text -> frozen dataclasses, checked once: the whole of a run, as its coordinator has it. The door to Hydra."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from shared.base.errors import ConfigError
from shared.base.names import check_run, check_site
from shared.base.options import build, plain, require
from shared.clinical.attach import planned_fingerprint, reads_text
from shared.clinical.probes import same_encoder
from shared.data.volumes import Grid
from shared.diffusion.samplers import Sampler
from shared.methods import Method
from shared.plan.integers import Estimator, Word
from shared.plan.packed import Bits, Step
from shared.plan.settings import CONFIGS, Choice, Limits, RunSettings, Tuning, build_method
from shared.plan.training import PhaseTraining
from shared.trust.privacy import Privacy, Query, noise_for
from shared.trust.secure.circle import LEAST

_HASH = re.compile(r"[0-9a-f]{64}")
_MAY_CHANGE = ("run", "resume", "device", "tracking", "validation")  # between a run and its resumption
_ENCODER = "method.options.text_fingerprint"


@dataclass(frozen=True, slots=True, kw_only=True)
class Federation:
    engine: Literal["local", "ray"] = "local"
    sites: tuple[str, ...] | None = None
    without: tuple[str, ...] = ()  # sites that take no part, whoever else does
    targets: tuple[str, ...] | None = None
    fraction: float = 1.0
    min_sites: int = 2
    min_holders: int = 2
    deadline: float = 3600.0
    retries: int = 2
    estimator: Estimator = "masked"
    up: Bits = "fp32"
    down: Step = "fp32"
    keep_local: tuple[str, ...] = ()
    min_cell: int = 5
    secure: bool = False  # the coordinator sees sums of sites alone
    word: Word = 64  # bits of a sum
    limits: Limits = field(default_factory=Limits)
    alone: bool = False
    min_subjects: int = 1  # simulation: what its sites' policies ask for; a deployed site says its own
    disks: str | None = None  # simulation: folder of the sites' own disks, kept over runs; null: in the run
    manifest: str | None = None  # hash of what the federation agreed on; a site's policy may ask that a plan names it
    mixed_preparation: bool = False  # sites whose images were prepared in different ways may train together

    @property
    def named(self) -> tuple[str, ...] | None:
        """The sites that may take part; None: all that are not among `without`."""
        return tuple(site for site in self.sites if site not in self.without) if self.sites else None

    def __post_init__(self) -> None:
        for site in self.without:
            check_site(site, "without")
        require(0 < self.fraction <= 1, "fraction", self.fraction, "in (0, 1]")
        require(self.min_sites >= 1, "min_sites", self.min_sites, "1 or more")
        require(self.min_holders >= 1, "min_holders", self.min_holders, "1 or more")
        require(self.deadline > 0, "deadline", self.deadline, "above 0 seconds")
        require(self.retries >= 0, "retries", self.retries, "0 or more")
        require(self.min_subjects >= 1, "min_subjects", self.min_subjects, "1 or more")
        require(self.min_cell >= 1, "min_cell", self.min_cell, "1 or more")
        for key in ("min_sites", "min_holders") if self.secure else ():
            require(getattr(self, key) >= LEAST, key, getattr(self, key), f"{LEAST} or more with secure=true")
        require(
            self.up == "fp32" or not self.secure, "up", self.up, "fp32 with secure=true: what is hidden has word bits"
        )
        known = self.manifest is None or _HASH.fullmatch(self.manifest) is not None
        require(known, "manifest", self.manifest, "64 hex digits, or null")


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    every: int = 5
    slices: int = 16
    gate: float | None = None  # dB: a round that makes the model so much worse than its best is not taken

    def __post_init__(self) -> None:
        require(self.gate is None or self.gate > 0, "gate", self.gate, "above 0 dB, or null")
        require(self.every >= 0, "every", self.every, "0 or more")
        require(self.slices >= 1, "slices", self.slices, "1 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracking:
    uri: str = "none"
    experiment: str = "lacuna"


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

    def __post_init__(self) -> None:
        if self.run is not None:
            check_run(self.run, "run")

    def name_of(self, folder: Path) -> str:
        """What the run in this folder is called, at the sites too."""
        return check_run(self.run or folder.name, "run")

    def build_method(self) -> Method:
        return build_method(self.method)

    def for_sites(self) -> RunSettings:
        return RunSettings.of_run(plain(self))

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
    if config.sampler.kind not in method.samplers:
        takes = ", ".join(method.samplers)
        raise ConfigError(f"sampler={config.sampler.kind}: method {config.method.name}, as it is set, takes {takes}")
    return _with_fingerprint(_with_noise(config, method), method)


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
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    sizes = {
        path.stem: OmegaConf.select(OmegaConf.load(path), "sizes")
        for path in sorted((CONFIGS / "method").glob("*.yaml"))
    }
    for name, its in sizes.items():
        for size, values in its.items():  # the group `training`, of which config.yaml takes METHOD_SIZE
            ConfigStore.instance().store(f"{name}_{size}", values, group="training", package="_global_")
    try:
        with initialize_config_dir(config_dir=str(CONFIGS), version_base="1.3"):
            composed = compose("config", overrides=list(overrides))
        resolved = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # the last: `group=null`
        raise ConfigError(_short(error)) from None
    assert isinstance(resolved, dict)
    if resolved["method"].pop("sizes", None) not in sizes.values():
        raise ConfigError("method.sizes: can't be changed; name the keys that a size stands for, such as training.*")
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
