"""What may be said of a private training, and what may not: from frozen facts to sentences.

Which, and why: docs/methods/privacy.md, "What may be said".

The facts stand in a model's provenance as `privacy`; bundle, report, tracker and sidecars all read them from there and
say the same. A number is rounded up, never down. Nothing is said that the facts do not hold.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared.base.errors import ConfigError, DataError
from shared.base.options import build, require
from shared.base.records import Spent
from shared.base.vocabulary import SiteName
from shared.trust.privacy import Privacy, PrivacyPlan

PHANTOM = "phantom"  # Prior.data of a prior that no patient's image went into
FALSE_ALARMS = 0.05  # at which the best attack is stated
NOT_STATED = "not stated by this bundle"  # of an older version


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What one private site said of its budget with its last update, and the mechanism that spent it in this run."""

    site: SiteName
    epsilon: float  # over all that this cohort has ever been asked, in all runs
    budget: float
    delta: float
    noise: float  # sigma of a training step, in units of clip
    rate: float  # q: chance of each subject to be drawn in a step
    clip: float  # C: norm of one subject's gradient
    draws: int
    slices: int
    steps: int  # T: training steps of this run
    size: int  # a public round figure of the site's subjects
    ledger: str
    sequence: int
    head: str
    others: int  # updates that left this cohort without privacy
    sums: int = 0  # phases of sums of this run, each over the whole cohort
    sums_noise: float = 0.0
    sums_clip: float = 0.0

    def __post_init__(self) -> None:
        for key in ("epsilon", "budget", "noise", "clip"):
            value = getattr(self, key)
            require(math.isfinite(value) and value >= 0, key, value, "0 or more and finite")
        require(0 < self.delta < 1, "delta", self.delta, "in (0, 1)")
        require(0 < self.rate <= 1, "rate", self.rate, "in (0, 1]")
        for key in ("steps", "sequence", "others", "sums"):
            require(getattr(self, key) >= 0, key, getattr(self, key), "0 or more")

    @staticmethod
    def of(
        site: SiteName, spent: Spent, mechanism: Privacy | PrivacyPlan, *, steps: int, sums: int = 0
    ) -> "Certificate":
        if mechanism.noise is None:
            raise ConfigError("privacy.noise=null: must be a number by now, made from privacy.epsilon")
        return Certificate(
            site=site,
            epsilon=spent.epsilon,
            budget=spent.budget,
            delta=spent.delta,
            noise=mechanism.noise,
            rate=mechanism.rate,
            clip=mechanism.clip,
            draws=mechanism.draws,
            slices=mechanism.slices,
            steps=steps,
            size=spent.size,
            ledger=spent.ledger,
            sequence=spent.sequence,
            head=spent.head,
            others=spent.others,
            sums=sums,
            sums_noise=mechanism.sums_noise if sums else 0.0,
            sums_clip=mechanism.sums_clip if sums else 0.0,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """The model that a run started from, and what that says of itself."""

    run: str
    data: str | None  # PHANTOM, or words; None: it does not say
    weights: str  # their SHA-256
    privacy: str | None = None  # the `short` line of its own record, where it was trained privately


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyRecord:
    """`provenance.privacy`: all that touched the model, as far as privacy goes. Made plain by `options.plain`."""

    private: tuple[Certificate, ...] = ()
    not_private: tuple[SiteName, ...] = ()  # sites that sent an update without privacy
    prior: Prior | None = None  # None: the run started from random weights
    unit: str = "subject"
    adjacency: str = "add or remove one subject"
    sampling: str = "Poisson"
    accountant: str = "RDP gates, PRV reports"

    def __post_init__(self) -> None:
        names = [one.site for one in self.private]
        require(len(set(names)) == len(names), "private", names, "each site once")


def read(provenance: Mapping[str, Any]) -> PrivacyRecord:
    """The facts in a model's provenance; where there are none, the record of a run without privacy."""
    block = provenance.get("privacy")
    if block is None:
        if provenance.get("private"):
            raise DataError("provenance.private=true: needs provenance.privacy, which holds the numbers")
        return PrivacyRecord()
    if not isinstance(block, Mapping):
        raise DataError(f"provenance.privacy={str(block)[:40]!r}: must be a group of keys")
    try:
        return build(PrivacyRecord, block, "privacy")
    except ConfigError as error:
        raise DataError(f"provenance.{error}") from None


def privacy_of(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What a bundle says of it: `short`, `statement` and `not_claimed`."""
    record = read(provenance)
    return {"short": short(record), "statement": statement(record), "not_claimed": not_claimed()}


def short(record: PrivacyRecord) -> str:
    """One line for a table."""
    if not record.private:
        return "no differential privacy"
    worst = max(one.epsilon for one in record.private)
    delta = max(one.delta for one in record.private)
    besides = [f"{', '.join(record.not_private)} without"] if record.not_private else []
    others = sum(one.others for one in record.private)
    besides += [f"{_count(others, 'other update')} of its cohorts without"] if others else []
    if record.prior is not None and record.prior.data != PHANTOM:
        besides.append(f"from prior {record.prior.run}")
    sites = ", ".join(one.site for one in record.private)
    held = f"differential privacy per {record.unit} at {sites}: epsilon at most {_up(worst)}, delta {delta:g}"
    return "; ".join([held, *besides])


# --- what may be said -----------------------------------------------------------------------------------------------


def statement(record: PrivacyRecord) -> list[str]:
    """Sentences with all numbers that make them checkable, and with all else that touched the data."""
    if not record.private:
        return [
            "No differential privacy was used in this training: nothing bounds what the model may tell of a subject."
        ]
    return [
        _who(record),
        f"The unit is one {record.unit} with all of its images; neighbouring cohorts differ by: {record.adjacency}. "
        f"Each figure is for one site's cohort, over all that was ever asked of it, in all runs.",
        *(_site(one, record) for one in record.private),
        _odds(record.private),
        f"Epsilon is an upper bound, counted by these accountants: {record.accountant}.",
        "It holds given that the software of the site is what it says and that its staff, who see the images, are "
        "trusted; then for whoever sees the updates or the model, and whatever is done with them later.",
        *_besides(record),
    ]


def _who(record: PrivacyRecord) -> str:
    """Sites of both kinds are named as such: some of their updates are private, and the others are not."""
    sites = {one.site for one in record.private}
    private = [one.site for one in record.private if one.site not in record.not_private]
    mixed = [name for name in record.not_private if name in sites]
    without = [name for name in record.not_private if name not in sites]
    said = []
    if private:
        each = f", each site for its own {record.unit}s" if len(private) > 1 else f", for its own {record.unit}s"
        said.append(f"the updates of {', '.join(private)} are differentially private{each}")
    if mixed:
        said.append(
            f"updates of both kinds came from {', '.join(mixed)}, and the figures below are of the private ones"
        )
    if without:
        said.append(f"the updates of {', '.join(without)} are not private, and their {record.unit}s have no such bound")
    if not record.not_private:
        said.append("no other site sent any")
    text = "; ".join(said)
    return f"{text[0].upper()}{text[1:]}."


def _site(one: Certificate, record: PrivacyRecord) -> str:
    mechanism = (
        f"{_count(one.steps, 'step')} (T), each over {record.unit}s drawn by {record.sampling} sampling at rate "
        f"{one.rate:g} (q) from about {one.size}; gradients clipped per {record.unit} to {one.clip:g} (C); Gaussian "
        f"noise of {one.noise:g} x C (sigma); {_count(one.slices, 'slice')} of a drawn {record.unit}, "
        f"{_count(one.draws, 'draw')} of noise for each"
    )
    if one.sums:
        mechanism += (
            f"; and {_count(one.sums, 'sum')} over the whole cohort, each {record.unit}'s part clipped to "
            f"{one.sums_clip:g}, with noise of {one.sums_noise:g} x that"
        )
    return (
        f"{one.site}: ({_up(one.epsilon)}, {one.delta:g})-differential privacy (epsilon, delta), of a budget of "
        f"epsilon {one.budget:g}. In this run {mechanism}. Its ledger {one.ledger[:12]} stood at row {one.sequence}, "
        f"head {one.head[:12]}."
    )


def _odds(certificates: Sequence[Certificate]) -> str:
    """Say as odds what the figure of the site that spent the most comes to."""
    worst = max(certificates, key=lambda one: best_attack(one.epsilon, one.delta))
    found = best_attack(worst.epsilon, worst.delta)
    return (
        f"What that bounds: a test on these updates that wrongly accuses {_percent(FALSE_ALARMS)} of those who took no "
        f"part recognises at most {_percent(found)} of those who did, whatever else is known to it ({worst.site})."
    )


def _besides(record: PrivacyRecord) -> list[str]:
    """Say what else touched the data, or the model."""
    said = [
        f"{_count(one.others, 'update')} left the cohort of {one.site} without differential privacy, in this run or "
        "another; of those nothing is said here."
        for one in record.private
        if one.others
    ]
    clean = [one.site for one in record.private if not one.others]
    if clean:
        said.append(f"By its ledger no update left without differential privacy: {', '.join(clean)}.")
    prior = record.prior
    if prior is None:
        return [*said, "Training started from random weights."]
    began = f"Training started from the model of run {prior.run} (weights {prior.weights[:12]})"
    if prior.data == PHANTOM:
        return [*said, f"{began}, which says that it was trained on phantoms, without any patient's image."]
    if prior.privacy is not None:
        told = f"{began}, which says of itself: {prior.privacy}."
        return [
            *said,
            f"{told} Of a cohort named above that counts in its figure; for any other only the prior's own holds.",
        ]
    if prior.data is None:
        return [*said, f"{began}, which does not say what it was trained on: that is outside of all figures here."]
    return [*said, f"{began}, which says that it was trained on: {prior.data}. That is outside of all figures here."]


def best_attack(epsilon: float, delta: float, false_alarms: float = FALSE_ALARMS) -> float:
    """The most true positives that a test of membership can have, at that rate of false ones.

    By (epsilon, delta) alone: both errors of any test keep `one + e^epsilon other >= 1 - delta`, in either order.
    """
    straight = math.exp(min(epsilon, 700.0)) * false_alarms + delta
    turned = 1 - math.exp(-epsilon) * (1 - delta - false_alarms)
    return min(straight, turned, 1.0)


# --- what may not ---------------------------------------------------------------------------------------------------


def not_claimed() -> list[str]:
    """The same for every model: none of this follows from differential privacy, or from Lacuna."""
    return [
        "Not claimed: that the model, or what it makes, is anonymous.",
        "Not claimed: compliance with the GDPR, HIPAA or any other law; that is for people to judge.",
        "Not claimed: that nothing was memorised. Epsilon bounds how much; an audit can find it, and can't exclude it.",
        "Not claimed: a figure for a person whose images lie at several sites, or under several names at one; "
        "there the epsilons add up.",
        "Not claimed: that a hospital is protected as a whole. About how many subjects it has, which modalities, and "
        "when it took part count as public.",
        "Not claimed: anything for other work on the same data without differential privacy: runs, metrics, logs, "
        "evaluations and audits that left the site.",
        "Not claimed: the same figure for replacing one subject by another, which is another neighbourhood and is "
        "counted otherwise.",
        "Not claimed: protection against side channels, such as how long a round took, or a proof for floating-point "
        "numbers (Mironov 2012).",
        "Not claimed: protection from a site's own staff, or from software there that is not what it says.",
    ]


def _up(epsilon: float) -> str:
    """Round up to hundredths: what is said is never less than what was spent."""
    return f"{math.ceil(epsilon * 100 - 1e-9) / 100:g}"


def _percent(share: float) -> str:
    return f"{math.ceil(share * 1e4 - 1e-9) / 100:g} %"


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}" + ("" if n == 1 else "s")
