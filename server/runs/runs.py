"""A run as a folder: made, or found again.

runs/RUN/config.json      what was asked          overrides.json   how, for `resume=RUN`
         rounds.jsonl     a line per round        inventory.json   who can teach what
         checkpoints/     for restart             final/           the released model
         events.jsonl     what is going on         outcome.json     how it ended (server/journal/chronicle.py)
         sites/<name>/    simulated sites' own disks, never read by the server
         alone/<name>/    the same run for one site alone

Carried out by server/runs/serve.py.
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from server.rounds.strategies import STRATEGIES
from shared.base.errors import ConfigError, DataError
from shared.base.files import write_text
from shared.plan.config import Config, load, same_run
from shared.plan.settings import Choice

POOLED = "pooled"  # the one site of a pretraining: all cohorts of the world

Check = Callable[[Config], object]
Form = Callable[[Config], Config]  # what is asked -> what is carried out and stored


def _as_is(config: Config) -> Config:
    return config


def create(overrides: Sequence[str], *, check: Check = lambda config: None, form: Form = _as_is) -> tuple[Config, Path]:
    """The folder of a new run, or of the one that `resume=` names. Nothing is written for one that can't start."""
    config = load(overrides)
    if config.resume is not None:
        return _find_again(config, overrides, form)
    check(config)
    name = config.run or time.strftime("%Y%m%d-%H%M%S")
    folder = Path(config.runs) / name
    if (folder / "config.json").exists():
        raise ConfigError(f"run={name}: there is such a run already; go on with it by resume={name}")
    write_text(folder / "overrides.json", json.dumps(list(overrides)))
    write_text(folder / "config.json", form(config).text())
    return config, folder


def create_shared(overrides: Sequence[str], *, check: Check, form: Form) -> tuple[Config, Path]:
    """`create` where torchrun started several processes: the first one makes the folder, the others find it."""
    config = load(overrides)
    if int(os.environ.get("RANK", "0")) == 0 or config.resume is not None:
        return create(overrides, check=check, form=form)
    if config.run is None:
        raise ConfigError("run=null: under torchrun name the run, so that all processes mean the same")
    return config, Path(config.runs) / config.run


def _find_again(config: Config, overrides: Sequence[str], form: Form) -> tuple[Config, Path]:
    folder = Path(config.runs) / str(config.resume)
    if not (folder / "config.json").exists():
        raise ConfigError(f"resume={config.resume}: no such run in {config.runs}/")
    first = json.loads((folder / "overrides.json").read_text())
    wanted = load([*first, *overrides])
    same_run(read_config(folder), form(wanted))
    return wanted, folder


def read_config(folder: Path) -> Config:
    try:
        return Config.parse((folder / "config.json").read_text())
    except OSError:
        raise DataError(f"{folder}: no run there, config.json is missing") from None
    except ValueError as error:
        raise DataError(f"{folder}: config.json is damaged: {error}") from None


def for_one_site(config: Config, site: str, **federation: Any) -> Config:
    """The same run for a single site: nobody to wait for, and nobody to keep a slice from."""
    alone = dataclasses.replace(config.federation, sites=(site,), min_sites=1, min_holders=1, alone=False, **federation)
    robust = config.strategy.name in STRATEGIES and STRATEGIES[config.strategy.name].needs_all
    strategy = Choice(name="fedavg") if robust else config.strategy  # of one site the median, or any such, is its own
    return dataclasses.replace(config, federation=alone, strategy=strategy)


def untracked(config: Config) -> Config:
    return dataclasses.replace(config, tracking=dataclasses.replace(config.tracking, uri="none"))


def title(folder: Path, config: Config) -> str:
    return f"{folder.name}: {config.method.name}, {config.size}"


def finished(folder: Path) -> bool:
    return (folder / "final" / "model.json").exists()
