"""What a person sees while a run goes on: a live screen on a terminal, one line per round in a log.

Everything goes to stderr; stdout belongs to results. Other machines' words are printed as they are, never as markup.
"""

import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from server.journal import facts
from server.journal.facts import Coverage, RoundFacts, SiteFacts
from shared.base.vocabulary import SiteName

MOST_ROWS = 12  # sites shown one by one; of more, those that work or are in trouble
SPARKS = "▁▂▃▄▅▆▇█"
COLOURS = {"ok": "green", "working": "cyan", "refused": "yellow", "absent": "yellow"}  # any other status is red
LOG_SECONDS = 10.0  # between two lines of a bar in a log


class View(Protocol):
    """What the round loop tells whoever watches."""

    def coverage(self, found: Coverage) -> None: ...

    def phase_started(self, phase: str, *, of: int, first: int) -> None:
        """`first` is the round that the phase goes on with: 0, or more after a resume."""

    def site_started(self, site: SiteName) -> None:
        """The site is at work; may be told again and again while one waits."""

    def site_finished(self, site: SiteName, result: SiteFacts) -> None: ...

    def round_finished(self, one: RoundFacts) -> None: ...

    def note(self, text: str) -> None:
        """A line that stays."""


class Advance(Protocol):
    def __call__(self, done: int | None = None, total: int | None = None) -> None:
        """One step further, or to `done` of `total`."""


@contextmanager
def live(title: str, *, quiet: bool = False) -> Iterator[View]:
    """Watch one run: on a terminal, in a log, or not at all."""
    console = _console()
    if quiet:
        yield Quiet()
    elif console.is_terminal:
        screen = Screen(title=title, console=console)
        with Live(get_renderable=screen.picture, console=console, refresh_per_second=3):
            yield screen  # Live leaves its last picture standing, also when an exception passes
    else:
        lines = Lines(console=console)
        lines.note(title)
        started = time.monotonic()
        yield lines
        lines.note(f"{title}: {lines.rounds} rounds in {duration(time.monotonic() - started)}")


@contextmanager
def bar(title: str, total: int) -> Iterator[Advance]:
    """Watch one long piece of work; total 0 is "not known yet"."""
    console = _console()
    work = Work(title=title, total=total)
    if console.is_terminal:
        with Live(get_renderable=work.picture, console=console, refresh_per_second=5):
            yield work.advance
    else:
        told = time.monotonic()

        def advance(done: int | None = None, total: int | None = None) -> None:
            nonlocal told
            work.advance(done, total)
            if time.monotonic() - told >= LOG_SECONDS:
                told = time.monotonic()
                _say(console, work.line())

        yield advance
        _say(console, work.line())


class Quiet:
    """Nobody watches."""

    def coverage(self, found: Coverage) -> None:
        return

    def phase_started(self, phase: str, *, of: int, first: int) -> None:
        return

    def site_started(self, site: SiteName) -> None:
        return

    def site_finished(self, site: SiteName, result: SiteFacts) -> None:
        return

    def round_finished(self, one: RoundFacts) -> None:
        return

    def note(self, text: str) -> None:
        return


@dataclass(kw_only=True)
class Lines:
    """A log: one line per round, one more for each site that gave nothing."""

    console: Console
    rounds: int = 0
    pace: "Pace" = field(default_factory=lambda: Pace())

    def coverage(self, found: Coverage) -> None:
        for line in coverage_lines(found):
            self.note(line)

    def phase_started(self, phase: str, *, of: int, first: int) -> None:
        self.pace = Pace()
        self.note(f"{phase}: rounds {first + 1} to {of}")

    def site_started(self, site: SiteName) -> None:
        return

    def site_finished(self, site: SiteName, result: SiteFacts) -> None:
        if result.status != "ok":
            self.note(f"  {site} {result.status}: {result.reason}")

    def round_finished(self, one: RoundFacts) -> None:
        self.rounds += 1
        self.pace.took(one.seconds)
        ok = sum(site.status == "ok" for site in one.sites.values())
        parts = [
            f"{one.phase} {one.round + 1}/{one.of}",
            f"loss {number(one.loss)}",
            f"{ok} of {len(one.sites)} sites",
            duration(one.seconds),
            f"up {size(one.bytes_up)} down {size(one.bytes_down)}",
            *([f"epsilon {max(spent):.2f}"] if (spent := one.epsilons) else []),
            *([] if one.validation is None else [validation_line(one.validation)]),
            *([] if one.quorum else ["no quorum"]),
            *([f"left {duration(self.pace.left(one))}"] if one.round + 1 < one.of else []),
        ]
        self.note(" · ".join(parts))

    def note(self, text: str) -> None:
        _say(self.console, text)


