"""Scores as tables, on a pandas frame: means, paired differences with their intervals, words for a screen, CSV.

Scores are tidy: one `value` a row, beside it what was measured (`metric`), who made it (a model, a run, a way) and the
unit that it was measured on (a subject, a slice, a generation). All are measured on the same units, so differences are
paired. What is not finite counts as not measured.

pandas takes half a second to import: import this file late, and only where there is a table to make.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd

from shared.base.files import write_text

Frame: TypeAlias = pd.DataFrame
Row: TypeAlias = Mapping[str, Any]  # of a frame, by column
Printable: TypeAlias = tuple[tuple[str, ...], list[tuple[str, ...]]]  # headings, and rows of words


class Interval(NamedTuple):
    """Mean and its 95 % confidence interval (Student's t)."""

    mean: float
    low: float
    high: float
    n: int


def interval(values: Sequence[float]) -> Interval:
    (found,) = intervals(pd.DataFrame({"values": list(values)})).itertuples(index=False)
    return Interval(*found)


def intervals(values: Frame) -> Frame:
    """`Interval` of each column, endless where there is one value alone."""
    from scipy.stats import t  # takes a second to import

    n, mean = values.count(), values.mean()
    reach = (t.ppf(0.975, (n - 1).clip(lower=1)) * values.sem()).fillna(np.inf)
    return pd.DataFrame({"mean": mean, "low": mean - reach, "high": mean + reach, "n": n})


def tidy(rows: Iterable[Any], columns: Sequence[str]) -> Frame:
    return pd.DataFrame.from_records(list(rows), columns=list(columns))


def stacked(parts: Iterable[Frame]) -> Frame:
    """One below the other."""
    return pd.concat(list(parts), ignore_index=True)


COMPARED = ("mean", "mean_low", "mean_high", "n", "lead", "low", "high", "pairs")


def compare(scores: Frame, by: Sequence[str], who: str, units: Sequence[str], first: str | None = None) -> Frame:
    """A row for each of `by` and `who`, in the order in which they come, with COMPARED beside.

    mean, mean_low, mean_high, n: over the units, each of which counts once however many values it has. lead, low, high,
    pairs: `first` minus this one, over the units that both have; empty in the row of `first` itself.
    """
    finite = scores[np.isfinite(scores["value"])]
    parts = []
    for key, part in finite.groupby(list(by), sort=False):
        each = part.groupby([*units, who], sort=False)["value"].mean().unstack(who)[list(part[who].unique())]
        own = intervals(each)
        others = each.drop(columns=first, errors="ignore") if first in each else each[[]]
        ahead = intervals(others.rsub(each[first], axis=0) if first in each else others).reindex(own.index)
        ahead = ahead.where(ahead["n"] > 0)
        found = pd.concat([own, ahead], axis=1).set_axis(list(COMPARED), axis=1)
        parts.append(found.rename_axis(who).reset_index().assign(**dict(zip(by, key, strict=True))))
    columns = [*by, who, *COMPARED]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def write_csv(table: Frame, path: Path, columns: Sequence[str], *, exact: bool = False, blank: str = "") -> None:
    """Seven digits, or `exact`: read again they are the same numbers. `blank`: what stands where there is no number."""
    digits = None if exact else "%.7g"
    text = table[list(columns)].to_csv(index=False, lineterminator="\n", float_format=digits, na_rep=blank)
    write_text(path, text)


def read_csv(path: Path) -> Frame:
    """As it was written: words, of which the caller makes numbers."""
    return pd.read_csv(path, dtype=str, keep_default_na=False)


# --- words ----------------------------------------------------------------------------------------------------------


def records(table: Frame) -> list[Row]:
    found: list[Row] = table.to_dict("records")
    return found


class Column(NamedTuple):
    """A column on the screen."""

    heading: str
    of: str  # which metric, or model
    words: Callable[[Row], str]


def screen(rows: Iterable[Row], titles: Sequence[str], across: str, columns: Sequence[Column]) -> Printable:
    """A line for each set of `titles`, the first of which is said once; each word from the row of its `across`."""
    held: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        held.setdefault(tuple(str(row[title]) for title in titles), {})[row[across]] = row
    lines, last = [], ""
    for (title, *rest), found in held.items():
        lines.append(
            ("" if title == last else title, *rest, *(column.words(found.get(column.of, {})) for column in columns))
        )
        last = title
    return (*titles, *(column.heading for column in columns)), lines


def mean(digits: int, times: float = 1) -> Callable[[Row], str]:
    def words(row: Row) -> str:
        value = row.get("mean", math.nan)
        return "–" if math.isnan(value) else f"{times * value:.{digits}f}"

    return words


def mean_with_reach(digits: int) -> Callable[[Row], str]:
    def words(row: Row) -> str:
        return mean(digits)(row) + _reach(row.get("mean_high", math.nan) - row.get("mean", math.nan), digits)

    return words


def lead_with_reach(digits: int) -> Callable[[Row], str]:
    """Shorter than `lead`, for wide tables."""

    def words(row: Row) -> str:
        value = row.get("lead", math.nan)
        return "" if math.isnan(value) else f"{value:+.{digits}f}" + _reach(row["high"] - value, digits)

    return words


def _reach(reach: float, digits: int) -> str:
    return f" ± {reach:.{digits}f}" if math.isfinite(reach) else ""


def lead(digits: int) -> Callable[[Row], str]:
    def words(row: Row) -> str:
        value, low, high = (row.get(name, math.nan) for name in ("lead", "low", "high"))
        if math.isnan(value):
            return ""
        within = f" [{low:+.{digits}f}, {high:+.{digits}f}]" if math.isfinite(low) else ""
        return f"{value:+.{digits}f}{within}"

    return words
