"""`lacuna generate`: complete sets of modalities out of nothing, as a look at what a prior has learnt.

OUT/sets.npy            count x M x H x W, in [0, 1]
    contact-sheet.png   a row for each set
    generation.json     by which model, sampler and seed
"""

from pathlib import Path

import numpy as np
import torch

from server.evaluation.ways import finished
from shared.base import pictures
from shared.base.display.progress import Progress, unwatched
from shared.base.errors import DataError
from shared.base.files import write_json, writing
from shared.base.options import plain
from shared.base.randomness import generator
from shared.diffusion.operators import none
from shared.diffusion.samplers import Sampler
from shared.methods import TAKE_RAW, Restores
from shared.model.fill import AT_ONCE
from shared.model.model import read_model
from shared.plan.training import find_device

MOST_DRAWN = 24  # rows of the contact sheet
WARNING = "Generated images. They show nobody."


def generate(
    folder: Path, out: Path, *, count: int, sampler: Sampler, seed: int, device: str, progress: Progress = unwatched
) -> Path:
    """Unconditional samples of a finished run's model; set k depends on (seed, k) alone."""
    finished(folder)
    model, on = read_model(folder / "final"), find_device(device)
    if not isinstance(model.method, Restores):
        raise DataError(f"model {model.name}: makes images from images only; complete sets need {TAKE_RAW}")
    net, sets, size = model.net.to(on), [], AT_ONCE.get(on.type, 8)
    for start in range(0, count, size):
        numbers = range(start, min(start + size, count))
        like = torch.zeros(len(numbers), len(model.modalities), model.grid.height, model.grid.width, device=on)
        noise = [generator(on, seed, "generate", k) for k in numbers]
        nothing = [none()] * len(model.modalities)
        sets.append(model.method.restore(net, nothing, sampler, noise, like_BMHW=like).cpu())
        progress(numbers[-1] + 1, count)
    made_BMHW = torch.cat(sets).numpy()
    with writing(out / "sets.npy") as file:
        np.save(file, made_BMHW)
    rows = [list(stack_MHW) for stack_MHW in made_BMHW[:MOST_DRAWN]]
    sheet = pictures.mosaic(rows, [f"set {k}" for k in range(len(rows))], list(model.modalities), WARNING)
    pictures.save_png(sheet, out / "contact-sheet.png")
    how = {
        "run": folder.name,
        "modalities": list(model.modalities),
        "sampler": plain(sampler),
        "seed": seed,
        "count": count,
        "description": WARNING,
    }
    write_json(out / "generation.json", how)
    return out
