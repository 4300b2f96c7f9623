"""Can one tell by its loss whether a subject was trained on? The simplest attack there is, with its uncertainty.

Every subject goes through the same times, noise and hidden modalities. A network that was never trained goes through
them too: where even its losses differ between the cohorts, they differ in kind, and the attack measures that.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.audit.inspection import Inspection, spread
from shared.base.errors import DataError
from shared.base.options import plain
from shared.base.randomness import generator
from shared.base.records import Batch
from shared.base.vocabulary import Modality
from shared.data.missing import all_patterns
from shared.data.slices import Slices
from shared.methods.threads import threads
from shared.plan.training import ALL_THREADS

CHANCE = 0.05  # in which share of such cohorts a perfect separation may come by chance alone
FALSE_ALARMS = 0.05
Z = 1.959963984540054  # of a normal, 95 % within
Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Auc:
    """The chance that a training subject's loss is lower than a held-out one's, and its 95 % interval."""

    value: float
    low: float
    high: float


def auc(training: Scores, heldout: Scores) -> Auc:
    """DeLong's variance on the scale of log-odds; where that is nothing, Newcombe's (2006, method 5).

    Scores: the higher, the more like a training subject; ties count half.
    """
    above = (training[:, None] > heldout[None]) + 0.5 * (training[:, None] == heldout[None])
    value = float(above.mean())
    variance = float(above.mean(1).var(ddof=1) / len(training) + above.mean(0).var(ddof=1) / len(heldout))
    if variance == 0 or value in (0.0, 1.0):
        return _edge(value, len(training), len(heldout))
    odds, error = math.log(value / (1 - value)), math.sqrt(variance) / (value * (1 - value))
    low, high = (1 / (1 + math.exp(-(odds + sign * Z * error))) for sign in (-1, 1))
    return Auc(value=value, low=low, high=high)


def _edge(value: float, n: int, m: int) -> Auc:
    """The values whose own error, after Hanley and McNeil, reaches to what was found."""

    def reaches(guess: float) -> bool:
        pairs = (n + m) / 2 - 1
        spread = 1 + pairs * ((1 - guess) / (2 - guess) + guess / (1 + guess))
        return abs(value - guess) <= Z * math.sqrt(guess * (1 - guess) * spread / (n * m))

    def limit(outer: float) -> float:
        inner = value
        for _ in range(50):
            middle = (inner + outer) / 2
            inner, outer = (middle, outer) if reaches(middle) else (inner, middle)
        return inner

    return Auc(value=value, low=limit(0.0), high=limit(1.0))


def hits(training: Scores, heldout: Scores) -> float | None:
    """True positives at 5 % false ones; None below 20 held-out subjects, where 5 % is less than one."""
    allowed = math.floor(FALSE_ALARMS * len(heldout) + 1e-9)
    if not allowed:
        return None
    threshold = np.sort(heldout)[::-1][allowed]
    return float((training > threshold).mean())


def check_enough(training: int, heldout: int, what: str) -> None:
    """Enough that all of one kind before all of the other is no chance."""
    if min(training, heldout) >= 2 and 2 / math.comb(training + heldout, training) <= CHANCE:
        return
    raise DataError(
        f"{training} training and {heldout} held-out subjects {what}: too few to say anything, for even a perfect "
        f"separation may be chance; at least 4 of each are needed, and 20 held-out ones for all figures"
    )


# --- losses ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Which subjects are compared, and in what."""

    phase: str
    modalities: tuple[Modality, ...]  # all of them have these; others of theirs are hidden
    training: tuple[int, ...]
    heldout: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.training) + len(self.heldout)


