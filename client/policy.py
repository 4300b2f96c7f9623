"""Does this plan fit what the site allows and what it can do? Else PlanRefused, with the rule that both sides see."""

from collections.abc import Mapping

from client.site import Site
from shared.config import RunSettings
from shared.errors import PlanRefused
from shared.methods import Method
from shared.vocabulary import Modality


def check_schema(site: Site, settings: RunSettings, schema: str) -> None:
    """What the coordinator hashed must be what this site's installed code makes of the same settings."""
    if settings.schema != schema:
        raise PlanRefused(f"{site.name}: schema {schema[:12]} differs from this site's {settings.schema[:12]}")


def is_private(site: Site, settings: RunSettings) -> bool:
    """Does the site train this run privately? A run without privacy, at a site that requires it, is PlanRefused."""
    mode = settings.privacy.mode
    if mode == "off" and site.epsilon is not None:
        raise PlanRefused(
            f"{site.name}: its policy asks for differential privacy (epsilon {site.epsilon:g} in all), and the plan "
            "has none: privacy.mode=off; `privacy=mixed` lets it train privately beside others"
        )
    return mode == "on" or (mode == "mixed" and site.epsilon is not None)


def why_not(site: Site, method: Method, patterns: Mapping[tuple[Modality, ...], int], phase: str) -> str | None:
    """The reason why this site takes no part, or None; `patterns` are its training subjects' modalities."""
    if not patterns:
        return "holds none of the method's modalities"
    lacking = {pattern: method.lacks(pattern, phase) for pattern in patterns}
    subjects = sum(n for pattern, n in patterns.items() if lacking[pattern] is None)
    if not subjects:
        commonest = max(patterns, key=lambda pattern: (patterns[pattern], pattern))
        return f"no subject can train {phase}: lacks {lacking[commonest]}"
    if subjects < site.min_subjects:
        return f"has fewer training subjects than its policy asks for ({site.min_subjects})"
    return None
