"""The privacy budgets of simulated sites, made by whoever sets the simulation up; a deployed site makes its own.

At a hospital it is `lacuna-site budget`, or epsilon in its policy (client/privacy/private_work.py): no plan makes one.
"""

from collections.abc import Mapping
from typing import Any

from client.privacy.budget import Budget
from client.privacy.budget_files import enrolled
from client.privacy.private_work import round_figure
from client.round.work import open_cohorts, present
from client.site.site import find_site
from shared.plan.settings import RunSettings


def enrol(node_config: Mapping[str, Any], config: str, *, epsilon: float) -> None:
    """Make a site's budget for a run's settings; nothing where it has one."""
    site = find_site(node_config)
    if enrolled(site.privacy):
        return
    settings = RunSettings.parse(config)
    subjects = sum(present(open_cohorts(site, settings), settings.build_method().modalities).values())
    size = round_figure(subjects) if site.policy.about is None else site.policy.about
    Budget.open(site.privacy, epsilon=epsilon, delta=settings.privacy.delta, size=size).close()
