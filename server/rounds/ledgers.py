"""What the coordinator has seen of the sites' privacy ledgers: a site whose ledger goes back is refused.

A site's own chain shows any change but one: a whole older copy, from a backup or a snapshot, under which the site would
forget what it has spent. So each word on a budget is remembered here before its update is used, and told to the site
with the next plan, which then looks for it on its own chain. Runs beside each other share what is remembered: a word is
judged by what the file holds at that moment, and written down, under its lock.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from server.journal.facts import RoundFacts
from shared.base.disk import locks
from shared.base.errors import ConfigError, DataError, UpdateRejected
from shared.base.files import make_folder, write_json
from shared.base.options import build, plain
from shared.base.records import Inventory, Spent, Update
from shared.base.vocabulary import SiteName
from shared.plan.config import Config
from shared.trust import claims
from shared.trust.claims import Certificate
from shared.trust.privacy import Spending, epsilon, together

SLACK = 1e-6  # by which two machines' sums may differ


class Ledgers:
    def __init__(self, path: Path, mode: str) -> None:
        self._path, self._mode = path, mode
        self._asked: dict[SiteName, Spending] = {}  # by this run, since this process began
        self._seen = self._read()

    def _read(self) -> dict[SiteName, Spent]:
        try:
            found = json.loads(self._path.read_text()) if self._path.exists() else {}
            return {str(site): build(Spent, dict(spent), "spent") for site, spent in found.items()}
        except (ValueError, TypeError, AttributeError, ConfigError) as error:
            raise DataError(f"{self._path}: damaged: {error}; it says how far the sites' ledgers had come") from None

    @staticmethod
    def of(config: Config, folder: Path) -> "Ledgers":
        """A run's own, as in a simulation, or those of all runs beside it where the sites keep their disks."""
        kept = folder if config.federation.disks is None else folder.parent
        return Ledgers(kept / "ledgers.json", config.privacy.mode)

    def last(self, site: SiteName) -> Spent | None:
        return self._seen.get(site)

    def known(self, site: SiteName) -> tuple[int, str] | None:
        seen = self._read().get(site)
        return None if seen is None else (seen.sequence, seen.head)

    def greet(self, inventory: Inventory) -> None:
        """At the handshake: UpdateRejected for a site whose ledger went back."""
        self._seen = self._read()
        self._check(inventory.site, inventory.spent, {})

    def accept(self, update: Update, asked: Spending) -> None:
        """Called before an update is used, with what its round asked of the budget: its word is on the disk when this
        returns."""
        make_folder(self._path.parent)
        with locks.held(self._path.with_name(f".{self._path.name}.lock"), wait=None):
            self._seen = self._read()
            self._check(update.site, update.spent, asked)
            if update.spent is not None:
                self._asked[update.site] = together(self._asked.get(update.site, {}), asked)
                self._seen[update.site] = update.spent
                text = {name: plain(word) for name, word in sorted(self._seen.items())}
                write_json(self._path, text)

    def _check(self, site: SiteName, spent: Spent | None, asked: Spending) -> None:
        """`asked`: by the round that was just done; nothing at the handshake."""
        if spent is None:
            if self._mode == "on":
                raise UpdateRejected(f"{site}: privacy.mode=on, and it does not say what it has spent")
            return
        if self._mode == "off":
            raise UpdateRejected(f"{site}: privacy.mode=off, and it says that it trains privately")
        least = epsilon(together(self._asked.get(site, {}), asked), spent.delta)
        if spent.epsilon < least * (1 - SLACK):
            raise UpdateRejected(
                f"{site}: it says that it spent epsilon {spent.epsilon:g}; what this run asked of it comes to {least:g}"
            )
        seen = self._seen.get(site)
        if seen is None:
            return
        if spent.ledger != seen.ledger:
            raise UpdateRejected(
                f"{site}: its privacy ledger is {spent.ledger[:12]}, before it was {seen.ledger[:12]}: "
                "a new one forgets what was spent"
            )
        if spent.sequence < seen.sequence:
            raise UpdateRejected(
                f"{site}: its privacy ledger stands at {spent.sequence}, before at {seen.sequence}: it was rolled back"
            )
        rows = sum(asked.values())
        if spent.sequence == seen.sequence and (rows or spent.head != seen.head):
            raise UpdateRejected(f"{site}: its privacy ledger still stands at {seen.sequence}: nothing was charged")
        if spent.sequence < seen.sequence + rows:
            raise UpdateRejected(
                f"{site}: its privacy ledger went from {seen.sequence} to {spent.sequence}, and the round has {rows} "
                "rows: not all was charged"
            )
        if spent.delta != seen.delta:
            raise UpdateRejected(f"{site}: its delta is {spent.delta:g}, before it was {seen.delta:g}")
        if spent.epsilon < seen.epsilon * (1 - SLACK):
            raise UpdateRejected(
                f"{site}: it says that it spent epsilon {spent.epsilon:g}, and it was {seen.epsilon:g}: it never falls"
            )


def record(
    config: Config, history: Sequence[RoundFacts], ledgers: Ledgers, prior: claims.Prior | None
) -> dict[str, Any]:
    """`provenance.privacy`: what touched the model, from the rounds that were folded in."""
    kinds = {phase.name: phase.kind for phase in config.build_method().phases}
    steps: Counter[SiteName] = Counter()
    sums: Counter[SiteName] = Counter()
    without: set[SiteName] = set()
    for one in history:
        for site, seen in one.sites.items():
            if seen.status != "ok":
                continue
            if seen.epsilon_spent is None:
                without.add(site)
            elif kinds[one.phase] == "sums":
                sums[site] += 1
            else:
                steps[site] += config.training[one.phase].steps
    certificates = []
    for site in sorted(steps.keys() | sums.keys()):
        spent = ledgers.last(site)
        assert spent is not None, "every private update is remembered before it is used"
        certificates.append(Certificate.of(site, spent, config.privacy, steps=steps[site], sums=sums[site]))
    found = claims.PrivacyRecord(private=tuple(certificates), not_private=tuple(sorted(without)), prior=prior)
    said: dict[str, Any] = plain(found)
    return said
