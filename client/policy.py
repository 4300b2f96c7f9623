"""Does this plan fit what the site allows and what it can do? Else PlanRefused, with the rule that both sides see."""

from shared.config import RunSettings
from shared.data.cohort import Cohort
from shared.errors import PlanRefused
from shared.methods import Method
from shared.vocabulary import Modality

from client.site import Site


def check_schema(site: Site, settings: RunSettings, schema: str) -> None:
    """What the coordinator hashed must be what this site's installed code makes of the same settings."""
    if settings.schema != schema:
        raise PlanRefused(f"{site.name}: schema {schema[:12]} differs from this site's {settings.schema[:12]}")


def why_not(site: Site, method: Method, cohort: Cohort, phase: str) -> str | None:
    """The reason why this site takes no part in a phase, or None."""
    patterns = cohort.patterns("train")
    held = known(patterns, method)
    subjects = sum(n for pattern, n in patterns.items() if set(pattern) & set(method.modalities))
    if not held:
        return f"holds none of the modalities {', '.join(method.modalities)}"
    if subjects < site.min_subjects:
        return f"has fewer training subjects than its policy asks for ({site.min_subjects})"
    return None


def known(patterns: dict[tuple[Modality, ...], int], method: Method) -> set[Modality]:
    return {modality for pattern in patterns for modality in pattern} & set(method.modalities)
