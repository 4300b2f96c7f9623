"""The finished run whose weights another starts from, and what it was made of.

What stays frozen leaves with the model, so under differential privacy a prior must have been trained on data that
anyone may see, or privately itself: its own word on that travels with it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from shared.base.errors import ConfigError
from shared.base.options import plain
from shared.base.owners import digest
from shared.base.vocabulary import Weights
from shared.model.model import read_model, run_folder
from shared.plan import lora
from shared.plan.config import Config
from shared.trust import claims


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    run: str
    weights: Weights
    record: Mapping[str, Any]  # its model.json

    @property
    def data(self) -> str | None:
        """What it was trained on, where that is public."""
        found = self.record["provenance"].get("data")
        return None if found is None else str(found)

    def for_provenance(self) -> claims.Prior:
        """What the provenance of a run that starts from it says of it."""
        record = claims.read(self.record["provenance"])
        said = claims.short(record) if record.private else None
        return claims.Prior(run=self.run, data=self.data, weights=digest(self.weights), privacy=said)


def find(config: Config) -> Prior | None:
    name = config.tuning.prior
    if name is None:
        return None
    folder = run_folder(Path(config.runs), name) / "final"
    if not (folder / "model.json").exists():
        raise ConfigError(f"tuning.start={name}: no finished run of that name in {config.runs}/")
    model = read_model(folder)
    wanted = {"method": config.method.name, "options": plain(config.method.options)}
    for key, value in wanted.items():
        if model.record[key] != value and not config.tuning.take:
            raise ConfigError(f"tuning.start={name}: its {key} is {model.record[key]}, this run's is {value}")
    weights = {n: v.detach().clone() for n, v in model.net.state_dict().items()}
    prior = Prior(run=name, weights=weights, record=model.record)
    if config.privacy.mode != "off" and prior.data is None and not _private(prior):
        raise ConfigError(
            f"tuning.start={name}: trained on data that nobody called public, and without privacy; under "
            f"privacy.mode={config.privacy.mode} a prior is of phantoms, of data named by public=..., or private itself"
        )
    return prior


def initial(prior: Prior | None, config: Config, own: Weights) -> Weights:
    """A run's first weights: its own, those of its prior, or some of them."""
    if prior is None:
        return own
    if not config.tuning.take:
        return lora.split(prior.weights, own)
    taken = {n: v for n, v in prior.weights.items() if any(fnmatchcase(n, pattern) for pattern in config.tuning.take)}
    for pattern in config.tuning.take:
        if not any(fnmatchcase(n, pattern) for n in taken):
            raise ConfigError(f"tuning.take={pattern}: names no tensor of {prior.run}")
    for name, value in taken.items():
        if name not in own or own[name].shape != value.shape:
            raise ConfigError(f"tuning.take: {name} of {prior.run} does not fit {config.method.name} of this size")
    return {**own, **taken}


def trained_on(config: Config) -> str | None:
    """What a run's training data are, where anyone may see them."""
    if config.public is not None:
        return config.public
    if config.world is None:
        return None
    try:
        made = json.loads((Path(config.world) / "world.json").read_text())
        return claims.PHANTOM if made["made_by"] == "lacuna phantom" else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _private(prior: Prior) -> bool:
    """Every site that trained it did so privately, from nothing or from what is public."""
    record = claims.read(prior.record["provenance"])
    began = record.prior is None or record.prior.data is not None
    return bool(record.private) and not record.not_private and began
