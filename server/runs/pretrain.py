"""`lacuna pretrain`: the same method on pooled cohorts in one place, by the same `shared/plan/training.py`.

What a federation is measured against, and how a public prior is made. It is a federation of one site that holds all
cohorts: the same rounds, budget, checkpoints and release. Under `torchrun` every process carries out the same rounds on
its own part of each batch and its own card; gradients are averaged, so all processes stay equal bit for bit, and the
first one writes.
"""

import dataclasses
import os
import shutil
import tempfile
from pathlib import Path

import torch.distributed as dist

from server.federation.lead import make_up
from server.runs import runs
from server.runs.local_grid import LocalGrid
from server.runs.serve import serve
from server.runs.simulation import client_app, find_cohorts, node_config, prepare_cohorts
from shared.base.files import write_text
from shared.plan.config import Config


def pretrain(config: Config, folder: Path) -> Path:
    """All phases on the union of the world's cohorts; resumes from the last finished round."""
    started_here = _join_processes()
    try:
        first = not dist.is_initialized() or dist.get_rank() == 0
        cohorts = find_cohorts(config)
        if first:
            prepare_cohorts(config, cohorts)
        _wait_for_all()
        with tempfile.TemporaryDirectory() as scratch:
            mine = folder if first else _copy_of(folder, Path(scratch))
            state, own = (mine / "sites" / runs.POOLED).resolve(), runs.read_config(mine)
            make_up(mine, own.name_of(mine), own.for_sites().text(), {runs.POOLED: state}, state.parent)
            node = node_config(
                dataclasses.replace(own, device=config.device), runs.POOLED, list(cohorts.values()), state
            )
            serve(LocalGrid(client_app(), {runs.POOLED: node}), mine, quiet=not first)
            _wait_for_all()
    finally:
        if started_here:
            dist.destroy_process_group()
    return folder / "final"


def one_site(config: Config) -> Config:
    return runs.for_one_site(config, runs.POOLED, engine="local")


def _copy_of(folder: Path, scratch: Path) -> Path:
    """The other processes start from the same checkpoint and keep theirs to themselves."""
    mine = scratch / folder.name
    mine.mkdir()
    write_text(mine / "config.json", runs.untracked(runs.read_config(folder)).text())
    if (folder / "checkpoints").is_dir():
        shutil.copytree(folder / "checkpoints", mine / "checkpoints")
    return mine


def _join_processes() -> bool:
    """True where torchrun started us: one process per card, or several on the CPU."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or dist.is_initialized():
        return False
    import torch

    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return True


def _wait_for_all() -> None:
    if dist.is_initialized():
        dist.barrier()
