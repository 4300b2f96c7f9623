"""PET in uptake values from its tags: body weight, injected dose, and the decay between injection and scan (QIBA).

The cohort's window is a ratio to a reference region (SUVR), which needs no dose: SUV is what a reader expects of a
converted PET, and what remains comparable where no reference region can be found. A PET in Bq/mL whose tags do not
allow it is kept in Bq/mL, and says so.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from client.ingest.arrive.headers import Header

DOSE_BQ = (1e6, 5e9)
WEIGHT_KG = (2.0, 400.0)
DELAY_H = (0.0, 12.0)
HALF_LIFE_S = (60.0, 1e7)


@dataclass(frozen=True, slots=True, kw_only=True)
class Uptake:
    """What the voxels are multiplied with, and the unit that they then have."""

    factor: float
    unit: str  # as BIDS spells it
    why: str


def uptake(headers: Sequence[Header]) -> Uptake:
    """For the voxels after their rescale slope."""
    first = headers[0]
    unit = first.text("Units").upper()
    if unit == "GML":
        return Uptake(factor=1.0, unit="g/mL", why="stored as SUV")
    if unit != "BQML":
        return Uptake(factor=1.0, unit="arbitrary", why="its values are neither Bq/mL nor SUV")
    why = _cannot(headers)
    if why:
        return Uptake(factor=1.0, unit="Bq/mL", why=f"no SUV: {why}")
    dose, weight = first.real("RadionuclideTotalDose") or 0, first.real("PatientWeight") or 0
    decayed = dose * 2 ** (-(_delay(headers) or 0) / (first.real("RadionuclideHalfLife") or math.inf))
    return Uptake(factor=weight * 1000 / decayed, unit="g/mL", why="SUV by body weight")


def _cannot(headers: Sequence[Header]) -> str:
    first = headers[0]
    for name, tag, (low, high), unit in (
        ("injected dose", "RadionuclideTotalDose", DOSE_BQ, "Bq"),
        ("body weight", "PatientWeight", WEIGHT_KG, "kg"),
        ("half-life", "RadionuclideHalfLife", HALF_LIFE_S, "s"),
    ):
        value = first.real(tag)
        if value is None:
            return f"its {name} is not said"
        if not low <= value <= high:
            return f"its {name} of {value:g} {unit} is not possible"
    if first.text("DecayCorrection").upper() not in ("START", "ADMIN"):
        return "to what time its decay was corrected is not said"
    delay = _delay(headers)
    if delay is None:
        return "the time of injection or of the scan is not said"
    if not DELAY_H[0] <= delay / 3600 <= DELAY_H[1]:
        return f"{delay / 3600:.1f} h between injection and scan are not possible"
    return ""


def _delay(headers: Sequence[Header]) -> float | None:
    """Seconds from the injection to the time that the voxels were decay-corrected to; None where it is unknown."""
    first = headers[0]
    if first.text("DecayCorrection").upper() == "ADMIN":
        return 0.0
    acquired = min((moment for h in headers if (moment := _moment(h.acquired))), default=None)
    series = _moment(first.text("SeriesDate") + first.text("SeriesTime").split(".")[0])
    if acquired is None and series is None:
        return None
    # the series time is the start, unless the series was made later, from what was acquired before
    start = series if series is not None and (acquired is None or series <= acquired) else acquired
    assert start is not None
    injected = _moment(first.text("RadiopharmaceuticalStartDateTime").split(".")[0].split("+")[0])
    if injected is None:
        injected = _moment(f"{start:%Y%m%d}" + first.text("RadiopharmaceuticalStartTime").split(".")[0])
        if injected is None:
            return None
        if injected > start:  # before midnight
            injected -= timedelta(days=1)
    return (start - injected).total_seconds()


def _moment(text: str) -> datetime | None:
    try:
        return datetime.strptime(text[:14], "%Y%m%d%H%M%S")
    except ValueError:
        return None
