"""The table of strategies: server arithmetic and nothing else; the round sees to it that untrained slices stay."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

from torch import Tensor

from server.rounds.strategies.adaptive import FedAdam, FedYogi
from server.rounds.strategies.average import FedAvg, FedAvgM
from server.rounds.strategies.robust import Krum, Median, TrimmedMean
from shared.base.vocabulary import Weights


class Strategy(Protocol):
    """Options in a frozen dataclass; state in and out; pure."""

    needs_all: ClassVar[bool]

    def begin(self, weights: Weights) -> dict[str, Tensor]:
        """The state before the first round, by name; entries named `<kind>/<tensor>` follow that tensor's owners."""

    def step(
        self, weights: Weights, mean_delta: Weights, state: Weights
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """New weights and new state from the round's mean delta."""


class RobustStrategy(Strategy, Protocol):
    """needs_all: sees every holder's delta of one tensor part at a time, streamed from disk."""

    @property
    def needs(self) -> int:
        """Fewer holders than this it can't outvote one of."""

    @property
    def why(self) -> str:
        """Why so many."""

    def choose(self, distances_NN: Tensor) -> Sequence[int]:
        """Which updates may speak at all, from their mean squared distances on what both hold (nan: nothing shared)."""

    def centre(self, deltas_N: Tensor, counts_N: Tensor) -> Tensor:
        """One delta from the N holders' deltas, stacked along the first axis."""


STRATEGIES: Mapping[str, type[Strategy]] = {
    "fedavg": FedAvg,
    "fedavgm": FedAvgM,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "median": Median,
    "trimmed_mean": TrimmedMean,
    "krum": Krum,
}
