"""What this site keeps of the rounds in which the coordinator sees sums alone: STATE/secure.db, which never leaves.

    boxes      a key for each run, to which the other sites seal what they deal this one, and its signature
    deals      a secret for each circle, from which all follows that was dealt; gone once a later round is dealt
    masked     what was hidden in each circle, and of what update, by their hashes: two are never hidden by one mask
    replies    the head of what was sent in each circle, whose numbers lie in STATE/secure: asked again, they go again
    revealed   which sum of each group was let be seen, for ever: two sums of one round would tell a site's own update
    seen       with whom each update was in a sum, for ever: so would the sums of two runs over the very same one

What is written is on the disk before anything is answered.
"""

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from client.site.site import Site
from shared.base import checkpoint
from shared.base.disk.tensors import Tensors, lying_in
from shared.base.errors import DataError, PlanRefused
from shared.base.files import canonical, make_folder, sha256
from shared.base.vocabulary import Owner, SiteName, Weights
from shared.trust.secure.circle import Box, Circle, box_key, new_secret

FILE, FOLDER = "secure.db", "secure"
BUSY = 30.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS boxes (run TEXT PRIMARY KEY, secret BLOB NOT NULL, said TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS deals (
    circle TEXT PRIMARY KEY, run TEXT NOT NULL, phase TEXT NOT NULL, round INTEGER NOT NULL, secret BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS masked (circle TEXT PRIMARY KEY, numbers TEXT NOT NULL, learnt TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS replies (circle TEXT PRIMARY KEY, bound TEXT NOT NULL, head TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS revealed (
    run TEXT NOT NULL, phase TEXT NOT NULL, round INTEGER NOT NULL, owner TEXT NOT NULL, what TEXT NOT NULL,
    PRIMARY KEY (run, phase, round, owner)
);
CREATE TABLE IF NOT EXISTS seen (
    learnt TEXT NOT NULL, owner TEXT NOT NULL, sites TEXT NOT NULL, PRIMARY KEY (learnt, owner)
);
"""


class Vault:
    def __init__(self, site: Site, file: sqlite3.Connection) -> None:
        self._site, self._file = site, file

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """All that the block writes, or nothing."""
        with self._file:
            self._file.execute("BEGIN IMMEDIATE")
            yield

    def make_box(self, run: str, sign: Callable[[bytes], Box]) -> Box:
        """The box of a run, made and signed once."""
        secret = new_secret()
        row = (run, secret, sign(secret).text())
        self._file.execute("INSERT OR IGNORE INTO boxes (run, secret, said) VALUES (?, ?, ?)", row)
        ((said,),) = self._file.execute("SELECT said FROM boxes WHERE run = ?", (run,))
        return Box.parse(said)

    def box(self, circle: Circle) -> bytes:
        """PlanRefused where the circle has another: what was sealed to that can't be opened here."""
        found = self._file.execute("SELECT secret FROM boxes WHERE run = ?", (circle.run,)).fetchone()
        if found is None or circle.boxes[self._site.name].key != box_key(bytes(found[0])):
            raise PlanRefused(
                f"{self._site.name}: has another box by now for run {circle.run}; resumed, the run asks for it"
            )
        return bytes(found[0])

    def deal(self, circle: Circle) -> bytes:
        """The secret of a circle, which is drawn once; those of other rounds of the run are no longer needed.

        Not only of earlier ones: a run may have gone back to its last checkpoint.
        """
        place = (circle.run, circle.phase, circle.round)
        with self.at_once():
            over = self._file.execute(
                "SELECT circle FROM deals WHERE run = ? AND NOT (phase = ? AND round = ?)", place
            ).fetchall()
            for (gone,) in over:
                self._file.execute("DELETE FROM deals WHERE circle = ?", (gone,))
                self._file.execute("DELETE FROM replies WHERE circle = ?", (gone,))
                self.reply_file(gone).unlink(missing_ok=True)
            self._file.execute(
                "INSERT OR IGNORE INTO deals (circle, run, phase, round, secret) VALUES (?, ?, ?, ?, ?)",
                (circle.digest, *place, new_secret()),
            )
        return self.dealt(circle)

    def dealt(self, circle: Circle) -> bytes:
        """PlanRefused for a circle in which this site has dealt nothing, or that is over."""
        found = self._file.execute("SELECT secret FROM deals WHERE circle = ?", (circle.digest,)).fetchone()
        if found is None:
            raise PlanRefused(f"{self._site.name}: dealt nothing in circle {circle.digest[:12]}, or its round is over")
        return bytes(found[0])

    def reply_file(self, circle: str) -> Path:
        return self._site.state / FOLDER / f"{circle}.safetensors"

    def keep_reply(self, circle: Circle, bound: str, head: Mapping[str, object], numbers: Weights) -> None:
        """What is hidden goes again, and nothing like it, where it is asked for again; that costs no work either."""
        checkpoint.save_tensors(self.reply_file(circle.digest), numbers)
        row = (circle.digest, bound, json.dumps(head))
        self._file.execute("INSERT OR REPLACE INTO replies (circle, bound, head) VALUES (?, ?, ?)", row)

    def reply(self, circle: Circle, bound: str) -> tuple[dict[str, Any], Tensors] | None:
        row = "SELECT head FROM replies WHERE circle = ? AND bound = ?"
        found = self._file.execute(row, (circle.digest, bound)).fetchone()
        if found is None or not self.reply_file(circle.digest).exists():
            return None
        return dict(json.loads(found[0])), lying_in(self.reply_file(circle.digest))

    def hide_once(self, circle: Circle, numbers: str, learnt: Mapping[Owner, str]) -> None:
        """PlanRefused where other numbers, by their hash, were hidden in this circle: their difference is bare.

        `learnt`: the hash of each group's part of the update, before it was scaled as the coordinator says.
        """
        row = (circle.digest, numbers, json.dumps(dict(learnt), sort_keys=True))
        self._file.execute("INSERT OR IGNORE INTO masked (circle, numbers, learnt) VALUES (?, ?, ?)", row)
        ((before,),) = self._file.execute("SELECT numbers FROM masked WHERE circle = ?", (circle.digest,))
        if before != numbers:
            raise PlanRefused(
                f"{self._site.name}: {circle.phase} round {circle.round}: another update was hidden in circle "
                f"{circle.digest[:12]}: none is hidden by the same masks again"
            )

    def reveal_once(self, circle: Circle, owner: Owner, survivors: tuple[SiteName, ...]) -> None:
        """PlanRefused where another sum of this group was let be seen in this round."""
        what = sha256(canonical({"circle": circle.digest, "survivors": survivors}))
        key = (circle.run, circle.phase, circle.round, owner)
        self._file.execute(
            "INSERT OR IGNORE INTO revealed (run, phase, round, owner, what) VALUES (?, ?, ?, ?, ?)", (*key, what)
        )
        ((before,),) = self._file.execute(
            "SELECT what FROM revealed WHERE run = ? AND phase = ? AND round = ? AND owner = ?", key
        )
        if before != what:
            raise PlanRefused(
                f"{self._site.name}: {circle.phase} round {circle.round}: another sum of {owner[:80]} was seen "
                "already; two of one round would tell what a site sent"
            )

    def see_once(self, circle: Circle, owner: Owner, survivors: tuple[SiteName, ...]) -> None:
        """PlanRefused where what this site hid in the circle was in a sum with other sites, of another run."""
        found = self._file.execute("SELECT learnt FROM masked WHERE circle = ?", (circle.digest,)).fetchone()
        learnt = {} if found is None else json.loads(found[0])
        if owner not in learnt:
            return
        row = (learnt[owner], owner, " ".join(survivors))
        self._file.execute("INSERT OR IGNORE INTO seen (learnt, owner, sites) VALUES (?, ?, ?)", row)
        ((before,),) = self._file.execute("SELECT sites FROM seen WHERE learnt = ? AND owner = ?", row[:2])
        if before != row[2]:
            raise PlanRefused(
                f"{self._site.name}: {circle.phase} round {circle.round}: this very update was seen in a sum with "
                "other sites; the two would tell what one of them sent. Another seed makes it another"
            )


@contextmanager
def opened(site: Site) -> Iterator[Vault]:
    path = site.state / FILE
    make_folder(site.state)
    try:
        file = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rwc", uri=True, timeout=BUSY, isolation_level=None)
        path.chmod(0o600)
        file.execute("PRAGMA journal_mode = WAL")
        file.execute("PRAGMA synchronous = FULL")
        file.execute("PRAGMA secure_delete = ON")
        file.executescript(_SCHEMA)
    except (sqlite3.Error, OSError) as error:
        raise DataError(f"{FILE}: can't be opened: {error}") from None
    try:
        yield Vault(site, file)
    finally:
        file.close()
