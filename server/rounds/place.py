"""Where a run stands: written to the disk after every round, so that a killed run goes on from there."""

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from shared.base import checkpoint
from shared.base.errors import ConfigError
from shared.base.vocabulary import Owner, Weights


@dataclass(kw_only=True)
class Place:
    """Exactly what a checkpoint holds."""

    phase: int
    round: int  # the next one to do
    done: int  # rounds over all phases
    weights: Weights
    ema: Weights
    state: Weights  # the strategy's
    seen: dict[Owner, int] = field(default_factory=dict)  # rounds in which each group was trained, in this phase
    first_watch: dict[str, float] = field(default_factory=dict)  # for the collapse rule

    def save(self, folder: Path, *, schema: str, before: Collection[int] = ()) -> None:
        """`before`: how many rounds were done when a site first took part; the checkpoint of that place is kept too."""
        tensors = {f"weights/{name}": value for name, value in self.weights.items()}
        averaged = {n: v for n, v in self.ema.items() if v is not self.weights.get(n)}
        tensors |= {f"ema/{name}": value for name, value in averaged.items()}
        tensors |= {f"state/{name}": value for name, value in self.state.items()}
        record = {
            "phase": self.phase,
            "round": self.round,
            "done": self.done,
            "seen": self.seen,
            "first_watch": self.first_watch,
            "schema": schema,
        }
        step = 2 * self.done + (self.round == 0)  # the end of a phase comes after its last round
        checkpoint.save_step(folder, step, tensors, record, before=[2 * done + 1 for done in before])


def restore(folder: Path, *, schema: str, run: str) -> Place | None:
    """The last place saved there, or None. ConfigError where it is of a run that another schema describes."""
    found = checkpoint.load_latest(folder)
    if found is None:
        return None
    tensors, record = found
    if record["schema"] != schema:
        raise ConfigError(f"resume={run}: its checkpoint is of another method, grid or version of lacuna")
    group: dict[str, dict[str, Tensor]] = {"weights": {}, "ema": {}, "state": {}}
    for key, value in tensors.items():
        kind, name = key.split("/", 1)
        group[kind][name] = value
    return Place(
        phase=record["phase"],
        round=record["round"],
        done=record["done"],
        weights=group["weights"],
        ema={**group["weights"], **group["ema"]},
        state=group["state"],
        seen=record["seen"],
        first_watch=record["first_watch"],
    )
