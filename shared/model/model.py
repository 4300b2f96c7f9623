"""A trained model: read from its folder, checked, and ready to fill subjects in (shared/model/fill.py)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from shared.base.errors import ConfigError, DataError
from shared.base.options import build
from shared.base.vocabulary import Modality, Weights
from shared.clinical.attach import attach_own
from shared.data.volumes import Grid
from shared.diffusion.samplers import Sampler
from shared.methods import METHODS, Method

PUBLIC = "public"  # the name of the run that comes with Lacuna
SHIPPED = Path(__file__).parent / PUBLIC  # config.json and final/, as in any run's folder
KEYS = ("method", "options", "modalities", "grid", "sampler", "provenance")  # of model.json


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    name: str  # of its method
    method: Method
    net: nn.Module
    grid: Grid
    sampler: Sampler  # what it was validated with
    record: Mapping[str, Any]  # model.json

    @property
    def modalities(self) -> tuple[Modality, ...]:
        return self.method.modalities

    @property
    def patterns(self) -> tuple[frozenset[Modality], ...] | None:
        """Which modalities some training subject had together; None where an older version did not say."""
        found = self.record.get("provenance", {}).get("patterns")
        return None if found is None else tuple(frozenset(pattern) for pattern in found)


def run_folder(runs: Path, run: str) -> Path:
    """A run's folder: `public` is the one that comes with Lacuna, unless a run of one's own has that name."""
    own = runs / run
    return SHIPPED if run == PUBLIC and not own.exists() else own


def read_model(folder: Path) -> Model:
    """A released model: weights.safetensors and model.json, as in runs/RUN/final."""
    try:
        record = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        weights = load_file(folder / "weights.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(f"model {folder}: can't be read: {error}") from None
    missing = [key for key in KEYS if key not in record]
    if missing:
        raise DataError(f"model {folder}: model.json has no {missing[0]}")
    return rebuild(record, weights, f"model {folder}")


def rebuild(record: Mapping[str, Any], weights: Weights, where: str) -> Model:
    """Build the method by its name and options, and load its weights: what is read is numbers and words, never code."""
    name = record["method"]
    if name not in METHODS:
        raise DataError(f"{where}: method={str(name)[:80]!r}: this version knows {', '.join(METHODS)}")
    try:
        method: Method = build(METHODS[name], record["options"], "options")
        grid, sampler = build(Grid, record["grid"], "grid"), build(Sampler, record["sampler"], "sampler")
    except ConfigError as error:
        raise DataError(f"{where}: {str(error)[:300]}") from None
    if list(method.modalities) != list(record["modalities"]):
        raise DataError(
            f"{where}: modalities={str(record['modalities'])[:200]}: its method says {list(method.modalities)}"
        )
    net = method.build(0)
    try:
        net.load_state_dict(dict(weights))
    except RuntimeError as error:
        first = next((line.strip() for line in str(error).splitlines()[1:]), str(error))
        raise DataError(f"{where}: the weights are not those of {name} with these options: {first[:200]}") from None
    attach_own(net, method)
    net.eval().requires_grad_(False)
    return Model(
        name=name,
        method=method,
        net=net,
        grid=grid,
        sampler=sampler,
        record=record,
    )
