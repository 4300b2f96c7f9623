"""What a site may hand over of its memorisation audit: a few figures and its own limits, nothing of any subject.

`lacuna-site audit memorisation` writes it as summary.json; `lacuna export --audit` warns of what is above the limits
and keeps it in the bundle. Nobody signs it: it is one site's word, bound to the weights that were audited.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.base.errors import ConfigError, DataError
from shared.base.options import build, require

KIND = "memorisation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Above these the site wants to be warned."""

    duplicates: float = 0.05  # share of synthetic slices, beyond the control; 1 % of real ones are it by construction
    auc: float = 0.6  # of the lower end of the interval: at 5 % false alarms one in ten is then recognised, not 1 in 20

    def __post_init__(self) -> None:
        require(0 <= self.duplicates <= 1, "duplicates", self.duplicates, "in [0, 1]")
        require(0.5 <= self.auc <= 1, "auc", self.auc, "in [0.5, 1]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What may be handed over: rates and an interval, to two digits."""

    weights: str  # SHA-256 of the bundle's model.safetensors
    duplicates: float  # share of synthetic slices nearer to a training slice than 1 % of real ones are
    control: float  # the same against subjects that were not trained on
    auc: float  # of telling training subjects from held-out ones by their loss
    auc_low: float  # 95 % interval
    auc_high: float
    hits: float | None  # true positives at 5 % false ones; None: too few held-out subjects to say
    limits: Limits
    lacuna: str
    kind: str = KIND

    def __post_init__(self) -> None:
        require(self.kind == KIND, "kind", self.kind, KIND)
        for key in ("duplicates", "control", "auc", "auc_low", "auc_high", "hits"):
            value = getattr(self, key)
            require(value is None or 0 <= value <= 1, key, value, "in [0, 1]")
        require(self.auc_low <= self.auc <= self.auc_high, "auc", self.auc, "between auc_low and auc_high")

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line for each figure above the site's limits."""
        said = []
        if round(self.duplicates - self.control, 6) > self.limits.duplicates:
            said.append(
                f"{self.duplicates:.0%} of synthetic slices are near-duplicates of a training slice and "
                f"{self.control:.0%} of one that was not trained on; the site's limit of the difference is "
                f"{self.limits.duplicates:.0%}"
            )
        if self.auc_low > self.limits.auc:
            said.append(
                f"training subjects are told by their loss: AUC {self.auc:.2f} [{self.auc_low:.2f}, "
                f"{self.auc_high:.2f}], its lower end above the site's limit of {self.limits.auc:.2f}"
            )
        return tuple(said)


def read_summary(path: Path) -> Summary:
    """Read a summary; ConfigError for a file that is none."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--audit {path}: can't be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise DataError(f"--audit {path}: not JSON; it must be an audit's summary.json") from None
    if not isinstance(content, Mapping):
        raise DataError(f"--audit {path}: must be an audit's summary.json")
    try:
        return build(Summary, content, "audit")
    except ConfigError as error:
        raise DataError(f"{path}: {error}") from None
