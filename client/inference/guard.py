"""Is this input anything like what the bundle was trained on? Said where it is not quite, refused where it is far off.

A model answers whatever it is shown, and as confidently. See shared/model/ranges.py for what is compared.
"""

from dataclasses import dataclass
from typing import Any

from shared.base.errors import DataError
from shared.data.preparation import Loaded
from shared.model.bundle import Bundle
from shared.model.ranges import judge, measure, source_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarded:
    """What the guard said of one subject's input."""

    remark: str | None  # one line for the reader; None: nothing is unusual
    facts: dict[str, Any]  # of the sidecars, with the figures


def guard(bundle: Bundle, loaded: Loaded, *, force: bool) -> Guarded:
    """Compare an input with what the bundle was trained on; DataError for one far outside, unless `force`."""
    ranges = bundle.record.get("ranges")
    findings, source = judge(ranges, measure(loaded)), source_of(ranges)
    far = ", ".join(finding.words for finding in findings if finding.far)
    if far and not force:
        raise DataError(
            f"far from what the bundle was trained on: {far}. It may be another contrast, another organ, or upside "
            "down in brightness, and what is made would mean nothing; --force to go on, which is recorded"
        )
    words = ", ".join(finding.words for finding in findings)
    usual = "what the bundle was trained on" if ranges else "usual"
    line = f"{words} than {usual}: what is made may look right and be wrong" if words else None
    figures = [figure for finding in findings for figure in finding.figures]
    facts = {"ComparedWith": source, "Meaning": line, "Unusual": figures, "Forced": bool(far)}
    return Guarded(remark=line, facts=facts)
