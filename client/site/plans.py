"""Every plan that ever arrived, what became of it, and what a person here said to it.

    STATE/plans.db   plans: one row for each run and settings   asked: one row for each message about it
                     answered: the hash of each signed question, so that a relay can't have one answered twice
                     done: what each round was first asked with, so that it is not asked with other weights

A yes is for one run with one set of settings: its id is the hash of both, all 256 bits, and what is stored under it is
compared. Change a word and it is another plan, which waits again. A no holds under any policy. The work that a round
takes is counted here too, before it is done and while it is done, so that neither a kill nor a restart gives an hour
back; nor does a clock set forward (client/site/clock.py). What is written is on the disk before it is acted on.
"""

import hashlib
import json
import re
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from client.site import clock
from client.site.site import Site
from shared.base.errors import ConfigError, DataError, LacunaError, PlanRefused, PlanWaits
from shared.base.files import make_folder
from shared.base.records import RoundPlan

FILE = "plans.db"
DAY = 86400.0
BEAT = 5.0  # seconds of work that a kill can take from the count
BUSY = 30.0
SHORT = 12  # characters of an id in a line; whoever means a plan by so few must mean one alone
MOST_CONFIG = 2**20  # characters of a plan's settings
_SCHEMA = """
CREATE TABLE IF NOT EXISTS plans (
    id TEXT PRIMARY KEY, run TEXT NOT NULL, config TEXT NOT NULL, came REAL NOT NULL,
    said TEXT, said_at REAL
);
CREATE TABLE IF NOT EXISTS asked (
    at REAL NOT NULL, plan TEXT NOT NULL, phase TEXT, round INTEGER,
    verdict TEXT NOT NULL, worked REAL
);
CREATE TABLE IF NOT EXISTS answered (question TEXT PRIMARY KEY, at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS done (
    run TEXT NOT NULL, phase TEXT NOT NULL, round INTEGER NOT NULL, with_ TEXT NOT NULL, PRIMARY KEY (run, phase, round)
);
CREATE INDEX IF NOT EXISTS asked_at ON asked (at);
CREATE INDEX IF NOT EXISTS asked_plan ON asked (plan);
"""
Said = Literal["approved", "refused"]
_PRIVACY = ("mode", "epsilon", "delta", "noise", "rate", "clip")
_TRAINING = ("rounds", "steps", "batch", "optimizer", "lr", "clip")
TAKEN, WORKING = "takes part", "at work, or was killed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One message about a plan, and what was answered."""

    at: float
    phase: str | None  # None: the handshake before round 1
    round: int | None
    verdict: str
    worked: float | None  # seconds, of a round that was begun


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    id: str
    run: str
    config: str
    came: float
    said: Said | None
    said_at: float | None
    asked: tuple[Asked, ...]  # oldest first

    @property
    def hash(self) -> str:
        return hashlib.sha256(self.config.encode()).hexdigest()

    @property
    def pending(self) -> bool:
        return self.said is None and bool(self.asked) and self.asked[-1].verdict.startswith(PlanWaits.__name__)

    @property
    def state(self) -> str:
        if self.pending:
            return "waits for you"
        return self.said or "not asked about"

    @property
    def settings(self) -> Mapping[str, Any]:
        """The plan's settings as they came; nothing in them was checked."""
        try:
            found = json.loads(self.config)
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}


@dataclass(slots=True, kw_only=True)
class Work:
    """A round under way. `go_on` is called at every step; it ends a round that has used up the day's hours."""

    site: Site
    file: sqlite3.Connection
    row: int
    before: float  # seconds of work in the last 24 hours, without this round
    started: float = field(default_factory=time.monotonic)
    written: float = 0.0

    def go_on(self) -> None:
        worked = time.monotonic() - self.started
        if worked - self.written >= BEAT:
            self.count()
        most = self.site.policy.max_hours_per_day
        if most is not None and self.before + worked >= most * 3600:
            raise PlanRefused(f"{self.site.name}: {_spent_hours(most)}, so this round was given up")

    def last_done(self, phase: str, round: int) -> int | None:
        """The last round of the plan's phase before this one that this site answered."""
        ((last,),) = self.file.execute(
            "SELECT max(round) FROM asked WHERE plan = (SELECT plan FROM asked WHERE rowid = ?) AND phase = ? "
            "AND round < ? AND verdict = ?",
            (self.row, phase, round, TAKEN),
        )
        return None if last is None else int(last)

    def count(self) -> None:
        self.written = time.monotonic() - self.started
        self.file.execute("UPDATE asked SET worked = ? WHERE rowid = ?", (self.written, self.row))


# --- when a message comes -------------------------------------------------------------------------------------------


def answer_once(site: Site, question: str) -> None:
    """PlanRefused for a question that came before; asked again by the coordinator, it is another one."""
    with _open(site.state, make=True) as file:
        cursor = file.execute("INSERT OR IGNORE INTO answered (question, at) VALUES (?, ?)", (question, time.time()))
        if not cursor.rowcount:
            raise PlanRefused(f"{site.name}: the message was answered before, and is answered once")


