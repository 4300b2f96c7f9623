"""The weights that a site was sent last in a run, kept so that the next plan need only say what has changed.

    STATE/held/RUN.safetensors   of the last few runs

A plan names the weights by their digest, and those that its step is from. Which a site keeps, it says in its reply. One
that is asked the same round again has the weights already; one that lost them is sent all of them next time.
"""

from pathlib import Path

from client.site.site import Site
from shared.base import checkpoint
from shared.base.disk.tensors import Tensors, let_go, lying_in
from shared.base.errors import DataError, RunFailed
from shared.base.files import remove
from shared.base.owners import digest
from shared.base.records import RoundPlan
from shared.base.vocabulary import Weights
from shared.plan.packed import stepped

RUNS = 4  # of which something is kept: a site that takes part in more at a time is sent all weights


def weights_of(site: Site, plan: RoundPlan) -> Weights:
    """What a round starts from, which is read from the disk where the plan wants it kept."""
    if not plan.digest:
        return plan.weights
    file = site.state / "held" / f"{plan.run}.safetensors"
    before, held = _read(file)
    if held != plan.digest:
        if plan.base and held != plan.base:
            raise RunFailed(
                f"{site.name}: the plan is a step from weights {plan.base[:12]}, and this site holds "
                f"{held[:12] or 'none'} of run {plan.run}: it needs all of them"
            )
        after = stepped(before, plan.weights) if plan.base else plan.weights
        found = digest(after)
        if found != plan.digest:
            raise RunFailed(f"{site.name}: the plan's weights come to {found[:12]}, and it says {plan.digest[:12]}")
        checkpoint.save_tensors(file, after, durable=False)  # lost with the power, all are sent
        keep_newest(file.parent, RUNS)
    let_go(plan.weights)
    return lying_in(file)


def keep_newest(folder: Path, most: int) -> None:
    for old in sorted(folder.glob("[!.]*"), key=lambda path: path.stat().st_mtime_ns)[:-most]:
        remove(old)


def _read(file: Path) -> tuple[Tensors, str]:
    """What is kept, and its digest; nothing, where it is not there whole."""
    try:
        found = lying_in(file)
        return found, digest(found)
    except (OSError, DataError):
        return Tensors({}), ""
