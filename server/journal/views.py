"""What a person sees while a run goes on: a live screen on a terminal, one line per round in a log.

Everything goes to stderr; stdout belongs to results.
"""

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from server.journal import events, facts
from server.journal.events import Event, View
from server.journal.facts import Coverage, RoundFacts, SiteFacts
from shared.base.display import terminal
from shared.base.display.figures import duration, number, size
from shared.base.vocabulary import SiteName

MOST_ROWS = 12  # sites shown one by one; of more, those that work or are in trouble
SPARKS = "▁▂▃▄▅▆▇█"
COLOURS = {"ok": "green", "working": "cyan", "refused": "yellow", "absent": "yellow"}  # any other status is red


@contextmanager
def live(title: str, *, quiet: bool = False) -> Iterator[View]:
    """Watch one run: on a terminal, in a log, or not at all."""
    console = terminal.console()
    if quiet:
        yield View()
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


@dataclass(kw_only=True)
class Lines(View):
    """A log: one line per round, one more for each site that gave nothing."""

    console: Console
    rounds: int = 0
    pace: "Pace" = field(default_factory=lambda: Pace())

    def tell(self, event: Event) -> None:
        match event:
            case events.CoverageFound(found=found):
                for line in coverage_lines(found):
                    self.note(line)
            case events.PhaseStarted(phase=phase, of=of, first=first):
                self.pace = Pace()
                self.note(f"{phase}: rounds {first + 1} to {of}")
            case events.SiteFinished(site=site, result=result) if result.status != "ok":
                self.note(f"  {site} {result.status}: {result.reason}")
            case events.RoundFinished(one=one):
                self._round(one)
            case events.Note(text=text):
                terminal.say(self.console, text)

    def _round(self, one: RoundFacts) -> None:
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
class Screen(View):
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

    def tell(self, event: Event) -> None:
        match event:
            case events.CoverageFound(found=found):
                for line in coverage_lines(found):
                    self.note(line)
            case events.PhaseStarted(phase=phase, of=of, first=first):
                if self.phases and self.phases[-1].name == phase:  # taken up again after a kill
                    self.phases[-1].done = first
                else:
                    self.phases.append(PhaseView(name=phase, of=of, done=first))
            case events.SiteStarted(site=site) if self.sites.get(site, ...) is not None:
                self.sites[site] = None
                self.since[site] = time.monotonic()
            case events.SiteFinished(site=site, result=result):
                self.sites[site] = result
                if result.status != "ok":
                    self.note(f"{site} {result.status}: {result.reason}")
            case events.RoundFinished(one=one):
                self._round(one)
            case events.Note(text=text):
                terminal.say(self.console, text)

    def _round(self, one: RoundFacts) -> None:
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
