"""What both commands show on a terminal: a bar while work goes on, a table of results.

Bars and notes go to stderr; stdout belongs to results. Other machines' words are printed as they are, never as markup.
"""

import sys
import time
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from shared.base.display.figures import duration
from shared.base.display.progress import Progress

LOG_SECONDS = 10.0  # between two lines of a bar in a log


def console() -> Console:
    return Console(file=sys.stderr, highlight=False, markup=False, emoji=False)


def say(screen: Console, text: str) -> None:
    """A line that stays."""
    screen.print(Text("".join(c if c.isprintable() else " " for c in text)), soft_wrap=True)


@contextmanager
def bar(title: str) -> Iterator[Progress]:
    """Watch one long piece of work: a bar on a terminal, in a log a line now and then and one at the end."""
    screen = console()
    work = _Work(title=title)
    if screen.is_terminal:
        with Live(get_renderable=work.picture, console=screen, refresh_per_second=5):
            yield work.advance
    else:
        told = time.monotonic()

        def advance(done: int, total: int) -> None:
            nonlocal told
            work.advance(done, total)
            if time.monotonic() - told >= LOG_SECONDS:
                told = time.monotonic()
                say(screen, work.line())

        yield advance
        say(screen, work.line())


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str | Text]], *, left: Container[int] = (0, 1)
) -> None:
    """A result for a person, on stdout. `left`: the columns of words; all others are numbers, set flush right."""
    drawn = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        drawn.add_column(Text(column), justify="left" if i in left else "right")
    for row in rows:
        drawn.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    screen = Console()
    Console(width=screen.width if screen.is_terminal else 150).print(drawn)


@dataclass(kw_only=True)
class _Work:
    """A piece of work that is counted."""

    title: str
    total: int = 0  # not known yet
    done: int = 0
    started: float = field(default_factory=time.monotonic)

    def advance(self, done: int, total: int) -> None:
        self.done, self.total = done, total

    def line(self) -> str:
        of = f" of {self.total}" if self.total else ""
        return f"{self.title}: {self.done}{of} in {duration(time.monotonic() - self.started)}"

    def picture(self) -> RenderableType:
        spent = time.monotonic() - self.started
        left = f"left {duration(spent / self.done * (self.total - self.done))}" if 0 < self.done < self.total else ""
        row = Table.grid(padding=(0, 2))
        row.add_row(
            Text(self.title),
            ProgressBar(total=self.total or None, completed=self.done, width=40, pulse=not self.total),
            Text(f"{self.done}/{self.total}" if self.total else str(self.done)),
            Text(f"{duration(spent)}  {left}", "dim"),
        )
        return row
