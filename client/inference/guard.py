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

    remarks: tuple[str, ...]
    facts: dict[str, Any]  # of the sidecars


def guard(bundle: Bundle, loaded: Loaded, *, force: bool) -> Guarded:
    """Compare an input with what the bundle was trained on; DataError for one far outside, unless `force`."""
    ranges = bundle.record.get("ranges")
    findings = judge(ranges, measure(loaded))
    far = [finding.text for finding in findings if finding.far]
    if far and not force:
        more = f" (and {len(far) - 1} more)" if len(far) > 1 else ""
        raise DataError(f"far from what the bundle was trained on: {far[0]}{more}; --force to go on, which is recorded")
    remarks = tuple(finding.text for finding in findings)
    facts = {"ComparedWith": source_of(ranges), "Unusual": list(remarks), "Forced": bool(far)}
    return Guarded(remarks=remarks, facts=facts)
