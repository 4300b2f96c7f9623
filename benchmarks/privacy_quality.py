"""What privacy costs in quality: epsilon x start x noise multiplicity, federated AMM-Diff on the glioma phantom.

    python benchmarks/privacy_quality.py --out /tmp/quality

makes two worlds of phantoms (the hospitals', and a public one with other brains and scanners), pretrains a prior on the
public one, trains every cell of the table as a federation, scores all on held-out subjects, and writes table.csv,
summary.json and curve.png. Started again it goes on where it was stopped. Every cell has the same local steps; a cell
without privacy (inf) sees as many subjects and draws in a step as a private one does on average.
"""

import argparse
import csv
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
EPSILONS = (math.inf, 8.0, 3.0, 1.0)
STARTS = ("scratch", "pretrained")
DRAWS = (1, 4)
SAME = ("tracking=none", "method.anchor=none", "method.pretext=false", "validation.every=0")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=lambda text: Path(text).resolve(), required=True)
    parser.add_argument("--size", default="small", help="of the method: tiny | small")
    parser.add_argument("--subjects", type=int, default=68, help="training subjects at each of three sites")
    parser.add_argument("--heldout", type=int, default=4, help="test subjects of each site")
    parser.add_argument("--edge", type=int, default=64, help="voxels along an edge of the phantoms")
    parser.add_argument("--public", type=int, default=60, help="subjects of the public world")
    parser.add_argument("--prior-rounds", type=int, default=30, help="of 40 steps of 16 slices")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=10, help="local steps in a round")
    parser.add_argument("--rate", type=float, default=0.1, help="chance of each subject in a step")
    parser.add_argument("--clip", type=float, default=0.1)
    parser.add_argument("--lr-scratch", type=float, default=2e-3)
    parser.add_argument("--lr-pretrained", type=float, default=1e-4)
    parser.add_argument(
        "--lora", type=int, default=0, help="of the pretrained cells: train additions of this rank alone"
    )
    parser.add_argument("--epsilon", type=float, action="append", help="only these; repeat it (inf is without privacy)")
    parser.add_argument("--start", action="append", choices=STARTS)
    parser.add_argument("--draws", type=int, action="append")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="cells at once, a thread each")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    make_worlds(options)
    make_prior(options)
    cells = [
        (epsilon, start, draws, seed)
        for draws in options.draws or DRAWS
        for start in options.start or STARTS
        for epsilon in options.epsilon or EPSILONS
        for seed in range(options.seeds)
    ]
    with ThreadPoolExecutor(options.jobs) as pool:
        for done in pool.map(lambda cell: train(options, *cell), cells):
            print(f"trained {done}", flush=True)
    report(options, cells)