@contextmanager
def considered(
    site: Site,
    run: str,
    config: str,
    *,
    phase: str | None = None,
    round: int | None = None,
) -> Iterator["Considered"]:
    """Keep the plan, and write down how the block under it ended."""
    if len(config) > MOST_CONFIG:
        raise PlanRefused(f"{site.name}: plan of {len(config)} characters: the most is {MOST_CONFIG}")
    with _open(site.state, make=True) as file:
        now, name = clock.now(file), plan_id(run, config)
        file.execute(
            "INSERT OR IGNORE INTO plans (id, run, config, came) VALUES (?, ?, ?, ?)", (name, run, config, now)
        )
        if file.execute("SELECT run, config FROM plans WHERE id = ?", (name,)).fetchone() != (run, config):
            raise PlanRefused(f"{site.name}: plan {name[:SHORT]} is stored here with another run or other settings")
        cursor = file.execute(
            "INSERT INTO asked (at, plan, phase, round, verdict) VALUES (?, ?, ?, ?, ?)",
            (now, name, phase, round, WORKING),
        )
        mine = Considered(site=site, file=file, id=name, row=int(cursor.lastrowid or 0))
        try:
            yield mine
        except LacunaError as error:
            mine.ended(f"{type(error).__name__}: {error}")
            raise
        except BaseException as error:
            mine.ended(type(error).__name__)
            raise
        mine.ended(TAKEN)


@dataclass(slots=True, kw_only=True)
class Considered:
    site: Site
    file: sqlite3.Connection
    id: str
    row: int
    _work: Work | None = None

    def allowed_here(self) -> None:
        """Raise PlanRefused after a person's no, PlanWaits where the policy asks for a yes that nobody gave."""
        ((said,),) = self.file.execute("SELECT said FROM plans WHERE id = ?", (self.id,))
        if said == "refused":
            raise PlanRefused(f"{self.site.name}: plan {self.id[:SHORT]} was refused by a person there")
        if self.site.policy.approve == "ask" and said != "approved":
            raise PlanWaits(f"{self.site.name}: plan {self.id[:SHORT]} waits for local approval")

    def once(self, plan: RoundPlan) -> None:
        """PlanRefused for a round that was asked before with other weights, settings, scales or hidden modalities.

        The same question is answered with the same bits, which a run that goes on after a kill needs.
        """
        asked = [plan.config, plan.named, *plan.hidden, *plan.scales]
        key = (plan.run, plan.phase, plan.round)
        now = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
        self.file.execute("INSERT OR IGNORE INTO done (run, phase, round, with_) VALUES (?, ?, ?, ?)", (*key, now))
        ((before,),) = self.file.execute("SELECT with_ FROM done WHERE run = ? AND phase = ? AND round = ?", key)
        if before != now and self.site.policy.repeats == "same":
            raise PlanRefused(
                f"{self.site.name}: {plan.phase} round {plan.round} of run {plan.run} was asked before with other "
                "weights or settings: this site's policy has repeats=same; another run needs another name"
            )

    def work(self) -> Work:
        """Start counting work on the plan; PlanRefused where the day's rounds or hours are spent."""
        policy, name = self.site.policy, self.site.name
        self.file.execute("BEGIN IMMEDIATE")
        try:
            ((rounds, seconds),) = self.file.execute(
                "SELECT count(worked), coalesce(sum(worked), 0) FROM asked WHERE at > ?", (clock.now(self.file) - DAY,)
            )
            if policy.max_rounds_per_day is not None and rounds >= policy.max_rounds_per_day:
                raise PlanRefused(
                    f"{name}: this site's policy allows max_rounds_per_day={policy.max_rounds_per_day}, and {rounds} "
                    "were done in the last 24 hours"
                )
            if policy.max_hours_per_day is not None and seconds >= policy.max_hours_per_day * 3600:
                raise PlanRefused(f"{name}: {_spent_hours(policy.max_hours_per_day)}")
            self.file.execute("UPDATE asked SET worked = 0 WHERE rowid = ?", (self.row,))
        finally:
            self.file.execute("COMMIT")
        self._work = Work(site=self.site, file=self.file, row=self.row, before=float(seconds))
        return self._work

    def ended(self, verdict: str) -> None:
        if self._work is not None:
            self._work.count()
        self.file.execute("UPDATE asked SET verdict = ? WHERE rowid = ?", (verdict, self.row))


def plan_id(run: str, config: str) -> str:
    return hashlib.sha256(json.dumps([run, config]).encode()).hexdigest()


def _spent_hours(most: float) -> str:
    return f"this site's policy allows max_hours_per_day={most:g}, and they are used up in the last 24 hours"


# --- when a person asks ---------------------------------------------------------------------------------------------


