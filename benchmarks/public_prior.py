"""The model that comes with Lacuna (`tuning.start=public`), from nothing: made heads, training, half precision.

    python benchmarks/public_prior.py OUT --anatomy ../shared/data/labels      some 40 minutes; a stopped one goes on
    python benchmarks/public_prior.py OUT --into shared/model/public           and put it where the package has it

The label maps are SynthSeg's (Apache-2.0); without them nilearn's one brain is bent. Same seed and machine, same bits.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from safetensors.torch import load_file

from server.runs.trained_on import RANGES, ranges_for
from shared.base.checkpoint import save_tensors
from shared.base.files import make_folder, write_json
from shared.base.owners import digest

MOST = 5_000_000  # bytes
RUN = "public"


def main(
    out: Annotated[Path, typer.Argument(help="Folder of the world and the run.")],
    anatomy: Annotated[Path | None, typer.Option(help="Folder of FreeSurfer-style label maps.")] = None,
    into: Annotated[Path | None, typer.Option(help="Folder for the finished model. Default: OUT/public.")] = None,
    subjects: int = 160,
    apart: Annotated[tuple[int, int], typer.Option(help="More subjects: the coordinator's, held out.")] = (8, 12),
    size: str = "small",
    voxels: int = 64,
    seed: int = 7,
    override: Annotated[list[str] | None, typer.Option(help="KEY=VALUE for `lacuna pretrain`; repeat it.")] = None,
) -> None:
    """Make the world, train on it, and write what the package ships."""
    maps = [] if anatomy is None else ["--anatomy", str(anatomy)]
    world = [
        "--family",
        "everyone",
        "--sites",
        "1",
        "--subjects",
        str(subjects),
        "--missing",
        "none",
        "--size",
        str(voxels),
    ]
    more = ["--coordinator", str(apart[0]), "--heldout", str(apart[1])]
    _lacuna("phantom", str(out / "world"), *world, *more, "--seed", str(seed), *maps)
    runs = out / "runs"
    if not (runs / RUN / "final" / "model.json").exists():
        begun = [f"resume={RUN}"] if (runs / RUN / "config.json").exists() else [f"run={RUN}"]
        what = ["experiment=public_prior", f"size={size}", f"world={out / 'world'}", f"runs={runs}", f"seed={seed}"]
        _lacuna("pretrain", *what, *begun, *(override or []))
    ship(runs / RUN, into or out / "public", card=_card(out / "world"))


def ship(run: Path, into: Path, *, card: dict[str, Any]) -> None:
    """A finished run's folder, without what is of this machine, its weights in half precision."""
    config = json.loads((run / "config.json").read_text())
    model = json.loads((run / "final" / "model.json").read_text())
    halves = {name: _half(value) for name, value in load_file(run / "final" / "weights.safetensors").items()}
    model["weights"] = digest(
        {name: value.float() if value.is_floating_point() else value for name, value in halves.items()}
    )
    model["card"] = card
    config |= {"world": None, "runs": "runs", "run": RUN, "device": "auto"}
    config["tracking"]["uri"] = "none"
    make_folder(into / "final")
    write_json(into / "config.json", config, sort_keys=True)
    write_json(into / RANGES, ranges_for(run, None), sort_keys=True)
    write_json(into / "final" / "model.json", model, sort_keys=True)
    save_tensors(into / "final" / "weights.safetensors", halves)
    size = sum(path.stat().st_size for path in into.rglob("*") if path.is_file())
    print(f"{into}: {size / 1e6:.2f} MB")
    if size > MOST:
        raise SystemExit(f"{into}: {size} bytes; must be {MOST} or less")


def _half(value: torch.Tensor) -> torch.Tensor:
    return value.half() if value.is_floating_point() else value


def _card(world: Path) -> dict[str, Any]:
    options = json.loads((world / "world.json").read_text())["options"]
    told = {key: options[key] for key in ("family", "subjects", "size", "fov_mm", "seed")}
    maps = "SynthSeg's label maps (Apache-2.0)" if options["anatomy"] else "MNI152 2009, as in nilearn (BSD)"
    return {"trained_on": "made heads alone; no image of a person", "anatomy": maps, "world": told}


def _lacuna(*words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "server.cli", *words], check=False)
    if done.returncode:  # it has said why
        raise SystemExit(done.returncode)


if __name__ == "__main__":
    typer.run(main)
