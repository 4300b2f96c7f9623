"""ACADiff on the dementia phantom, from nothing to its tables and figures, in one command.

    python benchmarks/chart.py OUT [--subjects 28] [--seed 5]

Three sites: site-a has no AV45, site-b no FDG, site-c everything but few subjects. Trained: ACADiff, each site alone,
and with the same frozen autoencoders ACADiff-emb (labels for text) and LDM by concatenation. Compared on held-out
subjects of all sites (six directions and three of two to one, against floors and each site alone, with and without the
chart), and by a classifier of AD against HC on completed sets. What is done already is not done again.
"""

import argparse
import os
from pathlib import Path

from server.cli.cli import app

HIDDEN = "FLAIR,T2S,CT"
CODERS = ("tuning.start=chart", "tuning.take=[autoencoders.*]", "tuning.skip=[autoencode]")
JUDGED = ("chart", "chart:scores", "emb", "ldm")
TOLD = ("chart", "chart:scores", "chart:diagnosis", "chart:images", "emb", "ldm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--subjects", type=int, default=28, help="of site-a and site-b; site-c has 10")
    parser.add_argument("--heldout", type=int, default=8, help="of each site")
    parser.add_argument("--edge", type=int, default=48, help="voxels along an edge of the phantoms")
    parser.add_argument("--clinic", type=int, default=44, help="of the classifier's study, from each of three scanners")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument(
        "--sampler",
        default="multistep",
        help="of the classifier's volumes, each one sample; images are scored by the mean, in one evaluation",
    )
    parser.add_argument("--classifier", default="", help="KEY=VALUE of task=diagnosis, such as 'rates=0.2 epochs=1'")
    parser.add_argument("overrides", nargs="*", help="of the runs, such as size=tiny")
    asked = parser.parse_intermixed_args()
    out: Path = asked.out.resolve()
    few = min(10, asked.subjects)
    out.mkdir(parents=True, exist_ok=True)
    os.chdir(out)
    lacuna(
        f"phantom world --family dementia --size {asked.edge} --subjects {asked.subjects} --subjects-at site-c={few}"
        f" --heldout {asked.heldout} --seed {asked.seed} --missing site-a={HIDDEN},AV45 --missing site-b={HIDDEN},FDG"
        f" --missing site-c={HIDDEN}"
    )
    lacuna(
        f"phantom clinic --family dementia --size {asked.edge} --subjects {asked.clinic} --heldout 0 --coordinator 0"
        f" --seed {asked.seed + 72}" + "".join(f" --missing site-{site}={HIDDEN}" for site in "abc")
    )
    # a path that site-c alone can teach (FDG with AV45) would not be released with two holders
    usual = ["world=world", "size=small", "federation.min_holders=1", *asked.overrides]
    train("chart", "method=aca_diff", "federation.alone=true", *usual)
    train("emb", "method=aca_diff", "method.text=label_embedding", *CODERS, *usual)
    train("ldm", "method=ldm", *CODERS, *usual)
    lacuna(f"evaluate {' '.join(TOLD)} task=images out=images --sampler mean")
    lacuna(
        f"evaluate {' '.join(JUDGED)} task=diagnosis study=clinic/sites strangers=true out=diagnosis"
        f" --sampler {asked.sampler} {asked.classifier}"
    )


def train(name: str, *overrides: str) -> None:
    known = Path("runs", name, "config.json").exists()
    lacuna(f"simulate {' '.join(overrides)} {'resume' if known else 'run'}={name}")


def lacuna(words: str) -> None:
    print("lacuna", words, flush=True)
    app(words.split(), standalone_mode=False)


if __name__ == "__main__":
    main()
