"""What can go wrong, and the exit code each ends with.

LacunaError
├── ConfigError      2   a key, its value and the rule it breaks
├── DataError        3   a cohort or file that can't be used
├── PlanRefused      4   the site's policy does not allow the plan
│   └── PlanWaits    4   it waits for a person at the site to allow it
├── BudgetSpent      4   the site's privacy budget does not allow the plan
├── RunFailed        5   the run can't go on; its checkpoint is whole
└── UpdateRejected   -   one site's update is refused; the round survives it, counts it, tracks it

A message names the key or the site, the value and the rule; never a subject.
"""


class LacunaError(Exception):
    exit_code = 1


class ConfigError(LacunaError):
    exit_code = 2


class DataError(LacunaError):
    exit_code = 3


class PlanRefused(LacunaError):
    exit_code = 4


class PlanWaits(PlanRefused):
    pass


class BudgetSpent(LacunaError):
    exit_code = 4


class RunFailed(LacunaError):
    exit_code = 5


class UpdateRejected(LacunaError):
    exit_code = 5