def listing(state: Path) -> list[Plan]:
    """List every plan, the oldest first."""
    if not (state / FILE).exists():
        return []
    with _open(state, make=False) as file:
        asked: dict[str, list[Asked]] = {}
        for at, plan, phase, round, verdict, worked in file.execute(
            "SELECT at, plan, phase, round, verdict, worked FROM asked ORDER BY rowid"
        ):
            one = Asked(at=at, phase=phase, round=round, verdict=verdict, worked=worked)
            asked.setdefault(plan, []).append(one)
        return [
            Plan(id=name, run=run, config=config, came=came, said=said, said_at=at, asked=tuple(asked.get(name, ())))
            for name, run, config, came, said, at in file.execute(
                "SELECT id, run, config, came, said, said_at FROM plans ORDER BY came, rowid"
            )
        ]


def find(state: Path, name: str) -> Plan:
    """Find a plan by its id, or the first characters of it."""
    found = [plan for plan in listing(state) if plan.id.startswith(name.lower())] if name else []
    if len(found) != 1:
        raise ConfigError(f"plan={name[:80]!r}: {len(found)} plans here begin so; `lacuna-site plans` lists them")
    return found[0]


def decide(state: Path, name: str, said: Said) -> Plan:
    """Write down a person's yes or no; it stands until the other is said."""
    plan = find(state, name)
    with _open(state, make=False) as file:
        file.execute("UPDATE plans SET said = ?, said_at = ? WHERE id = ?", (said, time.time(), plan.id))
    return find(state, plan.id)


def used(state: Path) -> tuple[int, float]:
    """Count rounds, and hours of work, of the last 24 hours."""
    if not (state / FILE).exists():
        return 0, 0.0
    with _open(state, make=False) as file:
        ((rounds, seconds),) = file.execute(
            "SELECT count(worked), coalesce(sum(worked), 0) FROM asked WHERE at > ?", (clock.now(file) - DAY,)
        )
        return int(rounds), float(seconds) / 3600


def summary(plan: Plan) -> dict[str, str]:
    """Say what a plan would do, from its own words: every key that a yes or a no can hang on."""
    settings = plan.settings
    method, privacy, training, tuning, grid = (
        _group(settings, key) for key in ("method", "privacy", "training", "tuning", "grid")
    )
    private = "none"
    if privacy.get("mode") != "off":
        private = ", ".join(f"{key} {privacy.get(key)}" for key in _PRIVACY).replace("mode ", "", 1)
    said = {
        "method": method.get("name"),
        "size": _group(method, "options").get("size"),
        "privacy": private,
        "coordinator sees": _seen(settings),
        "an update in": settings.get("up"),
        "min_holders": settings.get("min_holders"),
        "min_cell": settings.get("min_cell"),
        "keep_local": _words(settings.get("keep_local")) or "nothing is kept here",
        "starts from": tuning.get("start"),
        "trains only": _words(tuning.get("only")) or "all of it",
        "grid": "{} x {}".format(*(grid.get(key) for key in ("height", "width"))),
        "manifest": settings.get("manifest") or "none is named",
    }
    for phase in training:
        one = _group(training, phase)
        said[f"phase {printable(phase)}"] = ", ".join(f"{key} {one.get(key)}" for key in _TRAINING)
        said[f"behind {printable(phase)}"] = _behind(one)
    return {key: "-" if value is None else printable(value) for key, value in said.items()}


def _seen(settings: Mapping[str, Any]) -> str:
    if settings.get("secure") is True:
        least = settings.get("min_holders")
        return (
            f"sums over {least} sites or more, and which parts this one trained; never its own update, counts or loss"
        )
    return "this site's own update of every round, with its counts of samples and its loss"


def _behind(training: Mapping[str, Any]) -> str:
    """How many slices a round's update is of."""
    numbers = training.get("steps"), training.get("batch")
    return f"{numbers[0] * numbers[1]} samples" if all(type(n) is int for n in numbers) else "-"  # type: ignore[operator]


def _words(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value or "")


def printable(value: object) -> str:
    """Make another machine's words fit to print: one line, no control characters."""
    line = re.sub(r"\s+", " ", "".join(c if c.isprintable() else " " for c in str(value)))
    return line if len(line) <= 200 else line[:199] + "…"


def _group(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = values.get(key)
    return found if isinstance(found, dict) else {}


# --- the file -------------------------------------------------------------------------------------------------------


@contextmanager
def _open(state: Path, *, make: bool) -> Iterator[sqlite3.Connection]:
    """Open the database: what is written survives a kill and a power cut."""
    path = state / FILE
    if make:
        make_folder(state)
    try:
        file = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rwc", uri=True, timeout=BUSY, isolation_level=None)
        file.execute("PRAGMA journal_mode = WAL")
        file.execute("PRAGMA synchronous = FULL")
        file.executescript(_SCHEMA + clock.SCHEMA)
    except sqlite3.Error as error:
        raise DataError(f"{FILE}: can't be opened: {error}") from None
    try:
        yield file
    finally:
        file.close()
