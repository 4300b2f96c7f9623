"""`lacuna resume RUN --without SITE`: another run, that begins where the site had no part in it yet, and has none.

RUN-without-SITE has RUN's settings and seed, its rounds until then, and its last checkpoint before; where the site was
in the first round that is nothing, and the run ends in the same bits as one in which the site never was. (Where the
coordinator sees sums alone it has another seed: sites let no update be seen in two sums.) It has a name of its own
since sites answer a round of a run once, and a person's yes is for one run. RUN stays as it is.
"""

import dataclasses
import json
import shutil
from pathlib import Path

from server.journal import facts, withdrawn
from server.runs.runs import read_config
from shared.base import checkpoint
from shared.base.errors import ConfigError
from shared.base.files import new_folder, write_json, write_text
from shared.base.names import check_run, check_site
from shared.base.vocabulary import SiteName


def without(run: Path, site: SiteName) -> Path:
    """The folder of that run; made where it is not there yet, whole or not at all."""
    folder = run.parent / check_run(f"{run.name}-without-{check_site(site, '--without')}", "run")
    if (folder / "config.json").exists():
        return folder
    config, rounds = read_config(run), facts.read(run / "rounds.jsonl")
    for one in withdrawn.affected(run):
        if one.through is not None and one.site == site:
            raise ConfigError(
                f"--without {site}: {run.name} starts from run {one.through}, which has its data: "
                f"`lacuna resume {one.through} --without {site}`, and then a new run that starts from that"
            )
    first = withdrawn.first_part(rounds, site)
    if first is None:
        had = ", ".join(sorted({name for one in rounds for name in one.sites})) or "nobody's"
        raise ConfigError(f"--without {site}: {run.name} has nothing of it; it has updates of {had}")
    before = checkpoint.last_until(run / "checkpoints", 2 * first + 1)  # see Place.save
    kept = 0 if before is None else int(before.name) // 2
    out = tuple(sorted({*config.federation.without, site}))
    federation = dataclasses.replace(config.federation, without=out)
    seed = config.seed + config.federation.secure  # where sums alone are seen, no update is seen in two of them
    with new_folder(folder) as made:
        overrides = json.loads((run / "overrides.json").read_text())
        theirs = [one for one in overrides if not one.startswith(("run=", "resume=", "federation.without="))]
        said = ",".join(f"'{name}'" for name in out)  # a name may look like a number
        mine = [f"run='{folder.name}'", f"federation.without=[{said}]"]
        if seed != config.seed:
            mine.append(f"seed={seed}")
        write_json(made / "overrides.json", [*theirs, *mine])
        again = dataclasses.replace(config, run=folder.name, federation=federation, seed=seed)
        write_text(made / "config.json", again.text())
        for done in rounds[:kept]:
            facts.append(made / "rounds.jsonl", done)
        if before is not None:
            shutil.copytree(before, made / "checkpoints" / before.name)
        for name, mark in withdrawn.read(run).items():
            if name != site:
                withdrawn.mark(made, name, mark)
    return folder


def where(folder: Path) -> str:
    """`after fit round 3`"""
    done = facts.read(folder / "rounds.jsonl")
    return f"after {done[-1].phase} round {done[-1].round + 1}" if done else "from its beginning"
