"""Where a run stands: written to the disk after every round, so that a killed run goes on from there.

Its tensors lie on the disk and are read one at a time: in the last checkpoint, or between two in the folder `scratch`.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from shared.base import checkpoint
from shared.base.disk.tensors import Lying, Tensors, lying_in, write_each
from shared.base.errors import ConfigError
from shared.base.files import remove, writing
from shared.base.vocabulary import Owner, Weights

WEIGHTS, AVERAGED, STATE = "weights", "ema", "state"


@dataclass(kw_only=True)
class Place:
    """Exactly what a checkpoint holds."""

    scratch: Path
    phase: int
    round: int  # the next one to do
    done: int  # rounds over all phases
    weights: Tensors
    averaged: Tensors  # of the average over rounds what may differ from the weights
    state: Tensors  # the strategy's
    seen: dict[Owner, int] = field(default_factory=dict)  # rounds in which each group was trained, in this phase
    first_watch: dict[str, float] = field(default_factory=dict)  # for the collapse rule

    @property
    def ema(self) -> Tensors:
        return Tensors({**self.weights.entries, **self.averaged.entries})

    def aside(self, name: str, tensors: Weights) -> Tensors:
        """These, on the disk until the next checkpoint."""
        checkpoint.save_tensors(self.scratch / name, tensors, durable=False)
        return lying_in(self.scratch / name)

    def written(self, name: str, every: Mapping[str, Tensor | Lying], values: Iterable[tuple[str, Tensor]]) -> Tensors:
        """The same of values as they come, which are of these forms."""
        with writing(self.scratch / name, durable=False) as file:
            write_each(file, every, values)
        return lying_in(self.scratch / name)

    def change(self, changed: Tensors) -> None:
        """Take tensors that are named as in a checkpoint; the others stay."""
        weights, averaged, state = _groups(changed)
        self.weights = Tensors({**self.weights.entries, **weights})
        self.averaged = Tensors({**self.averaged.entries, **averaged})
        self.state = Tensors({**self.state.entries, **state})

    def standing(self) -> tuple[Tensors, Tensors, Tensors, dict[Owner, int]]:
        """Where it stands now, to go back to until it is saved."""
        return self.weights, self.averaged, self.state, dict(self.seen)

    def go_back(self, before: tuple[Tensors, Tensors, Tensors, dict[Owner, int]]) -> None:
        self.weights, self.averaged, self.state, self.seen = before

    def equal(self, names: Collection[str]) -> None:
        """The average of these is the weights themselves."""
        self.averaged = Tensors({n: entry for n, entry in self.averaged.entries.items() if n not in names})

    def save(self, folder: Path, *, schema: str, before: Collection[int] = ()) -> None:
        """`before`: how many rounds were done when a site first took part; the checkpoint of that place is kept too."""
        groups = ((WEIGHTS, self.weights), (AVERAGED, self.averaged), (STATE, self.state))
        tensors = Tensors({f"{kind}/{name}": e for kind, group in groups for name, e in group.entries.items()})
        record = {
            "phase": self.phase,
            "round": self.round,
            "done": self.done,
            "seen": self.seen,
            "first_watch": self.first_watch,
            "schema": schema,
        }
        step = 2 * self.done + (self.round == 0)  # the end of a phase comes after its last round
        lying = checkpoint.save_step(folder, step, tensors, record, before=[2 * done + 1 for done in before])
        self.weights, self.averaged, self.state = map(Tensors, _groups(lying))
        remove(self.scratch)


def begin(scratch: Path, weights: Weights) -> Place:
    """Before the first round."""
    remove(scratch)
    none = Tensors({})
    place = Place(scratch=scratch, phase=0, round=0, done=0, weights=none, averaged=none, state=none)
    place.weights = place.aside("first", weights)
    return place


def restore(folder: Path, scratch: Path, *, schema: str, run: str) -> Place | None:
    """The last place saved there, or None. ConfigError where it is of a run that another schema describes."""
    remove(scratch)
    found = checkpoint.load_latest(folder)
    if found is None:
        return None
    tensors, record = found
    if record["schema"] != schema:
        raise ConfigError(f"resume={run}: its checkpoint is of another method, grid or version of lacuna")
    weights, averaged, state = map(Tensors, _groups(tensors))
    return Place(
        scratch=scratch,
        phase=record["phase"],
        round=record["round"],
        done=record["done"],
        weights=weights,
        averaged=averaged,
        state=state,
        seen=record["seen"],
        first_watch=record["first_watch"],
    )


def _groups(tensors: Tensors) -> tuple[Mapping[str, Tensor | Lying], ...]:
    group: dict[str, dict[str, Tensor | Lying]] = {WEIGHTS: {}, AVERAGED: {}, STATE: {}}
    for key, value in tensors.entries.items():
        kind, name = key.split("/", 1)
        group[kind][name] = value
    return group[WEIGHTS], group[AVERAGED], group[STATE]
