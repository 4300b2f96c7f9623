"""The MIP loss, forward and backward: the scan of shared/methods/nets/mip.py against its definition in O(slices^2).

    python benchmarks/mip.py                                      213 slices of 288x320, the paper's volumes
    python benchmarks/mip.py --slices 64 --height 64 --width 64   seconds instead of minutes
    python benchmarks/mip.py --slices 80 --whole                  the definition as one graph too: slices^2 images

Every form runs in a process of its own, on the CPU; peak memory is over what the inputs alone had taken. The definition
by prefix takes every softmax by itself and its gradient at once, so that it fits: as lean as the definition can be.
The goal at the paper's size: the scan at least 8 times faster. Loss and gradient must agree.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from shared.methods.nets.mip import mip_loss

PAPER, GOAL = 213, 8.0  # slices; times faster
SAMPLED = 997  # gradients compared, evenly over the volume

Loss: TypeAlias = Callable[[Tensor, Tensor, float], float]  # leaves the gradient in made.grad


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    seconds: float
    peak_mb: float  # over the inputs
    loss: float
    gradient: list[float]


def scan(made_BDHW: Tensor, truth_BDHW: Tensor, tau: float) -> float:
    loss = mip_loss(made_BDHW, truth_BDHW, tau=tau).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item()


def by_prefix(made_BDHW: Tensor, truth_BDHW: Tensor, tau: float) -> float:
    total, gradient = 0.0, torch.zeros_like(made_BDHW)
    for part, target_BHW in _prefixes(truth_BDHW):
        made = made_BDHW.detach()[:, part].requires_grad_()
        loss = _error(made, target_BHW, tau) / made_BDHW.shape[1]
        gradient[:, part] += torch.autograd.grad(loss, made)[0]
        total += loss.item()
    made_BDHW.grad = gradient
    return total


def whole(made_BDHW: Tensor, truth_BDHW: Tensor, tau: float) -> float:
    total = torch.zeros(())
    for part, target_BHW in _prefixes(truth_BDHW):
        total = total + _error(made_BDHW[:, part], target_BHW, tau) / made_BDHW.shape[1]
    total.backward()  # type: ignore[no-untyped-call]
    return total.item()


FORMS: dict[str, Loss] = {"scan": scan, "by prefix": by_prefix, "whole graph": whole}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=PAPER)
    parser.add_argument("--height", type=int, default=288)
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--tau", type=float, default=0.05, help="temperature of the soft maximum, for values in [0, 1]")
    parser.add_argument("--threads", type=int, default=1, help="of torch, in every form")
    parser.add_argument("--repeat", type=int, default=1, help="the best of so many is told")
    parser.add_argument("--whole", action="store_true", help="also the definition as one graph; mind the memory")
    parser.add_argument("--child", choices=FORMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(FORMS[options.child], options)))
        return
    volume = f"{options.slices} slices of {options.height}x{options.width}"
    held = 4e-6 * options.slices * options.height * options.width
    print(f"{volume} ({held:.0f} MB), tau {options.tau:g}, fp32, {options.threads} threads, torch {torch.__version__}")
    print(
        f"{'form':<14}{'seconds':>10}{'peak MB':>10}{'x volume':>10}{'slower':>9}   loss, gradient against the scan's"
    )
    first: Outcome | None = None
    for name in FORMS:
        if name == "whole graph" and not options.whole:
            continue
        outcome = apart(name)
        first = first or outcome
        slower = outcome.seconds / first.seconds
        line = (
            f"{name:<14}{outcome.seconds:>10.2f}{outcome.peak_mb:>10.0f}{outcome.peak_mb / held:>10.1f}{slower:>9.1f}"
        )
        print(f"{line}   {_agreement(outcome, first) if outcome is not first else ''}", flush=True)
        if name == "by prefix" and options.slices >= PAPER:
            print(f"{'':<14}goal of {GOAL:g} x: {'reached' if slower >= GOAL else 'missed'}", flush=True)


def apart(name: str) -> Outcome:
    """The same command line in a new process: a peak of memory never goes down."""
    command = [sys.executable, __file__, *sys.argv[1:], "--child", name]
    made = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Outcome(**json.loads(made.stdout))


def measure(form: Loss, options: argparse.Namespace) -> dict[str, object]:
    torch.set_num_threads(options.threads)
    g = torch.Generator().manual_seed(0)
    small = torch.rand(2, 1, 8, 8, 8, generator=g)
    form(small[0].requires_grad_(), small[1], options.tau)  # once before: code is loaded
    made, truth = torch.rand(2, 1, options.slices, options.height, options.width, generator=g)
    made.requires_grad_()
    before, seconds, loss = _peak_mb(), [], 0.0
    for _ in range(options.repeat):
        made.grad = None
        started = time.perf_counter()
        loss = form(made, truth, options.tau)
        seconds.append(time.perf_counter() - started)
    assert made.grad is not None
    gradient = made.grad.flatten()
    sample = gradient[:: max(1, len(gradient) // SAMPLED)].tolist()
    return {"seconds": min(seconds), "peak_mb": _peak_mb() - before, "loss": loss, "gradient": sample}


def _prefixes(truth_BDHW: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """From the first slice and from the last, with the hard projection of each."""
    slices = truth_BDHW.shape[1]
    there, back = truth_BDHW.cummax(1).values, truth_BDHW.flip(1).cummax(1).values.flip(1)
    for i in range(slices):
        yield slice(0, i + 1), there[:, i]
        yield slice(i, slices), back[:, i]


def _error(made_BDHW: Tensor, target_BHW: Tensor, tau: float) -> Tensor:
    projected = ((made_BDHW / tau).softmax(1) * made_BDHW).sum(1)
    return (projected - target_BHW).square().mean((1, 2)).sum()


def _agreement(one: Outcome, two: Outcome) -> str:
    a, b = torch.tensor(one.gradient), torch.tensor(two.gradient)
    return f"{abs(one.loss / two.loss - 1):.0e}, {((a - b).norm() / b.norm()).item():.0e}"


def _peak_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


if __name__ == "__main__":
    main()
