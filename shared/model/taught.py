"""What a model was taught together: the modalities that some training subject has side by side, and what follows.

A released model says which patterns its training subjects had (provenance.patterns). A target that no subject ever had
beside a shown modality can't have been learnt from it: such a task is refused with that reason. A task whose modalities
were all seen in pairs, but never all together, rests on the network's extrapolation, and is remarked upon
(docs/methods/any2all.md, "What was never together": pairs determine a Gaussian's joint, yet no network's).
"""

from collections.abc import Sequence

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
