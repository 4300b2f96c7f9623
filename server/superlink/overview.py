"""`lacuna status`: where the runs of a folder stand, by what each wrote into its own."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from server.flower import Unreachable
from server.journal import chronicle, facts, withdrawn
from server.journal.chronicle import Tail
from server.journal.events import Note
from server.journal.facts import RoundFacts
from server.runs import runs
from server.superlink import submission
from server.superlink.submission import Submission
from server.superlink.superlink import SiteState
from shared.base.display.figures import duration, number
from shared.base.errors import LacunaError, RunFailed

State = Literal["running", "submitted", "finished", "failed", "stopped", "interrupted"]
COLUMNS = ("run", "state", "method", "round", "sites", "loss", "since")
LATEST_NOTES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a run stands. `submitted`: waits for an executor; `interrupted`: nobody works on it, and no word why."""

    run: str
    state: State
    method: str
    size: str
    where: Literal["superlink", "here"]
    phase: str | None = None  # of the last finished round
    round: int = 0  # rounds of it that are finished
    of: int = 0
    ok: int = 0  # sites folded in
    sites: int = 0  # sites asked
    loss: float | None = None
    message: str = ""  # why it failed
    withdrawn: tuple[str, ...] = ()  # whose data it has that was taken back, and from where on
    since: float  # when it came to this, in seconds since 1970

    def cells(self) -> tuple[str, ...]:
        done = f"{self.phase} {self.round}/{self.of}" if self.phase is not None else "–"
        sites = f"{self.ok} of {self.sites}" if self.sites else "–"
        since = f"{duration(max(0.0, time.time() - self.since))} ago"
        return (self.run, self.state, f"{self.method}, {self.size}", done, sites, number(self.loss), since)


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """One run, with what only its SuperLink knows."""

    standing: Standing
    superlink: str | None = None
    submitted: int = 0  # times
    flower_run: int | None = None
    flower: str = ""  # what Flower says of it: `running`, `finished: failed, No heartbeat ...`
    process: str | None = None  # that works on it
    sites: Mapping[str, SiteState] | None = None  # None: not submitted, or no answer
    silence: str = ""  # why there is no answer
    notes: tuple[str, ...] = ()  # the latest of this attempt

    def lines(self) -> Iterator[str]:
        one = self.standing
        for name, value in zip(COLUMNS, one.cells(), strict=True):
            yield f"{name:8} {value}"
        if one.message:
            yield f"{'why':8} {one.message}"
        for line in one.withdrawn:
            yield f"{'warning':8} {line}"
        if self.process is not None:
            yield f"{'process':8} {self.process}"
        if self.superlink is not None:
            yield f"{'at':8} {self.superlink}, run {self.flower_run} ({self.flower}), submitted {self.submitted} times"
        if self.sites is not None:
            yield f"{'sites':8} {submission.roster_line(self.sites)}"
        elif self.silence:
            yield f"{'sites':8} {self.silence}"
        for note in self.notes:
            yield f"  {note}"


def standings(runs_folder: Path) -> list[Standing]:
    """All runs: those that go on first, then the latest."""
    found = [standing(path.parent) for path in runs_folder.glob("*/config.json")]
    return sorted(found, key=lambda one: (one.state not in ("running", "submitted"), -one.since))


def standing(folder: Path) -> Standing:
    submission.check_exists(folder)
    config = runs.read_config(folder)
    working, outcome, sent = chronicle.at_work(folder), chronicle.read_outcome(folder), submission.find(folder)
    worker = chronicle.worker(folder)
    done = facts.read(folder / "rounds.jsonl")
    state: State
    if working and worker is not None:
        state, since = "running", worker.since
    elif outcome is not None:
        state, since = outcome.state, outcome.at
    elif runs.finished(folder):
        state, since = "finished", (folder / "final" / "model.json").stat().st_mtime
    elif sent is not None and (worker is None or worker.flower_run != sent.flower_run):
        state, since = "submitted", sent.at
    else:
        state, since = "interrupted", done[-1].ended if done else (folder / "config.json").stat().st_mtime
    last: RoundFacts | None = done[-1] if done else None
    return Standing(
        run=folder.name,
        state=state,
        method=config.method.name,
        size=config.size,
        where="here" if sent is None else "superlink",
        phase=None if last is None else last.phase,
        round=0 if last is None else last.round + 1,
        of=0 if last is None else last.of,
        ok=0 if last is None else sum(site.status == "ok" for site in last.sites.values()),
        sites=0 if last is None else len(last.sites),
        loss=None if last is None else last.loss,
        message="" if outcome is None else outcome.message,
        withdrawn=tuple(one.line() for one in withdrawn.affected(folder)),
        since=since,
    )


def details(folder: Path) -> Details:
    one, sent, worker = standing(folder), submission.find(folder), chronicle.worker(folder)
    sites, flower, silence = _ask(sent)
    notes = [event.text for event in chronicle.latest(Tail(folder).new()) if isinstance(event, Note)]
    return Details(
        standing=one,
        superlink=None if sent is None else sent.superlink,
        submitted=0 if sent is None else sent.times,
        flower_run=None if sent is None else sent.flower_run,
        flower=flower,
        process=f"{worker.pid} on {worker.host}" if worker is not None and one.state == "running" else None,
        sites=sites,
        silence=silence,
        notes=tuple(notes[-LATEST_NOTES:]),
    )


def _ask(sent: Submission | None) -> tuple[Mapping[str, SiteState] | None, str, str]:
    """What the SuperLink answers: its sites, and what it says of the run; or why there is no answer."""
    if sent is None:
        return None, "", ""
    try:
        found = sent.link.run(sent.flower_run)
        return sent.link.sites(), "forgotten" if found is None else facts.words(str(found)), ""
    except (Unreachable, RunFailed) as error:
        said: LacunaError = error
        return None, "no answer", str(said)
