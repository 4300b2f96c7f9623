"""Does a plan keep to the policy of this site? Else PlanRefused, with the rule that both see."""

from collections.abc import Mapping
from pathlib import Path

from client.site.site import Site
from shared.base.errors import DataError, PlanRefused
from shared.base.files import parse_canonical, read_bounded, sha256
from shared.base.options import plain
from shared.base.records import Phase
from shared.base.vocabulary import Modality
from shared.methods import Method
from shared.plan.settings import RunSettings
from shared.trust import manifest
from shared.trust.manifest import Manifest, Plane

KIT, AGREED = "federation/kit.json", "federation/federation.json"


def check_schema(site: Site, settings: RunSettings, schema: str) -> None:
    """Refuse a plan whose schema is not what this site's installed code makes of the same settings."""
    if settings.schema != schema:
        raise PlanRefused(f"{site.name}: schema {schema[:12]} differs from this site's {settings.schema[:12]}")


def check(site: Site, settings: RunSettings, method: Method) -> None:
    """Refuse a whole run that the policy does not allow."""
    policy, name = site.policy, settings.method.name
    _allow(site, "method", name, "methods", policy.methods)
    if policy.sizes is not None:
        _allow(site, "size", method.size, "sizes", policy.sizes)
    if policy.secure == "required" and not settings.secure:
        _refuse(site, "secure", False, "secure=required: the coordinator sees sums of sites alone (`privacy=secure`)")
    if settings.min_holders < policy.min_holders:
        _refuse(site, "min_holders", settings.min_holders, f"min_holders: at least {policy.min_holders}")
    rounds = sum(_rounds(settings, phase) for phase in settings.phases(method))
    if rounds > policy.max_rounds:
        _refuse(site, "rounds", rounds, f"max_rounds: at most {policy.max_rounds}, over all phases of a run")
    _check_manifest(site, settings, method)


def check_round(site: Site, settings: RunSettings, method: Method, phase: str, round: int) -> None:
    """Refuse a round that the run's own settings do not have, or of a phase that the policy does not allow."""
    phases = {one.name: one for one in settings.phases(method)}
    if phase not in phases:
        _refuse(site, "phase", phase[:80], f"the method: {', '.join(phases)}")
    refused = phase_refused(site, phase)
    if refused is not None:
        raise PlanRefused(f"{site.name}: {refused}")
    rounds = _rounds(settings, phases[phase])
    if not 0 <= round < rounds:
        _refuse(site, "round", round, f"the run's own settings: {phase} has the rounds 0 to {rounds - 1}")


def _rounds(settings: RunSettings, phase: Phase) -> int:
    return phase.rounds if phase.kind == "sums" else settings.training[phase.name].rounds


def check_samples(site: Site, settings: RunSettings, method: Method) -> None:
    """Refuse a run of which an update would be of a few slices; where noise is added, noise is the rule instead."""
    least = site.policy.min_samples
    for phase in settings.phases(method):
        if phase.kind != "sums" and (n := settings.training[phase.name].samples) < least:
            asked = settings.training[phase.name]
            of = f"{asked.steps} steps of {asked.batch} = {n} samples"
            _refuse(site, f"training.{phase.name}", of, f"min_samples: at least {least} behind an update")


def min_cell(site: Site, settings: RunSettings) -> int:
    """Below how many subjects a count does not leave: the site's rule, or a stricter one of the plan."""
    return max(site.policy.min_cell, settings.min_cell)


def phase_refused(site: Site, phase: str) -> str | None:
    phases = site.policy.phases
    if phases is None or phase in phases:
        return None
    return _says("phase", phase, f"phases: {', '.join(phases)}")


def is_private(site: Site, settings: RunSettings) -> bool:
    """Does the site train this run privately? A run without privacy, at a site that requires it, is PlanRefused."""
    mode, epsilon = settings.privacy.mode, site.policy.epsilon
    if mode == "off" and epsilon is not None:
        raise PlanRefused(
            f"{site.name}: its policy asks for differential privacy (epsilon {epsilon:g} in all), and the plan "
            "has none: privacy.mode=off; `privacy=mixed` lets it train privately beside others"
        )
    return mode == "on" or (mode == "mixed" and epsilon is not None)


def why_not(site: Site, method: Method, patterns: Mapping[tuple[Modality, ...], int], phase: str) -> str | None:
    """The reason why this site takes no part, or None; `patterns` are its training subjects' modalities."""
    refused = phase_refused(site, phase)
    if refused is not None:
        return refused
    if not patterns:
        return "holds none of the method's modalities"
    lacking = {pattern: method.lacks(pattern, phase) for pattern in patterns}
    subjects = sum(n for pattern, n in patterns.items() if lacking[pattern] is None)
    if not subjects:
        commonest = max(patterns, key=lambda pattern: (patterns[pattern], pattern))
        return f"no subject can train {phase}: lacks {lacking[commonest]}"
    if subjects < site.policy.min_subjects:
        return f"has fewer training subjects than its policy asks for ({site.policy.min_subjects})"
    return None


def installed_manifest(state: Path) -> Manifest | None:
    """What the installed kit says that the federation agreed on; None without a kit."""
    if not (state / KIT).exists():
        return None
    named = parse_canonical(read_bounded(state / KIT, "site"), KIT).get("manifest")
    content = read_bounded(state / AGREED, "site")
    if sha256(content) != named:
        raise DataError(f"{AGREED}: has not the hash that {KIT} gives; join the kit again")
    return manifest.parse(content, "the installed kit")


def _check_manifest(site: Site, settings: RunSettings, method: Method) -> None:
    """Hold a plan to the manifest: the installed kit's, which it must name, unless the policy says another or none."""
    rule, named = site.policy.manifest, settings.manifest
    if rule == "any":
        return
    agreed = installed_manifest(site.state)
    if rule == "installed" and agreed is None:
        _refuse(site, "manifest", named, "manifest=installed, and no kit is installed here")
    wanted = rule if rule not in (None, "installed") else None if agreed is None else agreed.digest
    if wanted is not None and named != wanted:
        _refuse(site, "manifest", named, f"manifest: {wanted}")
    if agreed is None or named != agreed.digest:
        return
    name, holders = settings.method.name, settings.min_holders
    others = [modality for modality in method.modalities if modality not in agreed.modalities]
    plane, planes = str(Plane(**plain(settings.grid))), "any" if agreed.grid is None else str(agreed.grid)
    for key, value, keeps, has in (
        ("method", name, name in agreed.methods, ", ".join(agreed.methods)),
        ("modalities", ", ".join(others), not others, ", ".join(agreed.modalities)),
        ("min_holders", holders, holders >= agreed.min_holders, f"{agreed.min_holders} or more"),
        ("grid", plane, planes in ("any", plane), planes),
    ):
        if not keeps:
            raise PlanRefused(f"{site.name}: plan.{key}={value}: the federation's manifest, which it names, has {has}")


def _allow(site: Site, key: str, value: str, rule: str, allowed: tuple[str, ...] | None) -> None:
    if allowed is not None and value not in allowed:
        _refuse(site, key, value, f"{rule}: {', '.join(allowed)}")


def _refuse(site: Site, key: str, value: object, rule: str) -> None:
    raise PlanRefused(f"{site.name}: {_says(key, value, rule)}")


def _says(key: str, value: object, rule: str) -> str:
    return f"plan.{key}={value}: this site's policy allows only {rule}"
