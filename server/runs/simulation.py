"""`lacuna simulate`: the whole federation on one machine, with the same ServerApp and ClientApp as deployed."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp

from server.federation.lead import make_up
from server.runs import runs
from server.runs.local_grid import LocalGrid
from server.runs.serve import FOLDER_VARIABLE
from shared.base import doors
from shared.base.display import terminal
from shared.base.errors import ConfigError, RunFailed
from shared.base.files import write_text
from shared.data.cohort import prepare
from shared.plan.config import Config

SITES_VARIABLE = "LACUNA_SITES"


def simulate(config: Config, folder: Path) -> Path:
    """Prepare the sites' cohorts, run the federation, and after it each site alone if asked."""
    cohorts = find_cohorts(config)
    prepare_cohorts(config, cohorts)
    if not runs.finished(folder):
        _run(config, folder, _node_configs(config, folder, cohorts))
    if config.federation.alone:
        for site in cohorts:
            _run_alone(config, folder / "alone" / site, site, cohorts[site])
    return folder / "final"


def client_app() -> ClientApp:
    """What a site runs; loaded by its name, as Flower does, since `server` never imports `client`."""
    app: ClientApp = doors.load(doors.CLIENT_APP)
    return app


def find_cohorts(config: Config) -> dict[str, Path]:
    """Each site's BIDS folder under world/sites, by name."""
    if config.world is None:
        raise ConfigError("world=null: name the folder that holds sites/<name>/, such as one made by `lacuna phantom`")
    root = Path(config.world) / "sites"
    found = {p.name: p for p in sorted(root.iterdir()) if p.is_dir()} if root.is_dir() else {}
    if not found:
        raise ConfigError(f"world={config.world}: no folder in {root}")
    named, out = config.federation.named, config.federation.without
    wanted = tuple(site for site in found if site not in out) if named is None else named
    for site in wanted:
        if site not in found:
            raise ConfigError(f"federation.sites={site}: not in {root}, which has {', '.join(found)}")
    return {site: found[site] for site in wanted}


def prepare_cohorts(config: Config, cohorts: Mapping[str, Path]) -> None:
    """What `lacuna-site prepare` does at each site; done again only where something changed."""
    for site, bids in {**cohorts, **_extra(config)}.items():
        with terminal.bar(f"preparing {site}") as advance:
            prepare(bids, config.grid, progress=advance)


def _extra(config: Config) -> dict[str, Path]:
    coordinator = Path(str(config.world)) / "coordinator"
    return {"the coordinator's cohort": coordinator} if coordinator.is_dir() else {}


def _node_configs(config: Config, folder: Path, cohorts: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """What each site's SuperNode would be started with; a simulated site's disk is a folder in the run, or kept.

    The run is signed, and the sites have keys and a federation to believe, as deployed ones do.
    """
    disks = folder / "sites" if config.federation.disks is None else Path(config.federation.disks)
    for site in config.privacy.sites:
        if site not in cohorts:
            raise ConfigError(f"privacy.sites.{site}: no such site; there are {', '.join(cohorts)}")
    states = {site: (disks / site).resolve() for site in cohorts}
    make_up(folder, config.name_of(folder), config.for_sites().text(), states, disks)
    return {site: node_config(config, site, [bids], states[site]) for site, bids in cohorts.items()}


def node_config(config: Config, site: str, cohorts: Sequence[Path], state: Path) -> dict[str, Any]:
    """A simulated site, whose policy is the run's own word: its world is small, made up, and on one disk.

    A site that is to train privately gets its budget here, as a hospital makes its own.
    """
    federation, privacy = config.federation, config.privacy
    node = {
        "site": site,
        "cohort": os.pathsep.join(str(bids.resolve()) for bids in cohorts),
        "state": str(state),
        "device": config.device,
        "max-rounds": 10**9,
        "min-samples": 1,
        "min-subjects": federation.min_subjects,
        "min-cell": federation.min_cell,
        "min-holders": federation.min_holders,
        **({"epsilon": str(privacy.sites[site])} if site in privacy.sites else {}),
    }
    if privacy.mode == "on" or (privacy.mode == "mixed" and site in privacy.sites):
        epsilon = privacy.sites.get(site, privacy.epsilon)
        doors.load(doors.ENROL)(node, config.for_sites().text(), epsilon=epsilon)
    return node


def _run(config: Config, folder: Path, node_configs: Mapping[str, Mapping[str, Any]]) -> None:
    if config.federation.engine == "ray":
        _run_ray(folder, node_configs)
    else:
        grid = LocalGrid(client_app(), node_configs)
        context = Context(
            run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={"folder": str(folder.resolve())}
        )
        doors.load(doors.SERVER_APP)(grid, context)


def _run_ray(folder: Path, node_configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Flower's own simulation; its actors read the list of sites from a file, since Flower only numbers them."""
    os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    from flwr.simulation import run_simulation

    listing = folder / "sites.json"
    write_text(listing, json.dumps(list(node_configs.values())))
    os.environ[SITES_VARIABLE] = str(listing.resolve())
    os.environ[FOLDER_VARIABLE] = str(folder.resolve())
    run_simulation(
        server_app=doors.load(doors.SERVER_APP),
        client_app=client_app(),
        num_supernodes=len(node_configs),
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
    if not runs.finished(folder):
        raise RunFailed(f"{folder.name}: Flower's simulation ended before the run did; see its log above")


def _run_alone(config: Config, folder: Path, site: str, bids: Path) -> None:
    if runs.finished(folder):
        return
    alone = runs.untracked(runs.for_one_site(config, site, targets=()))
    write_text(folder / "config.json", alone.text())
    _run(alone, folder, _node_configs(alone, folder, {site: bids}))