def match(inspection: Inspection) -> Match:
    """DataError where too few subjects have the same modalities.

    A subject that lacks one has another loss, whoever was trained on; so all are cut down to the modalities of which
    there are most images in both cohorts.
    """
    method, parts = inspection.model.method, (inspection.trained, inspection.heldout)
    check_enough(len(parts[0].subjects), len(parts[1].subjects), "with any of the bundle's modalities")
    phase = [phase.name for phase in method.phases if phase.kind == "train"][-1]

    def weight(pattern: tuple[Modality, ...]) -> tuple[float, int]:
        n, m = (sum(set(pattern) <= set(subject.modalities) for subject in part.subjects) for part in parts)
        usable = n * m > 0 and method.lacks(pattern, phase) is None
        return (len(pattern) * n * m / (n + m) if usable else 0.0, len(pattern))

    best = max(all_patterns(method.modalities), key=weight)
    if not weight(best)[0]:
        raise DataError(f"no subjects of both cohorts have the modalities that the bundle's phase {phase} needs")
    training, heldout = (tuple(inspection.some(part, best)) for part in parts)
    check_enough(len(training), len(heldout), f"with {', '.join(best)}")
    return Match(phase=phase, modalities=best, training=training, heldout=heldout)


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    auc: Auc
    hits: float | None
    figures: Mapping[str, Any]
    remarks: tuple[str, ...]


def attack(inspection: Inspection, matched: Match, advance: Callable[[], None]) -> Membership:
    """Advances twice for each subject: once for the bundle's network, once for one that was never trained."""
    model, seed = inspection.model, inspection.effort.seed
    untrained = model.method.build(seed).eval().requires_grad_(False)
    found = _both(inspection, model.net, matched, advance)
    area, control = auc(*found), auc(*_both(inspection, untrained, matched, advance))
    recognised, remarks = hits(*found), []
    if recognised is None:
        remarks.append(f"{len(matched.heldout)} held-out subjects: true positives at 5 % false ones need 20")
    if not control.low <= 0.5 <= control.high:
        remarks.append(
            "the cohorts may differ in kind: a network that was never trained tells them apart too (AUC "
            f"{control.value:.2f} [{control.low:.2f}, {control.high:.2f}]); take held-out subjects of the same scanners"
        )
    figures = {
        "auc": plain(area),
        "true positives at 5 % false ones": recognised,
        "untrained network": plain(control),
        "phase": matched.phase,
        "modalities": list(matched.modalities),
        "subjects": {"training": len(matched.training), "held out": len(matched.heldout)},
    }
    return Membership(auc=area, hits=recognised, figures=figures, remarks=tuple(remarks))


def _both(inspection: Inspection, net: nn.Module, matched: Match, advance: Callable[[], None]) -> tuple[Scores, Scores]:
    net = net.to(inspection.device)
    return (
        scores(inspection, net, inspection.trained, matched.training, matched, advance),
        scores(inspection, net, inspection.heldout, matched.heldout, matched, advance),
    )


def scores(
    inspection: Inspection,
    net: nn.Module,
    part: Slices,
    subjects: Sequence[int],
    matched: Match,
    advance: Callable[[], None],
) -> Scores:
    """Minus each subject's mean loss: over the same number of slices and the same draws for all."""
    method, effort, device = inspection.model.method, inspection.effort, inspection.device
    starts = np.cumsum([0, *(part.count(number) for number in range(len(part.subjects)))])
    kept_M = torch.tensor([m in matched.modalities for m in method.modalities])
    found = []
    for number in subjects:
        places = spread(part.count(number), effort.slices)
        batch = _only(part.batch(int(starts[number]) + place for place in places), kept_M).to(device)
        total = 0.0
        with torch.no_grad(), threads(ALL_THREADS):
            for draw in range(effort.draws):
                noise = generator(device, effort.seed, "membership", draw)
                total += float(method.loss(net, batch, matched.phase, noise).loss_B.double().mean())
        found.append(-total / effort.draws)
        advance()
    values = np.array(found)
    if not np.isfinite(values).all():
        raise DataError(f"phase {matched.phase}: the bundle's loss is not finite on these subjects")
    return values


def _only(batch: Batch, kept_M: Tensor) -> Batch:
    kept = kept_M.reshape(1, -1, *[1] * (batch.images_BMHW.ndim - 2))
    return replace(
        batch,
        images_BMHW=torch.where(kept, batch.images_BMHW, 0.0),
        exists_BM=batch.exists_BM & kept_M,
        shown_BM=batch.shown_BM & kept_M,
    )
