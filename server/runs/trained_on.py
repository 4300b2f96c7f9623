"""Ranges for a bundle from the coordinator's own subjects: `world/coordinator`, or the cohort that it names at export.

Not from the sites: the lowest and highest of a cohort are values of single subjects.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from server.runs import runs
from shared.base.errors import ConfigError, DataError
from shared.data.bids import find_subjects
from shared.data.preparation import load
from shared.model.model import read_model
from shared.model.ranges import measure, ranges_of

RANGES = "ranges.json"  # of the run that comes with Lacuna, whose world does not


def ranges_for(folder: Path, cohort: Path | None) -> dict[str, Any] | None:
    """The ranges of a finished run's modalities, on its grid; None where the coordinator has no subjects of its own."""
    if cohort is None and (folder / RANGES).exists():
        return dict(json.loads((folder / RANGES).read_text(encoding="utf-8")))
    own = Path(str(runs.read_config(folder).world)) / "coordinator"
    chosen = cohort or own
    if cohort is None and not own.is_dir():
        return None
    model = read_model(folder / "final")
    cases = []
    for sources in find_subjects(chosen):
        held = {m: path for m, path in sources.files.items() if m in model.modalities}
        try:
            if held:
                cases.append(measure(load(replace(sources, files=held, lesion=None), model.grid, lambda *_: None)))
        except DataError:
            continue  # a subject that can't be used tells nothing
    ranges = ranges_of(cases, f"the coordinator's {len(cases)} subjects")
    if ranges is None and cohort is not None:
        raise ConfigError(f"--ranges {cohort}: {len(cases)} usable subjects; 2 or more make a range")
    return ranges
