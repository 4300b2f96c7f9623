"""The site's own settings: name, paths, device, policy. They are read here and never leave.

A deployed site gives them as Flower's node config: `site`, `cohort` (one or more folders, joined by a colon), `state`,
`device`; `text-...` are of its own text encoder (shared/clinical/settings.py), any other key is one of the policy's
(client/site/policy.py). STATE/site.toml may hold both too; it is read anew for every message. In a Ray simulation
Flower only numbers its nodes, so the file named by LACUNA_SITES lists them in that order.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client.site.ledger import LEDGER
from client.site.policy import Policy, make_policy
from client.site.settings import read_file
from shared.base.errors import ConfigError
from shared.clinical.settings import TextSettings, text_settings

SITES_VARIABLE = "LACUNA_SITES"
_TEXT = "text-"
_OWN = ("site", "cohort", "state", "device", "partition-id", "num-partitions")


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    name: str
    cohorts: tuple[Path, ...]  # BIDS folders, prepared with `lacuna-site prepare`
    state: Path  # the site's own disk: ledger, budget, plans, personal layers
    device: str = "auto"
    policy: Policy = field(default_factory=Policy)
    text: TextSettings = field(default_factory=TextSettings)

    @property
    def privacy(self) -> Path:
        """The folder of the privacy budget."""
        return self.state / "privacy"

    @property
    def ledger(self) -> Path:
        """The ledger of what left."""
        return self.state / LEDGER


def own_values(node_config: Mapping[str, Any]) -> dict[str, Any]:
    """Give the node config, or this node's row in the list of sites; it has a site, a cohort and a state."""
    values = dict(node_config)
    if "site" not in values:
        listing = os.environ.get(SITES_VARIABLE)
        if listing is None or "partition-id" not in values:
            raise ConfigError(f"site: missing in the node config, and {SITES_VARIABLE} names no list of sites")
        values = json.loads(Path(listing).read_text())[int(values["partition-id"])]
    for key in ("cohort", "state"):
        if key not in values:
            raise ConfigError(f"{key}: missing in the node config of site {values['site']}")
    return values


def find_site(node_config: Mapping[str, Any]) -> Site:
    values = own_values(node_config)
    state = Path(str(values["state"]))
    file = read_file(state)
    said = {key: value for key, value in values.items() if key not in _OWN}
    text = {key.replace("_", "-"): value for key, value in file.text.items()}
    text |= {key.removeprefix(_TEXT): value for key, value in said.items() if key.startswith(_TEXT)}
    rules = {key: value for key, value in said.items() if not key.startswith(_TEXT)}
    return Site(
        name=str(values["site"]),
        cohorts=tuple(Path(folder) for folder in str(values["cohort"]).split(os.pathsep)),
        state=state,
        device=str(values.get("device", "auto")),
        policy=make_policy(file.policy, rules),
        text=text_settings(text, state),
    )
