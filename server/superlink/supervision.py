"""`lacuna follow`: watch a submitted run from outside, and submit it again where it was killed.

What a run says of itself is in its folder (server/journal/chronicle.py): its outcome, and a lock that its process
holds. What Flower says comes second, and late: a dead ServerApp is "running" there for 45 s. A run that failed by its
own word is never submitted again; one that was killed is, from its checkpoint, unless it dies MOST times without
finishing a round.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from server.flower import FlowerRun, Unreachable
from server.journal import chronicle, facts, views
from server.journal.chronicle import Outcome, Tail
from server.journal.events import View
from server.runs import runs
from server.superlink import submission
from server.superlink.submission import Submission
from shared.base.disk import locks
from shared.base.errors import LacunaError, RunFailed

MOST = 4  # submissions without a round finished between them
POLL_SECONDS = 0.5
ASK_SECONDS = 3.0  # between two questions to the SuperLink
LONGEST_PAUSE = 60.0
SITES_SECONDS = 90.0  # Flower lets no node back within a minute of its death
LONGEST_SILENCE = 1800.0  # of a SuperLink, where nobody works on the run
SUPERVISOR = ".supervised"

Verdict = Literal["on", "over", "stopped", "dead"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What can be seen of a run, looked at in this order: it takes the run, writes its word, then lets go."""

    began: bool  # the ServerApp of this submission has had the run
    working: bool  # a process holds the run
    outcome: Outcome | None
    flower: FlowerRun | None  # None: the SuperLink gave no answer
    stop: bool  # somebody asked for it

    def verdict(self) -> Verdict:
        if self.working:
            return "on"
        if self.outcome is not None:
            return "over"
        if not self.began and (self.flower is None or not self.flower.over):
            return "on"  # not taken up yet
        return "stopped" if self.stop else "dead"


def follow(folder: Path, *, quiet: bool = False) -> None:
    """Watch a run until it has ended; raises what it ended with. Supervises it unless another follower does."""
    submission.check_exists(folder)
    if submission.find(folder) is None and not chronicle.at_work(folder):
        _end(folder)  # a simulation that is over
        return
    title = runs.title(folder, runs.read_config(folder))
    with views.live(title, quiet=quiet) as view, _sole(folder, view) as sole:
        _Follower(folder, view, supervises=sole).follow()
    _end(folder)


def pause(tried: int) -> float:
    """Seconds before the next submission."""
    return min(LONGEST_PAUSE, 2.0 ** (tried - 1))


