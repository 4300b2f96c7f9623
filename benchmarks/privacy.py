"""What training with privacy costs beside plain training: time and memory, in one run, on real code paths.

    python benchmarks/privacy.py                                   every method at size=small, an hour of one thread
    python benchmarks/privacy.py --methods amm_diff,any2all --size tiny --repeats 3
    python benchmarks/privacy.py --device cuda                     seconds of the clock, torch.cuda.max_memory_allocated

A step is `shared.plan.training.train`'s or `client.privacy.private.train_private`'s own, over equally many images:
every subject is drawn in every step (rate 1). Rounds of all variants take turns in one process; "x plain" is the
median of the ratios between neighbours, "least" the ratio of the fastest rounds. Seconds are the process's CPU-
seconds, so that other work on the machine counts little. Memory is the peak over what stood after a first small
round, in a fresh process for every variant.

Images are random, in a round head, and in memory: no files are read. `unet3d` is a MONAI DiffusionModelUNet on
4 x 32^3, in the place of ACADiff. The goals: with 4 images or draws per subject at most 1.15 times as long as plain
(unet3d, with two: 1.3), in at most half of the memory. Opacus stands alongside; its unit is an image.
"""

import argparse
import contextlib
import ctypes
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from private_rounds import METHODS, NOISE, Bench, Made, Round, Variant, case_of, variants
from torch import Tensor

from client.privacy import private
from client.privacy.budget import Budget
from shared.plan.training import find_device
from shared.trust.privacy import Query

MOST_TIME, MOST_TIME_3D, MOST_MEMORY = 1.15, 1.3, 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--size", default="small", help="of the networks; unet3d has one size only")
    parser.add_argument("--scale", type=int, default=1, help="images so many times as high and wide as the size's own")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="in each repeat of each variant")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--disk", type=Path, help="folder in which ledgers are made; default a temporary one")
    parser.add_argument("--out", type=Path, default=Path("privacy.json"), help="the numbers")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options, options.child)))
        return
    found: dict[str, Any] = {"torch": torch.__version__, "threads": options.threads, "load": [os.getloadavg()[0]]}
    for name in options.methods.split(","):
        found[name] = apart(options, name)
        table(name, options.size, found[name])
        found["load"].append(os.getloadavg()[0])
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(f"\nload of the machine: {', '.join(f'{x:.1f}' for x in found['load'])}; numbers in {options.out}")


def apart(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """The same command line in a new process, for one method."""
    command = [sys.executable, __file__, *sys.argv[1:], "--child", name]
    threads = {"OMP_NUM_THREADS": str(options.threads), "MKL_NUM_THREADS": str(options.threads)}
    made = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | threads)
    answer: dict[str, Any] = json.loads(made.stdout.splitlines()[-1])
    return answer


def child(options: argparse.Namespace, name: str) -> dict[str, Any]:
    warnings.simplefilter("ignore")  # Opacus's and MONAI's
    with tempfile.TemporaryDirectory(dir=options.disk) as folder:
        bench = Bench(
            case=case_of(name, options.size, options.scale), device=find_device(options.device), disk=Path(folder)
        )
        measured = [variant for variant in variants(bench.case) if not variant.ledger]
        peaks = {variant.name: fresh(functools.partial(peak_of, bench, variant)) for variant in measured}
        return time_case(bench, options.repeats, options.steps) | {"peak_mb": peaks}


# --- time ------------------------------------------------------------------------------------------------------------


def seconds(device: torch.device) -> float:
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def time_case(bench: Bench, repeats: int, steps: int) -> dict[str, Any]:
    """Of every variant, seconds per step in each repeat; and where a private step's go."""
    rounds: dict[str, Round] = {}
    failed: dict[str, str] = {}
    for variant in variants(bench.case):
        try:
            run = bench.round(variant)
            run(2)  # once before: kernels are chosen, code is loaded
            rounds[variant.name] = run
        except Exception as error:  # whatever Opacus makes of a network that it can't do
            if not variant.opacus:
                raise
            failed[variant.name] = f"{type(error).__name__}: {' '.join(str(error).split())[:110]}"
    taken: dict[str, list[float]] = {name: [] for name in rounds}
    for _ in range(repeats):
        for name, run in rounds.items():
            started = seconds(bench.device)
            run(steps)
            taken[name].append((seconds(bench.device) - started) / steps)
    net = bench.case.build()
    return {
        "phase": bench.case.phase,
        "image": bench.case.shape,
        "images": bench.case.images,
        "weights": sum(p.numel() for p in net.parameters()),
        "seconds": taken,
        "failed": failed,
        "shares": shares(bench, 2 * steps),
        "ledger_ms": ledger_ms(bench),
    }


