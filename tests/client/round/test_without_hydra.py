"""A site reads what Hydra made of a run, and never loads it: in a process of its own, its doors and one round."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from shared.data.volumes import Grid
from shared.plan.settings import Choice, RunSettings
from shared.plan.training import PhaseTraining

pytestmark = pytest.mark.slow  # left out of `make fast`

ROUND = """
import json, sys
from pathlib import Path

import client.app, client.cli.cli
from client.cli.options import sampler_of
from client.round import work
from client.site.site import find_site
from shared.base.records import RoundPlan
from shared.plan.settings import RunSettings

config, cohort, state = sys.argv[1:]
settings, site = RunSettings.parse(config), find_site({"site": "north", "cohort": cohort, "state": state})
assert work.take_inventory(site, "run", config, settings.schema).subjects
weights = settings.build_net(settings.build_method()).state_dict()
plan = RoundPlan(run="run", phase="translate", round=0, config=config, schema=settings.schema, weights=weights)
assert work.do_round(site, plan).delta
assert sampler_of("ddim").steps == 50
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules} & {"hydra", "omegaconf"})))
"""


def test_a_sites_doors_and_a_round_load_neither_hydra_nor_omegaconf(world: Path, tmp_path: Path) -> None:
    settings = RunSettings(
        method=Choice(name="amm_diff", options={"modalities": ["T1", "T2"], "size": "tiny", "pretext": False}),
        training={"translate": PhaseTraining(rounds=1, steps=2, batch=16, lr=0.01)},
        grid=Grid(height=16, width=16),
        seed=0,
        keep_local=(),
        min_cell=5,
        min_holders=3,
    )
    (tmp_path / "site.toml").write_text("[policy]\nmin_holders = 1\nmin_subjects = 1\nmin_samples = 1\n")
    words = (settings.text(), str(world / "sites" / "north"), str(tmp_path))
    done = subprocess.run([sys.executable, "-c", ROUND, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
