"""A federation of the probe method in a folder, with a view that only remembers."""

from pathlib import Path
from typing import Any

from shared.base.owners import digest
from shared.data.volumes import Grid
from shared.diffusion.samplers import Sampler
from shared.plan.config import Config, Federation, Tracking, Validation
from shared.plan.settings import Choice
from shared.plan.training import PhaseTraining


def config(world: Path, *, rounds: int = 3, strategy: str = "fedavg", **federation: Any) -> Config:
    return Config(
        run=None,
        resume=None,
        runs="runs",
        world=str(world),
        seed=3,
        device="cpu",
        size="tiny",
        method=Choice(name="probe"),
        training={"fit": PhaseTraining(rounds=rounds, steps=4, batch=4, lr=0.01, ema=0.9)},
        grid=Grid(height=16, width=16),
        federation=Federation(deadline=60.0, **federation),
        strategy=Choice(name=strategy),
        sampler=Sampler(),
        validation=Validation(every=0),
        tracking=Tracking(uri="none"),
    )


def weights_digest(folder: Path) -> str:
    from safetensors.torch import load_file

    return digest(load_file(folder / "final" / "weights.safetensors"))


def write(folder: Path, wanted: Config) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(wanted.text())
    return folder
