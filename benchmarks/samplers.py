"""All posterior samplers on one prior, in one run: evaluations, seconds, fidelity and distribution, paired over slices.

    python benchmarks/samplers.py runs/prior                       every preset; on two cores mps_paper takes its time
    python benchmarks/samplers.py runs/prior --without mps_paper --slices 8
    python benchmarks/samplers.py --time-only --size paper --device cuda

The goal: at most 15 evaluations, within 0.2 dB of PSNR and 10 % of the patch sliced-Wasserstein distance of the paper's
150-step MDS, where two or more modalities are observed. Harder tasks are shown beside it.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path

import torch

from server.evaluation.tasks import Held, Outcome, Scan, Task, floors, lead, pick, run, sampled
from server.evaluation.ways import find_cohorts
from server.runs import runs
from shared.data.volumes import Grid
from shared.diffusion.samplers import Sampler
from shared.model.evaluation import RIDGE
from shared.model.evaluation import floors as pooled_floors
from shared.model.model import Model, read_model
from shared.plan.config import load
from shared.plan.settings import load_sampler
from shared.plan.training import find_device

YARDSTICK = "mds_paper"
MOST_STEPS, MOST_DB, MOST_SW = 15, 0.2, 0.1


def presets() -> dict[str, Sampler]:
    """The four of configs/sampler, and the same in fewer steps."""
    found = {name: load_sampler(name) for name in ("mps_paper", "mds_paper", "mds_fast", "told", "mean")}
    found["mps, 100"] = dataclasses.replace(found["mps_paper"], steps=100, zeta=4.0)  # zeta must grow as steps shrink
    for name, fewer in (("mds_paper", (50, 20)), ("mds_fast", (10, 5)), ("told", (10, 5))):
        for steps in fewer:
            found[f"{name}, {steps}"] = dataclasses.replace(found[name], steps=steps)
    found["told, mean of 8"] = dataclasses.replace(found["told"], samples=8)
    return found


def tasks(model: Model) -> tuple[Task, ...]:
    """Many modalities observed, one observed, and raw data beside one."""
    names = model.modalities
    missing = "CT" if "CT" in names else names[-1]
    rest = tuple(m for m in names if m != missing)
    wanted = "FLAIR" if "FLAIR" in names else rest[-1]
    aid = next(m for m in rest if m != wanted)
    return (
        Task(group="A: all others clean", target=missing, clean=rest),
        Task(group="B: one clean", target=missing, clean=rest[:1]),
        Task(group="C: raw data and one clean", target=wanted, clean=(aid,), raw=(wanted,)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="folder of a finished run of method any2all")
    parser.add_argument("--slices", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--without", action="append", default=[], help="a preset to leave out")
    parser.add_argument("--only", action="append", default=[], help="a preset to take; the others are left out")
    parser.add_argument("--task", action="append", default=[], help="A, B or C; default all")
    parser.add_argument("--time-only", action="store_true", help="random weights: seconds and memory, no scores")
    parser.add_argument("--size", default="paper", help="with --time-only")
    parser.add_argument("--out", type=Path, help="the numbers as JSON")
    options = parser.parse_args()
    device = find_device(options.device)
    chosen = {
        name: sampler
        for name, sampler in presets().items()
        if name not in options.without and (not options.only or name in options.only)
    }
    if options.time_only:
        _time(options.size, chosen, options.slices, device)
        return
    folder: Path = options.run
    config, model = runs.read_config(folder), read_model(folder / "final")
    held = pick(list(find_cohorts(config, "heldout").values()), model.modalities, options.slices, options.seed)
    regressions = pooled_floors(list(find_cohorts(config, "sites").values()), model.modalities, (RIDGE,))
    scan = Scan()
    wanted = [task for task in tasks(model) if not options.task or task.group[0] in options.task]
    lines = []
    for task in wanted:
        print(f"\n{task.group}: {task.target} from {task.name}", flush=True)
        print(f"{'sampler':<20}{'NFE':>6}{'s/slice':>9}{'PSNR':>8}{'SSIM':>8}{'SW x1000':>10}   against {YARDSTICK}")
        yardstick: Outcome | None = None
        ways = floors(held, model.modalities, scan, regressions, seed=options.seed)
        for name, way in ways.items():
            for outcome in run({name: way}, [task], held, model.modalities):
                lines.append(_line(outcome, 0, None))
        order = sorted(chosen, key=lambda name: name != YARDSTICK)
        for name in order:
            counter = _Counter(model.net)
            way = sampled(model, chosen[name], held, scan, seed=options.seed, device=device)
            for outcome in run({name: way}, [task], held, model.modalities):
                lines.append(_line(outcome, counter.calls, yardstick))
                yardstick = outcome if name == YARDSTICK else yardstick
            counter.end()
    if options.out:
        options.out.write_text(json.dumps(lines, indent=1) + "\n")


def _line(outcome: Outcome, calls: int, yardstick: Outcome | None) -> dict[str, object]:
    psnr, ssim, sw = (outcome.mean(metric) for metric in ("psnr", "ssim", "wasserstein"))
    text = f"{outcome.way:<20}{calls:>6}{outcome.seconds:>9.3f}{psnr:>8.2f}{ssim:>8.3f}{1000 * sw:>10.1f}"
    found: dict[str, object] = {
        "task": outcome.task.group,
        "sampler": outcome.way,
        "nfe": calls,
        "seconds_per_slice": outcome.seconds,
        "psnr": psnr,
        "ssim": ssim,
        "wasserstein": sw,
    }
    if yardstick is not None:
        over, ratio = lead(outcome, yardstick, "psnr"), sw / yardstick.mean("wasserstein")
        reached = calls <= MOST_STEPS and over.mean >= -MOST_DB and ratio <= 1 + MOST_SW
        text += f"   {over.mean:+.2f} dB [{over.low:+.2f}, {over.high:+.2f}], SW x {ratio:.2f}{', goal' * reached}"
        found |= {"against": [over.mean, over.low, over.high], "wasserstein_ratio": ratio, "goal": reached}
    print(text, flush=True)
    return found


class _Counter:
    """Evaluations of the network for one slice (all slices go through it together)."""

    def __init__(self, net: torch.nn.Module) -> None:
        self.calls = 0
        self._hook = net.register_forward_hook(self._count)

    def _count(self, *_: object) -> None:
        self.calls += 1

    def end(self) -> None:
        self._hook.remove()


def _time(size: str, chosen: dict[str, Sampler], slices: int, device: torch.device) -> None:
    """What an evaluation costs at a size, with random weights: a few steps of each kind, told for the whole chain."""
    config = load(["method=any2all", f"size={size}"])
    method, grid = config.build_method(), config.grid
    net = method.build(0).to(device).eval().requires_grad_(False)
    model = Model(name="any2all", method=method, net=net, grid=grid, sampler=Sampler(), record={})
    held = _blank(slices, len(method.modalities), grid)
    millions = sum(p.numel() for p in net.parameters()) / 1e6
    print(f"size={size}, {slices} slices of {grid.name}, {millions:.1f} M weights, {device}")
    print(f"{'sampler':<20}{'steps':>6}{'ms/step/slice':>15}{'s/slice in all':>16}{'peak MB':>10}")
    for name, sampler in chosen.items():
        few = dataclasses.replace(sampler, steps=min(sampler.steps, 5), samples=1)
        way = sampled(model, few, held, Scan(), seed=0, device=device)
        task = tasks(model)[0]
        way(task)  # once before: kernels are chosen
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        started = time.monotonic()
        way(task)
        each = (time.monotonic() - started) / few.steps / slices
        peak = torch.cuda.max_memory_allocated() / 1e6 if device.type == "cuda" else float("nan")
        whole = each * sampler.steps * sampler.samples
        print(f"{name:<20}{sampler.steps:>6}{1000 * each:>15.2f}{whole:>16.2f}{peak:>10.0f}", flush=True)


def _blank(count: int, modalities: int, grid: Grid) -> Held:
    images = torch.rand(count, modalities, grid.height, grid.width, generator=torch.Generator().manual_seed(0))
    judged = torch.tensor([[[1.0, 0.0]] * modalities] * count)
    brain = torch.ones(count, grid.height, grid.width, dtype=torch.bool)
    return Held(images_BMHW=images, brain_BHW=brain, judged_BM2=judged)


if __name__ == "__main__":
    main()
