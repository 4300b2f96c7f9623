"""`lacuna evaluate`: what the federation bought its sites, on held-out subjects that nobody trained on.

The global model, each site trained alone (runs/RUN/alone), and two floors: the training mean and the patch-ridge
regression, of methods that see whole volumes the voxelwise one; both fitted on all sites' training cohorts together
(sums that a federation can pool exactly as well).
"""

import json
from pathlib import Path

from server.runs import runs
from shared.base.display.progress import Progress
from shared.base.errors import ConfigError, DataError
from shared.base.options import plain
from shared.base.vocabulary import SiteName
from shared.data.cohort import Cohort, cache_folder, prepare
from shared.diffusion.samplers import Sampler
from shared.methods.baselines.voxelwise import floors_3d
from shared.model.evaluation import Bought, evaluate, filler, floors, never_acquired
from shared.model.model import ReadsChart, read_model
from shared.model.scorecard import write_scorecard
from shared.plan.config import Config
from shared.plan.training import find_device

FEDERATED = "federated"


def compare(
    folder: Path,
    *,
    sampler: Sampler | None,
    every: int,
    seed: int,
    device: str,
    progress: Progress | None = None,
) -> list[Bought]:
    """Scores of a finished run into its evaluation/ folder; gives the lines of the table."""
    config = runs.read_config(folder)
    if not runs.finished(folder):
        raise DataError(f"{folder.name}: the run is not finished; go on with it by resume={folder.name}")
    trained, heldout = find_cohorts(config, "sites"), find_cohorts(config, "heldout")
    if not heldout:
        raise DataError(f"{config.world}/heldout: no held-out subjects to score on")
    model = read_model(folder / "final")
    whole = isinstance(model.method, ReadsChart)
    if every > 1 and model.method.slab > 1:
        raise ConfigError(f"--every {every}: {model.name} sees {model.method.slab} adjacent slices; it needs them all")
    sampler, on = sampler or model.sampler, find_device(device)
    alone = {
        site: filler(read_model(folder / "alone" / site / "final"), sampler=sampler, seed=seed, device=on)
        for site in trained
        if runs.finished(folder / "alone" / site)
    }
    made = {FEDERATED: filler(model, sampler=sampler, seed=seed, device=on)}
    cohorts = list(trained.values())
    made |= floors_3d(cohorts, model.modalities, model.method.slab) if whole else floors(cohorts, model.modalities)
    scores = evaluate(
        made,
        heldout,
        model.modalities,
        targets=model.method.targets,
        alone=alone,
        every=every,
        whole=whole,
        progress=progress,
    )
    never = never_acquired(trained, model.modalities)
    how = {"run": folder.name, "sampler": plain(sampler), "seed": seed, "every": every}
    return write_scorecard(scores, folder / "evaluation", model.modalities, never, how=how)


def headline_figures(folder: Path) -> dict[str, float]:
    """What the bundle says of itself; empty before an evaluation."""
    summary = folder / "evaluation" / "summary.json"
    if not summary.exists():
        return {}
    found = json.loads(summary.read_text(encoding="utf-8")).get("headlines", {})
    return {str(name): float(value) for name, value in found.items()}


def find_cohorts(config: Config, part: str) -> dict[SiteName, Cohort]:
    """A world's cohorts of one part (sites, heldout), prepared for the run's grid."""
    root = Path(str(config.world)) / part
    wanted = None if config.federation.sites == (runs.POOLED,) else config.federation.sites
    cohorts = {}
    for bids in sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else []:
        if wanted is None or bids.name in wanted:
            prepare(bids, config.grid)
            cohorts[bids.name] = Cohort.open(cache_folder(bids, config.grid))
    return cohorts
