"""What each series was taken for, in a file that a person may edit: STATE/ingest/series.csv.

Three voices, the later one wins: the rules (classify.py), the site's aliases (STATE/ingest/aliases.csv: a pattern for
the series description and a modality), and a person, who changes the column `modality` of one line. Neither can make a
volume of a series that is not whole, nor an input of a synthetic image. An edit is known by its difference from the
column `found`, so it survives every later ingest.
"""

import csv
import fnmatch
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from client.ingest.recognise.classify import classify, is_synthetic
from client.ingest.recognise.series import Series
from shared.base.errors import ConfigError
from shared.base.files import write_text
from shared.base.vocabulary import Modality
from shared.data.modalities import parse

SERIES_FILE = "series.csv"
ALIAS_FILE = "aliases.csv"
COLUMNS = (
    "modality",
    "found",
    "why",
    "suggestion",
    "patient",
    "date",
    "number",
    "description",
    "kind",
    "slices",
    "step_mm",
    "series",
)
_NO = ("", "-", "no", "none")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would run a description that begins so
By = Literal["rules", "alias", "person"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One series and what it is taken for; `why` names nobody."""

    series: Series
    modality: Modality | None  # None: set aside
    found: Modality | None  # by rules and aliases
    by: By
    why: str
    suggestion: Modality | None = None
    said: Modality | None = None  # what `modality` would be of a whole series


@dataclass(frozen=True, slots=True, kw_only=True)
class Alias:
    """A site's own name: what a series description looks like, and its modality; None for not to be used."""

    pattern: str
    modality: Modality | None


def decide(series: Sequence[Series], folder: Path) -> list[Listed]:
    """Each series with its modality, or why it has none; `folder` is STATE/ingest."""
    aliases, edits = read_aliases(folder / ALIAS_FILE), read_edits(folder / SERIES_FILE)
    return [_decide(one, aliases, edits) for one in series]


def _decide(series: Series, aliases: Sequence[Alias], edits: Mapping[str, Modality | None]) -> Listed:
    verdict = classify(series)
    by: By = "rules"
    found, why = verdict.modality, verdict.why
    named = series.first.text("SeriesDescription").casefold()
    alias = next((alias for alias in aliases if fnmatch.fnmatchcase(named, alias.pattern.casefold())), None)
    if alias is not None:
        found, why, by = alias.modality, "by the site's alias table", "alias"
    said = found
    if series.key in edits:
        said, why, by = edits[series.key], "by a person's word in series.csv", "person"
    modality = said
    if said is not None and is_synthetic(series):
        modality, why = None, "a synthetic image: never an input again"
    elif series.fault:
        modality, why = None, series.fault if said is not None else f"{why}; {series.fault}"
    suggestion = verdict.hint if found is None else None
    return Listed(series=series, modality=modality, found=found, by=by, why=why, suggestion=suggestion, said=said)


def read_aliases(path: Path) -> list[Alias]:
    """Rows `description,modality`; the first pattern that fits counts. No file, no aliases."""
    rows = _read(path)
    aliases = []
    for number, row in rows:
        pattern, name = row.get("description", "").strip(), row.get("modality", "").strip()
        if pattern:
            aliases.append(Alias(pattern=pattern, modality=_modality(name, f"{path.name} line {number}")))
    return aliases


def read_edits(path: Path) -> dict[str, Modality | None]:
    """What a person changed: series -> modality, None for not to be used."""
    edits: dict[str, Modality | None] = {}
    for number, row in _read(path):
        if "series" not in row or "modality" not in row or "found" not in row:
            raise ConfigError(f"{path}: needs the columns series, found and modality; delete it to have it made anew")
        said = _modality(row["modality"].strip(), f"{path.name} line {number}")
        if said != _modality(row["found"].strip(), f"{path.name} line {number}, found"):
            edits[row["series"].strip()] = said
    return edits


def write(listed: Sequence[Listed], folder: Path) -> Path:
    """The list of this ingest's series; lines of series that were not seen this time are kept."""
    path = folder / SERIES_FILE
    rows = {row["series"]: row for _, row in _read(path) if row.get("series")}
    for one in listed:
        rows[one.series.key] = _row(one)
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n", extrasaction="ignore", restval="")
    table.writeheader()
    table.writerows(sorted(rows.values(), key=lambda row: (row.get("patient", ""), row.get("date", ""))))
    write_text(path, text.getvalue())
    aliases = folder / ALIAS_FILE
    if not aliases.exists():
        write_text(aliases, "description,modality\n")
    return path


def _row(one: Listed) -> dict[str, str]:
    header = one.series.first
    number = header.real("SeriesNumber")
    return {
        "modality": one.said or "",
        "found": one.found or "",
        "why": one.why,
        "suggestion": one.suggestion or "",
        "patient": _safe(one.series.patient),
        "date": one.series.date,
        "number": "" if number is None else f"{number:.0f}",
        "description": _safe(header.text("SeriesDescription") or header.text("ProtocolName")),
        "kind": one.series.kind,
        "slices": str(one.series.slices or len(one.series.headers)),
        "step_mm": f"{one.series.step:.3g}",
        "series": one.series.key,
    }


def _safe(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


def _modality(name: str, where: str) -> Modality | None:
    if name.casefold() in _NO:
        return None
    try:
        return parse(name)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}; leave it empty for a series that is not to be used") from None


def _read(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Rows of a table that a spreadsheet may have saved again: its own separator, its own encoding."""
    if not path.exists():
        return []
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("cp1252", "replace")
    first = text.partition("\n")[0]
    separator = max(",;\t", key=first.count)
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, restkey="", restval=""))
    except csv.Error as error:
        raise ConfigError(f"{path}: can't be read as a table ({error})") from None
    return [(n, {str(k).strip(): str(v or "") for k, v in row.items()}) for n, row in enumerate(rows, start=2)]
