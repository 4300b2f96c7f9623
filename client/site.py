"""The site's own settings: name, paths, device, policy. They are read here and never leave.

A deployed site gives them as Flower's node config: `site`, `cohort` (one or more folders, joined by a colon), `state`,
`device`; `epsilon`, `delta` and `about` are its word on privacy. In a Ray simulation Flower only numbers its nodes, so
the file named by LACUNA_SITES lists them in that order.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import ConfigError

SITES_VARIABLE = "LACUNA_SITES"


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    name: str
    cohorts: tuple[Path, ...]  # BIDS folders, prepared with `lacuna-site prepare`
    state: Path  # the site's own disk: ledger, personal layers
    device: str = "auto"
    min_subjects: int = 1  # policy: with fewer the site does not train
    epsilon: float | None = None  # policy: train with differential privacy only, and spend no more than this, ever
    delta: float | None = None
    about: int | None = None  # a public round figure of its subjects; None: their number to the nearest ten

    @property
    def privacy(self) -> Path:
        """The privacy ledger's folder."""
        return self.state / "privacy"


def find_site(node_config: Mapping[str, Any]) -> Site:
    values = dict(node_config)
    if "site" not in values:
        listing = os.environ.get(SITES_VARIABLE)
        if listing is None or "partition-id" not in values:
            raise ConfigError(f"site: missing in the node config, and {SITES_VARIABLE} names no list of sites")
        values = json.loads(Path(listing).read_text())[int(values["partition-id"])]
    for key in ("cohort", "state"):
        if key not in values:
            raise ConfigError(f"{key}: missing in the node config of site {values['site']}")
    return Site(
        name=str(values["site"]),
        cohorts=tuple(Path(folder) for folder in str(values["cohort"]).split(os.pathsep)),
        state=Path(str(values["state"])),
        device=str(values.get("device", "auto")),
        min_subjects=int(values.get("min-subjects", 1)),
        epsilon=float(values["epsilon"]) if "epsilon" in values else None,
        delta=float(values["delta"]) if "delta" in values else None,
        about=int(values["about"]) if "about" in values else None,
    )
