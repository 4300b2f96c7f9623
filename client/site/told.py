"""What the coordinator is told of an error: words that were written to be told, and in them no path and no subject.

All of it stands in the site's log. What is not known to be harmless stays there.
"""

import re

from shared.base.errors import BudgetSpent, ConfigError, DataError, LacunaError, PlanRefused, RunFailed

_MEANT = (PlanRefused, BudgetSpent, RunFailed)
_NAMES = re.compile(r"[/\\]|\bsub-", re.IGNORECASE)  # part of a path, or a subject


def told(site: str, error: Exception) -> LacunaError:
    """Give the error that leaves in this one's place; a setting that can't be is a plan refused."""
    said = PlanRefused(f"{site}: {error}") if isinstance(error, ConfigError) else error
    if isinstance(said, _MEANT) and not _NAMES.search(str(said)):
        return said
    if isinstance(said, _MEANT):
        return type(said)(f"{site}: {type(error).__name__}, whose words name a path or a subject: see its log")
    if isinstance(said, DataError):
        return DataError(f"{site}: its data can't be used, see its log")
    return RunFailed(f"{site}: {type(error).__name__} in local work, see its log")
