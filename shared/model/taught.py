"""What a model was taught together: the modalities that some training subject has side by side, and what follows.

A released model says which patterns its training subjects had (provenance.patterns). A target that no subject ever had
beside a shown modality can't have been learnt from it: such a task is refused with that reason. A task whose modalities
were all seen in pairs, but never all together, rests on the network's extrapolation, and is remarked upon
(docs/methods/any2all.md, "What was never together": pairs determine a Gaussian's joint, yet no network's).
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from shared.base.errors import DataError
from shared.base.vocabulary import Modality
from shared.model.model import Model


def check_taught(
    model: Model, shown: Sequence[Modality], wanted: Sequence[Modality], *, asked: bool
) -> tuple[tuple[Modality, ...], tuple[str, ...]]:
    """The targets that can be made, and why others can't. A target that was asked for by name is refused instead."""
    reasons = {target: why for target in wanted if (why := why_untaught(model, shown, target)) is not None}
    if reasons and (asked or len(reasons) == len(wanted)):
        raise DataError(next(iter(reasons.values())))
    kept = tuple(target for target in wanted if target not in reasons)
    return kept, tuple(f"not made: {why}" for why in reasons.values())


def why_untaught(model: Model, shown: Sequence[Modality], target: Modality) -> str | None:
    """The pair that no training subject had, or None; a model of an older version does not say, and is believed."""
    patterns = model.patterns
    if patterns is None:
        return None
    apart = [m for m in shown if not any({m, target} <= pattern for pattern in patterns)]
    if not apart:
        return None
    rest = [m for m in shown if m not in apart]
    remedy = f"leave {', '.join(apart)} out" if rest else f"{target} needs a subject with another modality"
    return f"target {target}: no training subject had {target} beside {' or '.join(apart)}; {remedy}"


def untaught_remarks(model: Model, shown: Sequence[Modality], wanted: Sequence[Modality]) -> tuple[str, ...]:
    """Said, not refused: all pairs were seen, but never the whole."""
    patterns = model.patterns
    whole = {*shown, *wanted}
    if patterns is None or any(whole <= pattern for pattern in patterns):
        return ()
    names = ", ".join(m for m in model.modalities if m in whole)
    return (f"no training subject had all of {names} together: what is made rests on smaller sets",)


class Pass(NamedTuple):
    """One joint sample: what takes no part in it, and what is taken from it."""

    silent: tuple[int, ...]
    rows: tuple[int, ...]


def passes(model: Model, known: Collection[int]) -> list[Pass]:
    """How to make what is not known, each time among modalities that some training subject had together.

    A prior that never saw all of them at once meets that joint badly (docs/log.md), so the others are silent meanwhile.
    What no pattern holds beside all that is known is made from everything at once, as well as it goes.
    """
    every = set(range(len(model.modalities)))
    patterns = [
        {model.modalities.index(m) for m in p if m in model.modalities} for p in model.patterns or [model.modalities]
    ]
    fitting = [pattern for pattern in patterns if pattern >= set(known)]
    found: list[Pass] = []
    left = every - set(known)
    while fitting:
        best = max(fitting, key=lambda pattern: (len(pattern & left), sorted(every - pattern)))
        if found and not best & left:
            break
        rows = best & left if found else best
        found.append(Pass(silent=tuple(sorted(every - best)), rows=tuple(sorted(rows))))
        left -= best
    if left or not found:
        found.append(Pass(silent=(), rows=tuple(sorted(left if found else every))))
    return found
