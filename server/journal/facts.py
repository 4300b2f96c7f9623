"""What a run remembers of its rounds: one JSON line per finished round, which MLflow and the report are made from.

Plain values only, and only those listed here: numbers that sites released, and what the server saw of each site.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from shared.base import options
from shared.base.errors import ConfigError, DataError
from shared.base.files import adding, write_json
from shared.base.records import Inventory
from shared.base.vocabulary import Modality, Owner, SiteName

Status = Literal["ok", "refused", "rejected", "timeout", "error", "absent"]
# ok: folded in · refused: the site said no · rejected: admission said no · timeout: past the deadline
# error: the site's work or the wire failed · absent: on the roster, not reachable

REASON_CHARS = 300


def words(text: str) -> str:
    """Another machine's words, fit for a terminal, a table and a page: one line, printable, not at any length."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= REASON_CHARS else line[: REASON_CHARS - 1] + "…"


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteFacts:
    """What the server saw of one site in one round."""

    status: Status
    reason: str = ""
    loss: float | None = None
    samples: int = 0
    seconds: float = 0.0
    bytes_up: int = 0  # site -> server
    bytes_down: int = 0  # server -> site
    epsilon_spent: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", words(self.reason))
        object.__setattr__(self, "loss", _finite(self.loss))
        object.__setattr__(self, "epsilon_spent", _finite(self.epsilon_spent))


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundFacts:
    """One finished round, with or without quorum."""

    phase: str
    round: int  # 0-based within the phase
    of: int  # rounds in the phase
    ended: float  # seconds since 1970: with it a replay writes the same MLflow rows again, not new ones
    seconds: float
    loss: float | None  # count-weighted mean over the sites folded in; None without any
    sites: Mapping[SiteName, SiteFacts]
    watch: Mapping[str, float | None] = field(default_factory=dict)
    holders: Mapping[Owner, int] = field(default_factory=dict)
    counts: Mapping[Owner, int] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0
    refusals: tuple[str, ...] = ()  # "north: delta norm 31 is over the limit 10"
    quorum: bool = True
    validation: Mapping[str, float | None] | None = None  # on the coordinator's own cohort: "loss", "psnr/FLAIR"

    @property
    def epsilons(self) -> list[float]:
        """What the private sites' ledgers say so far."""
        return [site.epsilon_spent for site in self.sites.values() if site.epsilon_spent is not None]

    def __post_init__(self) -> None:
        object.__setattr__(self, "refusals", tuple(words(refusal) for refusal in self.refusals))
        object.__setattr__(self, "loss", _finite(self.loss))
        object.__setattr__(self, "watch", {name: _finite(value) for name, value in self.watch.items()})
        if self.validation is not None:
            object.__setattr__(self, "validation", {name: _finite(value) for name, value in self.validation.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteCoverage:
    """What one site said that it holds."""

    subjects: int
    patterns: Mapping[str, int]  # "FLAIR+T1" -> subjects; -k means "1 to k-1", suppressed at the site
    refused: Mapping[str, str] = field(default_factory=dict)  # phase -> why the site takes no part


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Who can teach a source -> target: at least one subject with both."""

    sites: int
    at_least: int  # subjects; the two differ by what small cells hide
    at_most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """Which source -> target pairs the federation can supervise, before round 1."""

    modalities: tuple[Modality, ...]
    sites: Mapping[SiteName, SiteCoverage]
    pairs: Mapping[Modality, Mapping[Modality, Pair]]  # source -> target; the diagonal is "has it"

    def holders(self, modality: Modality) -> int:
        return self.pairs[modality][modality].sites


def coverage(inventories: Sequence[Inventory], modalities: Sequence[Modality]) -> Coverage:
    """The federation's pair matrix, from what the sites said."""
    return Coverage(
        modalities=tuple(modalities),
        sites={
            inventory.site: SiteCoverage(
                subjects=inventory.subjects,
                patterns={"+".join(pattern): count for pattern, count in sorted(inventory.patterns.items())},
                refused=dict(inventory.refused),
            )
            for inventory in sorted(inventories, key=lambda inventory: inventory.site)
        },
        pairs={source: {target: _pair(inventories, source, target) for target in modalities} for source in modalities},
    )


def _pair(inventories: Sequence[Inventory], source: Modality, target: Modality) -> Pair:
    cells = [
        [count for pattern, count in inventory.patterns.items() if source in pattern and target in pattern and count]
        for inventory in inventories
    ]
    return Pair(
        sites=sum(bool(counts) for counts in cells),
        at_least=sum(1 if count < 0 else count for counts in cells for count in counts),
        at_most=sum(-count - 1 if count < 0 else count for counts in cells for count in counts),
    )


def cell(count: int) -> str:
    """A count as people read it: `<5` where a site kept the number to itself."""
    return f"<{-count}" if count < 0 else str(count)


def subjects(pair: Pair) -> str:
    """`12`, or `12-16` where small cells hide the exact number."""
    return str(pair.at_least) if pair.at_least == pair.at_most else f"{pair.at_least}-{pair.at_most}"


def append(path: Path, facts: RoundFacts) -> None:
    """One line, on the disk when this returns; a line that a killed server left half written is cut off first."""
    line = json.dumps(options.plain(facts), allow_nan=False, separators=(",", ":")) + "\n"
    with adding(path) as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(line.encode())


def read(path: Path) -> list[RoundFacts]:
    """All whole lines, in order; a round that was run again after a restart counts once, as it was run last."""
    if not path.exists():
        return []
    whole, _, _torn = path.read_bytes().rpartition(b"\n")
    rounds: dict[tuple[str, int], RoundFacts] = {}
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            facts = options.build(RoundFacts, dict(json.loads(line)), "round")
        except (ValueError, TypeError, ConfigError) as error:
            raise DataError(f"{path.name} line {number}: {error}; it must be one round as JSON") from None
        rounds[facts.phase, facts.round] = facts
    return list(rounds.values())


def save_coverage(path: Path, found: Coverage) -> None:
    write_json(path, options.plain(found))


def load_coverage(path: Path) -> Coverage:
    try:
        return options.build(Coverage, dict(json.loads(path.read_text(encoding="utf-8"))), "coverage")
    except (ValueError, TypeError, ConfigError) as error:
        raise DataError(f"{path.name}: {error}; it must be a coverage as JSON") from None


def _finite(value: float | None) -> float | None:
    """JSON knows no nan and a curve no infinity: both are None, in memory as on the disk."""
    return None if value is None or not math.isfinite(value) else value
