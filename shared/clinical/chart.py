"""What a chart says of a subject, in the few fields that a prompt may hold. It is patient data, and never printed."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from shared.base.errors import ConfigError

PIECES = ("target", "available", "diagnosis", "mmse", "adas13", "cdrsb")  # one token each
FIELDS = PIECES[2:]  # those that come from the chart

DIAGNOSES = ("AD", "MCI", "HC")
_FOLDED: Mapping[str, str] = {
    **{name.casefold(): name for name in DIAGNOSES},
    **dict.fromkeys(("cn", "nc", "nl", "healthy", "control"), "HC"),
    **dict.fromkeys(("emci", "lmci"), "MCI"),
    "dementia": "AD",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A score's range, from 0, and what it is rounded to before anything else sees it."""

    most: float
    step: float
    label: str

    @property
    def rule(self) -> str:
        return f"a number in [0, {self.most:g}]"


SCORES: Mapping[str, Score] = {
    "mmse": Score(most=30, step=1, label="MMSE"),
    "adas13": Score(most=85, step=1, label="ADAS13"),
    "cdrsb": Score(most=18, step=0.5, label="CDR-SOB"),
}


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Chart:
    """Checked, folded to AD / MCI / HC and rounded when made; None where it is not known, or not to be used."""

    diagnosis: str | None = None
    mmse: float | None = None
    adas13: float | None = None
    cdrsb: float | None = None

    def __post_init__(self) -> None:
        for name in FIELDS:
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _checked(name, value))

    @property
    def known(self) -> tuple[str, ...]:
        """The names of the fields that it holds."""
        return tuple(name for name in FIELDS if getattr(self, name) is not None)

    def __repr__(self) -> str:
        return f"Chart of {', '.join(self.known) or 'nothing'}"  # no value: a chart may end up in a traceback


def chart_of(clinical: Mapping[str, float | str], fields: Collection[str]) -> Chart:
    """A participants.tsv row's allowed fields. A value that is out of range, or an unknown diagnosis, is left out.

    Nothing is raised for a value, since an error's text leaves a site that trains; `unfit` names what was left out.
    """
    left = unfit(clinical, fields)
    return Chart(**{name: clinical[name] for name in _asked(fields) if name in clinical and name not in left})  # type: ignore[arg-type]


def unfit(clinical: Mapping[str, float | str], fields: Collection[str] = FIELDS) -> dict[str, str]:
    """Of the allowed fields that a row has, those that can't be used, each with the rule that its value breaks."""
    found = {}
    for name in _asked(fields):
        if name in clinical:
            try:
                _checked(name, clinical[name])
            except ConfigError:
                found[name] = rule_of(name)
    return found


def rule_of(name: str) -> str:
    return SCORES[name].rule if name in SCORES else f"one of {', '.join(DIAGNOSES)} (CN, NC, NL and control mean HC)"


def _asked(fields: Collection[str]) -> tuple[str, ...]:
    for name in fields:
        if name not in FIELDS:
            raise ConfigError(f"fields={name!r}: must be among {', '.join(FIELDS)}")
    return tuple(name for name in FIELDS if name in fields)


def _checked(name: str, value: object) -> float | str:
    if name == "diagnosis":
        folded = _FOLDED.get(value.strip().casefold()) if isinstance(value, str) else None
        if folded is not None:
            return folded
    else:
        score = SCORES[name]
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
        if 0 <= number <= score.most:  # not a nan either
            return float(round(number / score.step) * score.step)
    raise ConfigError(f"{name}={value!r}: must be {rule_of(name)}")
