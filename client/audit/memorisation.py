"""`lacuna-site audit memorisation`: does a bundle remember the subjects that it was trained on?

Two looks, at a site, on its own subjects: near-duplicates (client/audit/duplicates.py) and the loss of training
subjects against that of held-out ones (client/audit/membership.py). Neither can show that nothing was memorised.

    memorisation.json    all figures; no names, and still it stays at the site
    pairs.csv, pairs.png the nearest pairs, with names and images: patient data
    summary.json         what the site may hand to the coordinator: a few figures to two digits, and its limits
"""

import dataclasses
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from client.audit.duplicates import Duplicates, find_duplicates
from client.audit.inspection import Effort, Inspection
from client.audit.membership import Membership, attack, match
from shared.base import pictures
from shared.base.display.progress import Progress, unwatched
from shared.base.files import write_json, write_text
from shared.base.options import plain
from shared.data.cohort import Cohort
from shared.diffusion.samplers import Sampler
from shared.model.bundle import WEIGHTS, Bundle
from shared.trust.audits import Limits, Summary

STAYS = "Made of this site's subjects: stays at the site. Only summary.json is meant to be handed over."


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    summary: Summary
    remarks: tuple[str, ...]
    verdict: str


def audit_memorisation(
    bundle: Bundle,
    training: Cohort,
    heldout: Cohort,
    out: Path,
    *,
    limits: Limits,
    effort: Effort,
    sampler: Sampler | None = None,
    device: str = "auto",
    progress: Progress = unwatched,
) -> Audit:
    """Write figures, pictures and a summary. Of one cohort given twice: its split train against its others."""
    sampler = dataclasses.replace(sampler or bundle.model.sampler, samples=1)  # a mean over samples would hide a copy
    inspection = Inspection.of(
        bundle.model, training, heldout, sampler=sampler, effort=effort, device=device, progress=progress
    )
    matched = match(inspection)
    shown = inspection.some(inspection.heldout)
    every = len(inspection.trained.subjects) + len(inspection.heldout.subjects)
    advance = inspection.counter(len(shown) + every + 2 * len(matched))
    duplicates = find_duplicates(inspection, shown, advance)
    membership = attack(inspection, matched, advance)
    summary = _summary(bundle, duplicates, membership, limits)
    done = Audit(summary=summary, remarks=(*duplicates.remarks, *membership.remarks), verdict=_verdict(summary))
    figures = {
        "about": STAYS,
        "verdict": done.verdict,
        "warnings": list(summary.warnings),
        "remarks": list(done.remarks),
        "bundle": bundle.digest,
        "duplicates": duplicates.figures,
        "membership": membership.figures,
        "limits": plain(limits),
        "how": {"sampler": plain(sampler), **plain(effort)},
    }
    write_json(out / "memorisation.json", figures, allow_nan=False)
    write_json(out / "summary.json", plain(summary), allow_nan=False)
    write_text(out / "pairs.csv", duplicates.listing)
    pictures.save_png(duplicates.sheet, out / "pairs.png")
    return done


def _summary(bundle: Bundle, duplicates: Duplicates, membership: Membership, limits: Limits) -> Summary:
    return Summary(
        weights=bundle.record["files"][WEIGHTS]["sha256"],
        duplicates=round(duplicates.rate, 2),
        control=round(duplicates.control, 2),
        auc=round(membership.auc.value, 2),
        auc_low=round(membership.auc.low, 2),
        auc_high=round(membership.auc.high, 2),
        hits=None if membership.hits is None else round(membership.hits, 2),
        limits=limits,
        lacuna=version("lacuna"),
    )


def _verdict(summary: Summary) -> str:
    if summary.warnings:
        return "signs of memorisation: " + "; ".join(summary.warnings)
    return (
        "no memorisation found by these two tests, which is no proof that there is none: near-duplicates "
        f"{summary.duplicates:.0%}, of unseen subjects {summary.control:.0%} (limit of the difference "
        f"{summary.limits.duplicates:.0%}); membership AUC {summary.auc:.2f} "
        f"[{summary.auc_low:.2f}, {summary.auc_high:.2f}] (limit of its lower end {summary.limits.auc:.2f})"
    )
