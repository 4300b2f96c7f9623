"""Near-duplicates: does what a bundle makes of held-out subjects repeat slices of its training subjects?

Each target of a held-out subject is hidden and made again, from all that the subject has besides and from one of that.
A made slice that lies nearer to a training slice than all but 1 % of real held-out slices do is a near-duplicate. The
control is the same question about subjects that nobody trained on: smooth images lie nearer to everybody.
"""

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from client.audit.inspection import Inspection, spread
from client.audit.nearest import Nearest, Prints, joined, prints
from shared.base import pictures
from shared.base.errors import DataError
from shared.base.vocabulary import Modality
from shared.data.slices import Slices
from shared.model.fill import Filling, fill
from shared.model.taught import why_untaught

NOMINAL = 0.01  # of real slices that lie nearer than the threshold, by construction
SAME = 1e-6  # a distance at which two slices are one
THUMB = 96  # pixels
SHEET = 8  # pairs drawn
LISTED = 100  # pairs named
NOTICE = "Patient data: stays at the site. Distance as a multiple of the threshold."


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicates:
    rate: float  # of made slices
    control: float
    figures: Mapping[str, Any]
    listing: str  # of the nearest pairs; names subjects
    sheet: Any  # their picture
    remarks: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class _Target:
    """One target's slices of held-out subjects, real and made, and the nearest of each."""

    parts: list[Prints] = field(default_factory=list)
    made_parts: list[Prints] = field(default_factory=list)
    of: list[int] = field(default_factory=list)  # each made slice's real one
    shown: list[str] = field(default_factory=list)  # what each was made from
    thumbs: list[NDArray[np.uint8]] = field(default_factory=list)
    made_thumbs: list[NDArray[np.uint8]] = field(default_factory=list)

    def sealed(self) -> "_Compared":
        real, made = joined(self.parts), joined(self.made_parts)
        return _Compared(
            what=self,
            real=real,
            made=made,
            near=(Nearest.of(real), Nearest.of(made)),
            unseen=(Nearest.of(real), Nearest.of(made)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Compared:
    what: _Target
    real: Prints
    made: Prints
    near: tuple[Nearest, Nearest]  # real and made, among training subjects
    unseen: tuple[Nearest, Nearest]  # among the other held-out ones

    @property
    def threshold(self) -> float:
        return _threshold(self.near[0].correlation_N)

    def look_at(self, candidate: Prints, *, own: bool) -> None:
        for queries, nearest in zip((self.real, self.made), self.unseen if own else self.near, strict=True):
            nearest.look_at(queries, candidate, own=own)


def find_duplicates(inspection: Inspection, subjects: Sequence[int], advance: Callable[[], None]) -> Duplicates:
    """`subjects`: numbers of held-out ones. Advances once for each of them, and for each subject of both cohorts."""
    targets: dict[Modality, _Target] = {}
    for number in subjects:
        _make(inspection, number, targets)
        advance()
    if not targets:
        raise DataError("no held-out subject has one of the bundle's targets beside what it can be made from")
    compared = {m: target.sealed() for m, target in targets.items()}
    for part, own in ((inspection.trained, False), (inspection.heldout, True)):
        for number in range(len(part.subjects)):
            for m, candidate in _candidates(part, number, compared).items():
                compared[m].look_at(candidate, own=own)
            advance()
    _check_apart(compared)
    return _conclude(inspection, compared)


def _make(inspection: Inspection, number: int, targets: dict[Modality, _Target]) -> None:
    """All of a held-out subject's targets, at the same places."""
    model, effort, part = inspection.model, inspection.effort, inspection.heldout
    stack, brain_slices = part.volume(number), part.subjects[number].brain_slices
    held = [m for m, exists in zip(model.modalities, stack.exists_M.tolist(), strict=True) if exists]
    chosen = [brain_slices[place] for place in spread(len(brain_slices), effort.slices)]
    brain_NHW = stack.brain_DHW[chosen]
    whole = list(range(min(brain_slices), max(brain_slices) + 1))  # for methods of slabs
    for m in (m for m in model.method.targets if m in held):
        sources = [other for other in held if other != m and why_untaught(model, [other], m) is None]
        if not sources:
            continue
        row, target = model.modalities.index(m), targets.setdefault(m, _Target())
        first = len(target.thumbs)
        target.parts.append(prints(stack.images_MDHW[row, chosen], brain_NHW, number))
        target.thumbs += _thumbs(stack.images_MDHW[row, chosen])
        for shown in dict.fromkeys([tuple(sources), (sources[number % len(sources)],)]):
            filled = fill(
                model,
                stack.images_MDHW,
                torch.tensor([name in shown for name in model.modalities]),
                whole if model.method.slab > 1 else sorted(set(chosen)),
                Filling(
                    sampler=inspection.sampler,
                    keys=(effort.seed, "memorisation", number, m, "+".join(shown)),
                    device=inspection.device,
                ),
            )
            made_NHW = torch.where(brain_NHW, filled.mean_MDHW[row, chosen].nan_to_num(), 0.0)
            target.made_parts.append(prints(made_NHW, brain_NHW, number))
            target.made_thumbs += _thumbs(made_NHW)
            target.of += range(first, first + len(chosen))
            target.shown += ["+".join(shown)] * len(chosen)


def _candidates(part: Slices, number: int, targets: Mapping[Modality, object]) -> dict[Modality, Prints]:
    """All brain slices of a subject, of the targets that it has."""
    subject = part.subjects[number]
    rows = {m: part.modalities.index(m) for m in targets if m in subject.modalities}
    if not rows:
        return {}
    stack, chosen = part.volume(number), list(subject.brain_slices)
    brain_NHW = stack.brain_DHW[chosen]
    return {m: prints(stack.images_MDHW[row, chosen], brain_NHW, number) for m, row in rows.items()}


def _check_apart(compared: Mapping[Modality, _Compared]) -> None:
    same = {int(n) for c in compared.values() for n in c.real.subject_N[c.near[0].difference_N < SAME]}
    if same:
        raise DataError(
            f"{len(same)} held-out subjects have images that are in the training cohort too: leave them out"
        )


# --- figures --------------------------------------------------------------------------------------------------------


class _Rates(NamedTuple):
    """Shares of made slices: by correlation, and by the difference, which blur alone makes small."""

    found: float
    control: float
    alike: float
    alike_control: float

    def plain(self) -> dict[str, Any]:
        by_difference = {"rate": self.alike, "control": self.alike_control}
        return {"rate": self.found, "control": self.control, "by difference": by_difference}


def _conclude(inspection: Inspection, compared: Mapping[Modality, _Compared]) -> Duplicates:
    rates = {m: _rates(c) for m, c in compared.items()}
    total = sum(len(c.made) for c in compared.values())
    overall = _Rates(*(sum(rates[m][i] * len(c.made) for m, c in compared.items()) / total for i in range(4)))
    subjects = len({int(n) for c in compared.values() for n in c.real.subject_N})
    low, high = wilson(overall.found, subjects)
    few = [m for m, c in compared.items() if len(c.real) * NOMINAL < 1]
    remark = f"{', '.join(few)}: fewer than 100 real slices, so the threshold is about their smallest distance"
    ranked = _ranked(compared)
    return Duplicates(
        rate=overall.found,
        control=overall.control,
        figures={
            **overall.plain(),
            "low": low,
            "high": high,
            "nominal": NOMINAL,
            "by target": {m: _by_target(rates[m], c) for m, c in compared.items()},
            "subjects": {"searched": len(inspection.trained.subjects), "held out": subjects},
        },
        listing=_listing(inspection, compared, ranked),
        sheet=_sheet(inspection.trained, compared, ranked),
        remarks=(remark,) if few else (),
    )


def _rates(c: _Compared) -> _Rates:
    (real, made), (real_unseen, made_unseen) = c.near, c.unseen
    return _Rates(
        found=_below(made.correlation_N, real.correlation_N),
        control=_below(made_unseen.correlation_N, real_unseen.correlation_N),
        alike=_below(made.difference_N, real.difference_N),
        alike_control=_below(made_unseen.difference_N, real_unseen.difference_N),
    )


def _below(made_N: NDArray[np.float64], real_N: NDArray[np.float64]) -> float:
    return float((made_N < _threshold(real_N)).mean())


def _by_target(rates: _Rates, c: _Compared) -> dict[str, Any]:
    """`ratio`: how near a made slice lies against its own real one, in the middle; 1 is as near."""
    real_N, made_N = c.near[0].correlation_N[c.what.of], c.near[1].correlation_N
    both_N = np.isfinite(real_N) & np.isfinite(made_N)
    ratio = float(np.median(made_N[both_N] / np.maximum(real_N[both_N], SAME))) if both_N.any() else None
    return {
        **rates.plain(),
        "threshold": c.threshold,
        "ratio": ratio,
        "made slices": len(c.made),
        "real slices": len(c.real),
    }


def _threshold(distance_N: NDArray[np.float64]) -> float:
    finite = distance_N[np.isfinite(distance_N)]
    return float(np.quantile(finite, NOMINAL)) if len(finite) else 0.0


def wilson(rate: float, n: int) -> tuple[float, float]:
    """95 % interval of a share; n is the number of subjects, for slices of one are alike."""
    z2 = 1.959963984540054**2
    middle = (rate + z2 / (2 * n)) / (1 + z2 / n)
    reach = math.sqrt(z2 * (rate * (1 - rate) / n + z2 / (4 * n**2))) / (1 + z2 / n)
    return max(0.0, middle - reach), min(1.0, middle + reach)


# --- the nearest pairs ----------------------------------------------------------------------------------------------


class _Pair(NamedTuple):
    over: float  # distance as a multiple of the threshold
    target: Modality
    number: int  # of the made slice


def _ranked(compared: Mapping[Modality, _Compared]) -> list[_Pair]:
    every = [
        _Pair(float(distance) / max(c.threshold, SAME), m, i)
        for m, c in compared.items()
        for i, distance in enumerate(c.near[1].correlation_N)
        if math.isfinite(distance)
    ]
    return sorted(every)[:LISTED]


def _listing(inspection: Inspection, compared: Mapping[Modality, _Compared], ranked: Sequence[_Pair]) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("target", "heldout", "shown", "nearest_training", "distance", "of_real", "over_threshold"))
    for pair in ranked:
        c = compared[pair.target]
        real, made = c.near
        heldout = inspection.heldout.subjects[int(c.made.subject_N[pair.number])].name
        nearest = inspection.trained.subjects[int(made.subject_N[pair.number])].name
        numbers = (made.correlation_N[pair.number], real.correlation_N[c.what.of[pair.number]], pair.over)
        rows.writerow((pair.target, heldout, c.what.shown[pair.number], nearest, *(f"{v:.5f}" for v in numbers)))
    return text.getvalue()


def _sheet(trained: Slices, compared: Mapping[Modality, _Compared], ranked: Sequence[_Pair]) -> Any:
    rows, labels = [], []
    for pair in ranked[:SHEET]:
        c = compared[pair.target]
        made = c.near[1]
        number = int(made.subject_N[pair.number])
        z = trained.subjects[number].brain_slices[int(made.place_N[pair.number])]
        truth_HW = trained.volume(number).images_MDHW[trained.modalities.index(pair.target), z]
        drawn = (c.what.made_thumbs[pair.number], *_thumbs(truth_HW[None]), c.what.thumbs[c.what.of[pair.number]])
        rows.append([thumb / 255 for thumb in drawn])
        labels.append(f"{pair.target} x {pair.over:.2f}")
    return pictures.mosaic(rows, labels, ("made", "nearest training", "real, held out"), NOTICE)


def _thumbs(images_NHW: Tensor) -> list[NDArray[np.uint8]]:
    size = (min(THUMB, images_NHW.shape[1]), min(THUMB, images_NHW.shape[2]))
    small = F.adaptive_avg_pool2d(images_NHW.float(), size).clamp(0, 1)
    return list((small * 255).round().byte().numpy())