def make_worlds(options: argparse.Namespace) -> None:
    edge = ["--family", "glioma", "--size", str(options.edge)]
    hospitals = ["--sites", "3", "--subjects", str(options.subjects), "--heldout", str(options.heldout)]
    lacuna("phantom", str(options.out / "world"), *edge, *hospitals, "--coordinator", "0", "--seed", "0")
    public = ["--sites", "2", "--subjects", str(options.public // 2), "--heldout", "0", "--missing", "none"]
    lacuna("phantom", str(options.out / "public"), *edge, *public, "--coordinator", "0", "--seed", "1000")


def make_prior(options: argparse.Namespace) -> None:
    rounds = [f"training.translate.rounds={options.prior_rounds}", "training.translate.steps=40"]
    more = [f"world={options.out / 'public'}", "training.translate.lr=0.002"]
    start(options, "prior", "pretrain", [*rounds, *more])


def name_of(epsilon: float, start: str, draws: int, seed: int) -> str:
    return f"{start}-eps{epsilon:g}-k{draws}-s{seed}"


def train(options: argparse.Namespace, epsilon: float, begin: str, draws: int, seed: int) -> str:
    name = name_of(epsilon, begin, draws, seed)
    lr = options.lr_scratch if begin == "scratch" else options.lr_pretrained
    expected = max(1, round(options.rate * options.subjects))
    overrides = [
        f"world={options.out / 'world'}",
        f"seed={seed}",
        f"training.translate.rounds={options.rounds}",
        f"training.translate.steps={options.steps}",
        f"training.translate.lr={lr}",
        f"training.translate.batch={expected * draws}",
        f"tuning.start={'none' if begin == 'scratch' else 'prior'}",
        f"tuning.lora={options.lora if begin == 'pretrained' else 0}",
    ]
    if math.isfinite(epsilon):
        overrides += [
            "privacy=dp",
            f"privacy.epsilon={epsilon}",
            f"privacy.rate={options.rate}",
            f"privacy.clip={options.clip}",
            f"privacy.draws={draws}",
        ]
    start(options, name, "simulate", overrides)
    return name


def start(options: argparse.Namespace, name: str, verb: str, overrides: Sequence[str]) -> None:
    runs = options.out / "runs"
    if (runs / name / "final" / "model.json").exists():
        return
    begun = (runs / name / "config.json").exists()
    lacuna(verb, f"{'resume' if begun else 'run'}={name}", f"runs={runs}", f"size={options.size}", *SAME, *overrides)


def lacuna(*arguments: str) -> None:
    """As anyone would type it."""
    command = [sys.executable, "-m", "server.cli", *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if ended.returncode:
        sys.exit(f"lacuna {' '.join(arguments)}\n{ended.stderr[-2000:]}")


# --- scores ---------------------------------------------------------------------------------------------------------


def score(options: argparse.Namespace, run: str, every: int = 3) -> list[float]:
    """PSNR in the brain of each held-out subject: each modality from all the others, over slices and targets."""
    from shared.base.randomness import generator
    from shared.data.cohort import prepare
    from shared.data.slices import Slices
    from shared.diffusion.samplers import Sampler
    from shared.model.model import read_model

    model = read_model(options.out / "runs" / run / "final")
    found = []
    for bids in sorted((options.out / "world" / "heldout").iterdir()):
        slices = Slices(prepare(bids, model.grid).cohort, model.modalities, split=None)
        for i, subject in enumerate(slices.subjects):
            stack = slices.volume(i)
            chosen = list(subject.brain_slices)[::every]
            images_BMHW = stack.images_MDHW[:, chosen].transpose(0, 1)
            brain_BHW = stack.brain_DHW[chosen]
            scores = []
            for m in range(len(model.modalities)):
                shown_BM = torch.ones(len(chosen), len(model.modalities), dtype=torch.bool)
                shown_BM[:, m] = False
                noise = [generator("cpu", "score", z) for z in chosen]
                made = model.method.synthesize(model.net, images_BMHW, shown_BM, Sampler(kind="mean"), noise)
                error = (made[:, m] - images_BMHW[:, m]).square()[brain_BHW].mean().item()
                scores.append(-10 * math.log10(error))
            found.append(sum(scores) / len(scores))
    return found


def report(options: argparse.Namespace, cells: Sequence[tuple[float, str, int, int]]) -> None:
    scores = {cell: np.array(score(options, name_of(*cell))) for cell in cells}
    zero_shot = np.array(score(options, "prior"))
    rows = []
    for cell in cells:
        epsilon, begin, draws, seed = cell
        best = scores.get((math.inf, begin, draws, seed))
        fall = scores[cell] - best if best is not None else np.full(len(zero_shot), np.nan)
        spent = _spent(options, name_of(*cell))
        half = 1.96 * fall.std(ddof=1) / math.sqrt(len(fall))
        rows.append(
            {
                "start": begin,
                "draws": draws,
                "epsilon": epsilon,
                "spent": spent,
                "seed": seed,
                "psnr": round(float(scores[cell].mean()), 3),
                "against_inf": round(float(fall.mean()), 3),
                "half_interval": round(float(half), 3),
                "over_prior": round(float((scores[cell] - zero_shot).mean()), 3),
            }
        )
    with (options.out / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    how = {key: str(value) for key, value in vars(options).items()}
    summary = {"prior": round(float(zero_shot.mean()), 3), "subjects": len(zero_shot), "how": how, "cells": rows}
    (options.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    draw(options.out / "curve.png", rows, float(zero_shot.mean()))
    print(f"prior alone {zero_shot.mean():.2f} dB; {len(zero_shot)} held-out subjects")
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))


def _spent(options: argparse.Namespace, run: str) -> float | None:
    """The most that a site's ledger says."""
    ledgers = options.out / "runs" / run / "ledgers.json"
    if not ledgers.exists():
        return None
    return round(max(float(site["epsilon"]) for site in json.loads(ledgers.read_text()).values()), 3)


def draw(path: Path, rows: Sequence[dict[str, object]], prior: float) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    order = [1.0, 3.0, 8.0, math.inf]
    for begin, colour in (("scratch", "#b4541f"), ("pretrained", "#1f5fb4")):
        for draws, style in ((1, "--"), (4, "-")):
            points = [
                (order.index(float(str(row["epsilon"]))), float(str(row["psnr"])))
                for row in rows
                if row["start"] == begin and row["draws"] == draws and row["seed"] == 0
            ]
            if points:
                axes.plot(
                    *zip(*sorted(points), strict=True), style, color=colour, marker="o", label=f"{begin}, K = {draws}"
                )
    axes.axhline(prior, color="#777777", linewidth=1, linestyle=":", label="the public prior as it is")
    axes.set_xticks(range(4), ["1", "3", "8", "no privacy"])
    axes.set_xlabel("epsilon at delta 1e-5, per site")
    axes.set_ylabel("PSNR in the brain, dB")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