def shares(bench: Bench, steps: int) -> dict[str, float]:
    """Seconds per step in each part of a private step with several draws each, with the ledger."""
    variant = next(v for v in variants(bench.case) if v.ledger)
    run = bench.round(variant)
    run(1)
    clock = Clock(bench.device)
    with contextlib.ExitStack() as stack:
        for owner, name, part in (
            (Budget, "charge", "charge"),
            (private, "draw", "draw"),
            (private, "_parts", "draw"),
            (Made, "unit", "draw"),
            (type(bench.case.method), "loss", "forward"),
            (Tensor, "backward", "backward"),
            (private, "add_clipped", "clip and add"),
            (private, "normal", "noise"),
            (torch.optim.AdamW, "step", "optimizer"),
        ):
            stack.enter_context(clock.watching(owner, name, part))
        started = seconds(bench.device)
        run(steps)
        whole = seconds(bench.device) - started
    found = {part: taken / steps for part, taken in clock.parts.items()}
    return found | {"rest": whole / steps - sum(found.values())}


class Clock:
    def __init__(self, device: torch.device) -> None:
        self.parts: dict[str, float] = {}
        self._device = device

    @contextlib.contextmanager
    def watching(self, owner: Any, name: str, part: str) -> Iterator[None]:
        """For as long as this stands, calls count to the part."""
        true = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = seconds(self._device)
            made = true(*args, **kwargs)
            made = list(made) if isinstance(made, Iterator) else made
            self.parts[part] = self.parts.get(part, 0.0) + seconds(self._device) - started
            return made

        setattr(owner, name, timed)
        try:
            yield
        finally:
            setattr(owner, name, true)


def ledger_ms(bench: Bench, charges: int = 50) -> dict[str, float]:
    charge, wall, cpu = bench.ledger(), [], []
    for _ in range(charges):
        started, worked = time.perf_counter(), time.process_time()
        charge(Query(noise=NOISE, rate=1.0))
        wall.append(1e3 * (time.perf_counter() - started))
        cpu.append(1e3 * (time.process_time() - worked))
    return {"wall": statistics.median(wall), "wall_most": max(wall), "cpu": statistics.median(cpu)}


# --- memory ----------------------------------------------------------------------------------------------------------


def fresh(measure: Callable[[], float]) -> float | None:
    """In a fork of this process, which has done no more than to import; None if it fails."""
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        with contextlib.suppress(Exception), os.fdopen(writer, "w") as answer:
            answer.write(repr(measure()))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    os.waitpid(process, 0)
    return float(text) if text else None


def peak_of(bench: Bench, variant: Variant) -> float:
    """MB over what stood after a first small round. Two steps: in the second one the optimizer's moments stand."""
    small = replace(variant, subjects=min(variant.subjects, 1), slices=1, draws=1)
    replace(bench, case=replace(bench.case, images=2)).round(small)(1)
    run = bench.round(variant)
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(2)
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):  # where it is not permitted, the mark of the small round stands
        Path("/proc/self/clear_refs").write_text("5")
    before_mb = high_water_mb()
    run(2)
    return high_water_mb() - before_mb


def high_water_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1e3


# --- the table -------------------------------------------------------------------------------------------------------


def table(name: str, size: str, found: Mapping[str, Any]) -> None:
    image = " x ".join(map(str, found["image"]))
    title = name if name == "unet3d" else f"{name} size={size}"
    print(f"\n{title}, phase {found['phase']}: {found['images']} of {image} in a step, {found['weights']:,} weights")
    print(f"{'':<26}{'s/step':>8}{'range':>15}{'x plain':>9}{'range':>14}{'least':>7}{'MB':>7}{'x plain':>9}")
    plain, plain_mb = found["seconds"]["plain"], found["peak_mb"]["plain"]
    goals = {v.name for v in variants(case_of(name, size)) if v.goal}
    for variant, taken in found["seconds"].items():
        ratios = [one / other for one, other in zip(taken, plain, strict=True)]
        longer, least = statistics.median(ratios), min(taken) / min(plain)
        text = f"{variant:<26}{statistics.median(taken):>8.3f}{min(taken):>8.3f}-{max(taken):<6.3f}"
        text += f"{longer:>9.3f}{min(ratios):>8.3f}-{max(ratios):<5.3f}{least:>7.3f}"
        mb = found["peak_mb"].get(variant)
        text += "" if mb is None else f"{mb:>7.0f}{mb / plain_mb:>9.2f}"
        if variant in goals:
            text += f"   time {'reached' if longer <= (MOST_TIME_3D if name == 'unet3d' else MOST_TIME) else 'MISSED'}"
            text += f", memory {'reached' if mb <= MOST_MEMORY * plain_mb else 'MISSED'}"
        print(text)
    for variant, why in found["failed"].items():
        print(f"{variant:<26}FAIL {why}")
    whole = sum(found["shares"].values())
    parts = sorted(found["shares"].items(), key=lambda item: -item[1])
    print("a private step: " + ", ".join(f"{part} {100 * taken / whole:.2f} %" for part, taken in parts))
    ms = found["ledger_ms"]
    print(f"a charge on disk: {ms['cpu']:.2f} CPU-ms, {ms['wall']:.1f} ms waited, {ms['wall_most']:.0f} at most")


if __name__ == "__main__":
    main()