class _Follower:
    def __init__(self, folder: Path, view: View, *, supervises: bool) -> None:
        self.folder, self.view, self.supervises = folder, view, supervises
        self.tail = Tail(folder)
        self.asked = 0.0
        self.flower: tuple[int, FlowerRun] | None = None  # a run by its number, as Flower last saw it
        self.last_answer = time.monotonic()  # the SuperLink's
        self.said_dead = 0  # the last submission of which was said that it died
        self.failures = 0  # to submit it again, one after the other
        self.last_said = ""

    def follow(self) -> None:
        for event in chronicle.latest(self.tail.new()):
            self.view.tell(event)
        while True:
            sent = submission.find(self.folder)
            sight = self._look(sent)
            for event in self.tail.new():
                self.view.tell(event)
            verdict = sight.verdict()
            if verdict == "over":
                return
            if verdict == "stopped":
                submission.settled(self.folder)
                return
            if verdict == "dead":
                if sent is None:
                    raise RunFailed(f"{self.folder.name}: was interrupted {submission.reached(self.folder)}")
                if self.supervises:
                    self._again(sent)
                else:
                    self._say("it was killed: whoever supervises it submits it again")
            time.sleep(POLL_SECONDS)

    def _look(self, sent: Submission | None) -> Sight:
        worker = chronicle.worker(self.folder)
        began = worker is not None and (sent is None or worker.flower_run == sent.flower_run)
        working = chronicle.at_work(self.folder)
        outcome = chronicle.read_outcome(self.folder)
        if not working and not began and sent is not None and outcome is None:
            self._ask(sent)
        stop = sent is not None and sent.stop
        return Sight(began=began, working=working, outcome=outcome, flower=self._flower(sent), stop=stop)

    def _flower(self, sent: Submission | None) -> FlowerRun | None:
        known = sent is not None and self.flower is not None and self.flower[0] == sent.flower_run
        return self.flower[1] if known and self.flower is not None else None

    def _ask(self, sent: Submission) -> None:
        """Ask how Flower sees a run that no ServerApp has taken up yet, and say what it waits for."""
        if time.monotonic() - self.asked < ASK_SECONDS:
            return
        self.asked = time.monotonic()
        try:
            found = sent.link.run(sent.flower_run)
        except (Unreachable, RunFailed) as error:
            self.flower = None
            self._no_answer(error)
            return
        self.last_answer = time.monotonic()
        found = found if found is not None else FlowerRun(status="finished", details="the SuperLink forgot it")
        self.flower = sent.flower_run, found
        if found.status == "pending":
            self._say("submitted; waits for an executor (flower-superexec) at the server")

    def _again(self, sent: Submission) -> None:
        """Submit a dead run again, from its checkpoint on; after too many tries write down that it failed."""
        rounds = submission.finished_rounds(self.folder)
        tried = sent.tried if rounds == sent.rounds else 0
        flower = self._flower(sent)
        why = f" ({flower.details})" if flower is not None and flower.details else ""
        if tried >= MOST:
            failed = RunFailed(
                f"its ServerApp died {tried} times in a row {submission.reached(self.folder)}, with no round "
                f"finished between{why}; `lacuna resume {self.folder.name}` tries again"
            )
            found = chronicle.outcome_of(failed)
            assert found is not None
            chronicle.write_outcome(self.folder, found)
            return
        submission.check_writable(self.folder)
        seconds = pause(max(tried, 1) + self.failures)
        if self.said_dead != sent.flower_run:
            where = submission.reached(self.folder)
            self.view.note(f"its ServerApp was killed {where}{why}: submitting it again in {seconds:.0f} s")
            self.said_dead = sent.flower_run
        time.sleep(seconds)
        self._wait_for_sites(sent)
        if chronicle.at_work(self.folder) or submission.find(self.folder) != sent:
            return  # somebody else was faster, or asked for a stop
        try:
            sent.link.stop(sent.flower_run)  # Flower holds a dead one for running
            submission.hand_over(self.folder, sent.link, times=sent.times, tried=tried)
        except (Unreachable, RunFailed) as error:
            self.failures += 1
            self._no_answer(error)
        else:
            self.last_answer, self.failures, self.last_said = time.monotonic(), 0, ""

    def _no_answer(self, error: LacunaError) -> None:
        self._say(f"{error}; waiting for it")
        if time.monotonic() - self.last_answer > LONGEST_SILENCE:
            raise RunFailed(f"{self.folder.name}: {error}, for {LONGEST_SILENCE:.0f} s now") from None

    def _wait_for_sites(self, sent: Submission) -> None:
        """Wait a while for the last round's sites: whatever killed the ServerApp may have cut them off too."""
        done = facts.read(self.folder / "rounds.jsonl")
        end = time.monotonic() + SITES_SECONDS
        while done and time.monotonic() < end:
            try:
                missing = [site for site, state in sent.link.sites().items() if not state.online]
            except (Unreachable, RunFailed):
                return  # the next question says so
            took_part = {site for site, result in done[-1].sites.items() if result.status == "ok"}
            away = [site for site in missing if site in took_part]
            if not away:
                return
            self._say(f"waiting for {', '.join(away)}")
            time.sleep(1.0)

    def _say(self, text: str) -> None:
        """Say something new once, not at every look."""
        if text != self.last_said:
            self.view.note(text)
            self.last_said = text


def _end(folder: Path) -> None:
    """End as the run did: return, or raise its error."""
    found = chronicle.read_outcome(folder)
    if found is None:
        if runs.finished(folder):
            return
        raise RunFailed(f"{folder.name}: nobody works on it; it stands {submission.reached(folder)}")
    error: LacunaError | None = found.error()
    if error is not None:
        raise error


@contextmanager
def _sole(folder: Path, view: View) -> Iterator[bool]:
    """One follower supervises; the others watch."""
    handle = locks.take(folder / SUPERVISOR, mode=0o666)
    if handle is None:
        view.note("another `lacuna` supervises this run; this one only watches")
    try:
        yield handle is not None
    finally:
        if handle is not None:
            os.close(handle)
