"""A phase of sums at a site: over enough people in every cell, none of whom counts for much more than the others.

What too few people have is left out before anything is read, and what too few are in after it is summed.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from statistics import median

from torch import Tensor, nn

from client.site.site import Site
from client.site.summed import People, Person, remember, too_near
from shared.base.errors import PlanRefused
from shared.base.files import sha256
from shared.base.records import Batch, Phase
from shared.base.vocabulary import Modality
from shared.data.cohort import Cohort
from shared.data.slices import Pool
from shared.methods import Method
from shared.plan.sums import SHARE, Company, to_integers
from shared.plan.training import pool as total

log = logging.getLogger("lacuna.site")
MOST = 2.0  # times the slices of the median person: what more somebody has counts for that


def people_of(
    cohorts: Sequence[Cohort], method: Method, phase: str, *, least: int, hidden: Collection[Modality] = ()
) -> dict[str, Person]:
    """Everybody whom a phase would read here, with the modalities that enough people have."""
    held: dict[str, set[Modality]] = {}
    images: dict[str, list[str]] = {}
    for cohort in cohorts:
        for subject in cohort.subjects:
            mine = set(subject.modalities) & set(method.modalities) - set(hidden)
            if subject.split == "train" and mine and method.lacks(mine, phase) is None:
                held.setdefault(subject.name, set()).update(mine)
                images.setdefault(subject.name, []).append(cohort.image_hash(subject))
    enough = {m for m in method.modalities if sum(m in mine for mine in held.values()) >= least}
    return {
        name: Person(modalities=tuple(sorted(mine & enough)), images=sha256("".join(images[name]).encode()))
        for name, mine in sorted(held.items())
        if mine & enough
    }


def too_few(site: Site, people: People) -> str | None:
    least = site.policy.min_subjects
    return f"no modality is held by as many people as its policy asks for ({least})" if len(people) < least else None


def why_not(site: Site, people: People) -> str | None:
    """Say why sums over these people don't leave this site; None if they do."""
    return too_few(site, people) or too_near(site.state, people, site.policy.min_subjects)


def sum_people(
    site: Site,
    run: str,
    method: Method,
    net: nn.Module,
    pool: Pool,
    phase: Phase,
    people: People,
    *,
    batches: Callable[[int], Iterable[Batch]],
) -> dict[str, Tensor]:
    """The sums of a phase, in integers; `batches` reads a person of the pool.

    A site whose policy lets one person be a cell has no limit on what that person adds either.
    """
    refused = why_not(site, people)
    if refused is not None:
        raise PlanRefused(f"{site.name}: takes no part in {phase.name}: {refused}")
    least = site.policy.min_subjects
    most = (MOST if least > 1 else float("inf")) * median(pool.size(unit) for unit in range(pool.units))
    company, totals = Company(phase), dict[str, Tensor]()
    for unit in range(pool.units):
        weight = min(1.0, most / pool.size(unit))
        own = {name: weight * value for name, value in total(method, net, batches(unit), phase.name).items()}
        company.meet(own)
        totals = {name: totals[name] + value if name in totals else value for name, value in own.items()}
    kept, left_out = company.keep(totals, least, share=SHARE)
    if left_out:
        log.info("site %s: %s: %d cells that too few people are in are left out", site.name, phase.name, left_out)
    refused = remember(site.state, run, people, least)
    if refused is not None:
        raise PlanRefused(f"{site.name}: takes no part in {phase.name}: {refused}")
    return to_integers(kept)
