"""A run carried out: the rounds over any Flower grid, shown, written down, and its outcome told truthfully."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flwr.serverapp import Grid

from server.journal import chronicle, tracking, views
from server.rounds.rounds import Rounds
from server.rounds.validation import Validator
from server.runs.runs import read_config, title
from shared.methods.threads import threads

FOLDER_VARIABLE = "LACUNA_RUN_FOLDER"  # in a Ray simulation, where Flower passes no run config


def serve(grid: Grid, folder: Path, *, quiet: bool = False, flower_run: int = 1) -> Path:
    """Carry out the run in `folder` over the grid; gives the released model's folder."""
    config = read_config(folder)
    with (
        chronicle.working(folder, flower_run),
        views.live(title(folder, config), quiet=quiet) as shown,
        chronicle.recorded(shown, folder) as view,
    ):
        tracker = tracking.open(
            config.tracking.uri,
            experiment=config.tracking.experiment,
            model=f"lacuna-{config.method.name}",
            folder=folder,
            config=json.loads(config.text()),
            note=view.note,
        )
        with _ended(tracker), threads(1):
            validator = None if quiet else Validator.find(config, folder)
            rounds = Rounds(grid, config, folder=folder, view=view, tracker=tracker, validator=validator)
            return rounds.run()


@contextmanager
def _ended(tracker: tracking.Tracker) -> Iterator[None]:
    """MLflow learns how the run ended, whichever way it did."""
    try:
        yield
    except KeyboardInterrupt:
        tracker.close("KILLED")
        raise
    except BaseException:
        tracker.close("FAILED")
        raise
    tracker.close("FINISHED")