@dataclass(kw_only=True)
class Pace:
    """How long a round takes: the median of the latest five, since the first one also warms up."""

    latest: deque[float] = field(default_factory=lambda: deque(maxlen=5))

    def took(self, seconds: float) -> None:
        self.latest.append(seconds)

    def left(self, one: RoundFacts) -> float:
        return median(self.latest) * (one.of - one.round - 1) if self.latest else 0.0


@dataclass(kw_only=True)
class PhaseView:
    """One phase on the screen."""

    name: str
    of: int
    done: int
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    pace: Pace = field(default_factory=Pace)
    left: float | None = None  # seconds, as of the last round's end
    stamp: float = 0.0  # when that was


@dataclass(kw_only=True)
class Screen:
    """A terminal: phases with their curves, the sites of this round, totals; notes scroll by above."""

    title: str
    console: Console
    started: float = field(default_factory=time.monotonic)
    phases: list[PhaseView] = field(default_factory=list)
    sites: dict[SiteName, SiteFacts | None] = field(default_factory=dict)  # None: at work
    since: dict[SiteName, float] = field(default_factory=dict)
    validation: str = ""
    bytes_up: int = 0
    bytes_down: int = 0
    refusals: int = 0

    def coverage(self, found: Coverage) -> None:
        for line in coverage_lines(found):
            self.note(line)

    def phase_started(self, phase: str, *, of: int, first: int) -> None:
        if self.phases and self.phases[-1].name == phase:  # taken up again after a kill
            self.phases[-1].done = first
        else:
            self.phases.append(PhaseView(name=phase, of=of, done=first))

    def site_started(self, site: SiteName) -> None:
        if self.sites.get(site, ...) is not None:
            self.sites[site] = None
            self.since[site] = time.monotonic()

    def site_finished(self, site: SiteName, result: SiteFacts) -> None:
        self.sites[site] = result
        if result.status != "ok":
            self.note(f"{site} {result.status}: {result.reason}")

    def round_finished(self, one: RoundFacts) -> None:
        phase = self.phases[-1]
        phase.done = one.round + 1
        phase.seconds += one.seconds
        phase.pace.took(one.seconds)
        phase.left, phase.stamp = phase.pace.left(one), time.monotonic()
        if one.loss is not None:
            phase.losses.append(one.loss)
        if one.validation is not None:
            self.validation = f"after round {one.round + 1} of {one.phase}: {validation_line(one.validation)}"
        self.sites = dict(one.sites)
        self.bytes_up += one.bytes_up
        self.bytes_down += one.bytes_down
        self.refusals += len(one.refusals)

    def note(self, text: str) -> None:
        _say(self.console, text)

    def picture(self) -> RenderableType:
        parts: list[RenderableType] = [self._head(), self._phase_rows()]
        if self.sites:
            parts.append(self._site_rows())
        if self.validation:
            parts.append(Text(f"validation {self.validation}"))
        return Group(*parts)

    def _head(self) -> Text:
        totals = (
            f"  {duration(time.monotonic() - self.started)} · up {size(self.bytes_up)} · down {size(self.bytes_down)}"
        )
        head = Text.assemble((self.title, "bold"), (totals, "dim"))
        if self.refusals:
            head.append(f" · {self.refusals} refusals", "yellow")
        return head

    def _phase_rows(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for phase in list(self.phases):
            over = phase.done >= phase.of
            time_text = f"in {duration(phase.seconds)}" if over else ""
            if not over and phase.left is not None:
                time_text = f"left {duration(max(0.0, phase.left - (time.monotonic() - phase.stamp)))}"
            table.add_row(
                Text("✓" if over else "▸", "green" if over else "cyan"),
                Text(phase.name, "" if over else "bold"),
                ProgressBar(total=phase.of, completed=phase.done, width=20),
                Text(f"{phase.done}/{phase.of}"),
                Text(time_text, "dim"),
                Text(f"loss {number(phase.losses[-1] if phase.losses else None)}"),
                Text(sparkline(phase.losses).ljust(20), "cyan"),
            )
        return table

    def _site_rows(self) -> RenderableType:
        sites = sorted(self.sites.items())
        shown = (
            sites if len(sites) <= MOST_ROWS else [item for item in sites if not (item[1] and item[1].status == "ok")]
        )
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for name in ("site", "status"):
            table.add_column(name)
        for name in ("loss", "samples", "time", "up", "down"):
            table.add_column(name, justify="right")
        for site, result in shown[:MOST_ROWS]:
            table.add_row(Text(site), *self._cells(site, result))
        if len(sites) <= MOST_ROWS:
            return table
        ok = sum(result is not None and result.status == "ok" for _, result in sites)
        return (
            Group(Text(f"{ok} of {len(sites)} sites done", "dim"), table) if shown else Text(f"{ok} sites done", "dim")
        )

    def _cells(self, site: SiteName, result: SiteFacts | None) -> list[Text]:
        if result is None:
            since = time.monotonic() - self.since.get(site, time.monotonic())
            return [Text("working", COLOURS["working"]), Text(), Text(), Text(duration(since), "dim"), Text(), Text()]
        return [
            Text(result.status, COLOURS.get(result.status, "red")),
            Text(number(result.loss)),
            Text(str(result.samples)),
            Text(duration(result.seconds)),
            Text(size(result.bytes_up)),
            Text(size(result.bytes_down)),
        ]


@dataclass(kw_only=True)
class Work:
    """A piece of work that is counted."""

    title: str
    total: int
    done: int = 0
    started: float = field(default_factory=time.monotonic)

    def advance(self, done: int | None = None, total: int | None = None) -> None:
        self.done = self.done + 1 if done is None else done
        self.total = self.total if total is None else total

    def line(self) -> str:
        of = f" of {self.total}" if self.total else ""
        return f"{self.title}: {self.done}{of} in {duration(time.monotonic() - self.started)}"

    def picture(self) -> RenderableType:
        spent = time.monotonic() - self.started
        left = f"left {duration(spent / self.done * (self.total - self.done))}" if 0 < self.done < self.total else ""
        table = Table.grid(padding=(0, 2))
        table.add_row(
            Text(self.title),
            ProgressBar(total=self.total or None, completed=self.done, width=40, pulse=not self.total),
            Text(f"{self.done}/{self.total}" if self.total else str(self.done)),
            Text(f"{duration(spent)}  {left}", "dim"),
        )
        return table


def coverage_lines(found: Coverage) -> list[str]:
    """Who holds what, and which source -> target pairs how many sites (and subjects) can teach."""
    lines = [
        f"{site}: {holds.subjects} subjects: "
        + ", ".join(f"{pattern} {facts.cell(count)}" for pattern, count in holds.patterns.items())
        + "".join(f"; takes no part in {phase}: {why}" for phase, why in holds.refused.items())
        for site, holds in found.sites.items()
    ]
    rows = [["source → target", *found.modalities]]
    for source in found.modalities:
        pairs = found.pairs[source]
        rows.append([source, *(_pair_text(pairs[target]) for target in found.modalities)])
    return [*lines, "sites that can teach a pair (subjects):", *aligned(rows)]


def _pair_text(pair: facts.Pair) -> str:
    return f"{pair.sites} ({facts.subjects(pair)})" if pair.sites else "–"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def validation_line(values: Mapping[str, float | None]) -> str:
    """`psnr FLAIR 20.1, T2 19.8 · loss 0.04`"""
    groups: dict[str, list[str]] = {}
    for name, value in values.items():
        group, _, rest = name.partition("/")
        groups.setdefault(group, []).append(f"{rest} {number(value)}".strip())
    return " · ".join(f"{group} {', '.join(entries)}" for group, entries in groups.items())


def sparkline(values: Sequence[float], width: int = 20) -> str:
    """The whole course in `width` letters."""
    if len(values) < 2:
        return ""
    count = min(width, len(values))
    picked = [values[round(i * (len(values) - 1) / (count - 1))] for i in range(count)]
    low, high = min(picked), max(picked)
    scale = (len(SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(SPARKS[round((value - low) * scale)] for value in picked)


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def duration(seconds: float) -> str:
    """`0.4 s`, `1:05`, `2:03:04`"""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def size(count: float) -> str:
    """`999 B`, `1.5 kB`, `3.2 MB`"""
    power = 0
    while count >= 999.5 and power < 4:
        count, power = count / 1000, power + 1
    return f"{count:.{int(power > 0 and count < 99.95)}f} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def _console() -> Console:
    return Console(file=sys.stderr, highlight=False, markup=False, emoji=False)


def _say(console: Console, text: str) -> None:
    console.print(Text("".join(c if c.isprintable() else " " for c in text)), soft_wrap=True)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A result for a person, on stdout."""
    drawn = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        drawn.add_column(Text(column), justify="left" if i < 2 else "right")
    for row in rows:
        drawn.add_row(*map(Text, row))
    console = Console()
    Console(width=console.width if console.is_terminal else 150).print(drawn)
