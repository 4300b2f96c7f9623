"""What `lacuna open` was told: the folder of the runs, and that of the federation."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shared.base.errors import ConfigError
from shared.page.ask import NotFound
from shared.page.decided import Decided

LOG = ".page"  # in the folder of the runs


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    runs: Path
    federation: Path

    def __post_init__(self) -> None:
        if not self.runs.is_dir():
            raise ConfigError(f"--runs {self.runs}: no folder there; `lacuna simulate` and `lacuna train` make it")

    @property
    def decided(self) -> Decided:
        return Decided(self.runs / LOG)

    def names(self) -> Iterator[str]:
        for path in sorted(self.runs.glob("*/config.json")):
            yield path.parent.name

    def find(self, name: str) -> Path:
        """A run's folder, if it is one of those that are there."""
        if name not in set(self.names()):
            raise NotFound
        return self.runs / name
