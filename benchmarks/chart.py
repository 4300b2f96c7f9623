"""ACADiff on the dementia phantom, from nothing to its tables and figures, in one command.

    python benchmarks/chart.py OUT [--subjects 28] [--seed 5]

Three sites: site-a has no AV45, site-b no FDG, site-c everything but few subjects. Trained: ACADiff, each site alone,
and with the same frozen autoencoders ACADiff-emb (labels for text) and LDM by concatenation. Compared on held-out
subjects of all sites (six directions and three of two to one, against floors and each site alone, with and without the
chart), and by a classifier of AD against HC on completed sets. What is done already is not done again.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HIDDEN = "FLAIR,T2S,CT"
CODERS = ("tuning.start=chart", "tuning.take=[autoencoders.*,anchor.*]", "tuning.skip=[template,relate,autoencode]")
JUDGED = ("chart", "chart:scores", "emb", "ldm")
TOLD = ("chart", "chart:scores", "chart:diagnosis", "chart:images", "emb", "ldm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--subjects", type=int, default=28, help="of site-a and site-b; site-c has 10")
    parser.add_argument("--clinic", type=int, default=44, help="of the classifier's study, from each of three scanners")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument(
        "--sampler",
        default="multistep",
        help="of the classifier's volumes, each one sample; images are scored by the mean, in one evaluation",
    )
    parser.add_argument("overrides", nargs="*", help="of the runs, such as size=tiny")
    asked = parser.parse_args()
    out: Path = asked.out.resolve()
    world, clinic = out / "world", out / "clinic"
    lacuna(
        "phantom",
        str(world),
        "--family",
        "dementia",
        "--size",
        "48",
        "--subjects",
        str(asked.subjects),
        "--subjects-at",
        "site-c=10",
        "--heldout",
        "8",
        "--seed",
        str(asked.seed),
        "--missing",
        f"site-a={HIDDEN},AV45",
        "--missing",
        f"site-b={HIDDEN},FDG",
        "--missing",
        f"site-c={HIDDEN}",
    )
    lacuna(
        "phantom",
        str(clinic),
        "--family",
        "dementia",
        "--size",
        "48",
        "--subjects",
        str(asked.clinic),
        "--heldout",
        "0",
        "--coordinator",
        "0",
        "--seed",
        str(asked.seed + 72),
        *(word for site in "abc" for word in ("--missing", f"site-{site}={HIDDEN}")),
    )
    # a path that site-c alone can teach (FDG with AV45) would not be released with two holders
    usual = [f"world={world}", f"runs={out / 'runs'}", "size=small", "federation.min_holders=1", *asked.overrides]
    train(out, "chart", "method=aca_diff", "federation.alone=true", *usual)
    train(out, "emb", "method=aca_diff", "method.text=label_embedding", *CODERS, *usual)
    train(out, "ldm", "method=ldm", *CODERS, *usual)
    of = ["--runs", str(out / "runs"), "--sampler"]
    lacuna("evaluate", *TOLD, "task=images", f"out={out / 'images'}", *of, "mean")
    lacuna(
        "evaluate",
        *JUDGED,
        "task=diagnosis",
        f"study={clinic / 'sites'}",
        "strangers=true",
        f"out={out / 'diagnosis'}",
        *of,
        asked.sampler,
    )


def train(out: Path, name: str, *overrides: str) -> None:
    folder = out / "runs" / name
    known = (folder / "config.json").exists()
    lacuna("simulate", *overrides, f"resume={name}" if known else f"run={name}")


def lacuna(*words: str) -> None:
    print("lacuna", *words, flush=True)
    command: Sequence[str] = [shutil.which("lacuna") or sys.exit("lacuna is not on the path"), *words]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
