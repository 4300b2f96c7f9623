"""What fewer bytes both ways save, and what they cost: a federation carried in each way, its bytes and its quality.

    python benchmarks/bytes.py OUT                          AMM-Diff, small networks, minutes
    python benchmarks/bytes.py OUT --method any2all --seeds 0 1 2
    python benchmarks/bytes.py OUT --size small --override experiment=demo --subjects 12 --voxels 64     the demo: hours

A way is UP/DOWN; `int4-/int8` is int4 without error feedback (each site's rest is thrown away before the next round).
Bytes are of all messages, both directions, in % of the run in fp32: of a round in which nothing is new any more (the
last), and of the whole run, first plan and sums included. PSNR: the coordinator's own complete subjects, who train
nobody, each modality from all the others, mean over modalities, of the final average. OUT keeps runs: those that are
done are not done again.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

WAYS = (
    "fp32/fp32",
    "bf16/fp32",
    "int8/fp32",
    "int8-/fp32",
    "int4/fp32",
    "int4-/fp32",
    "fp32/int8",
    "int8/int8",
    "int4/int8",
)
FAMILY = {"any2all": "dementia", "aca_diff": "dementia"}  # of others glioma


@dataclass(frozen=True, kw_only=True)
class Found:
    seed: int
    last: int  # bytes
    whole: int
    psnr: float | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--method", default="amm_diff")
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--ways", nargs="*", default=list(WAYS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--subjects", type=int, default=8, help="a site, of three")
    parser.add_argument("--voxels", type=int, default=32, help="along an edge of a phantom")
    parser.add_argument("--override", nargs="*", default=[])
    options = parser.parse_args()
    world = options.out / f"world-{options.method}"
    if not (world / "world.json").exists():
        make(world, options)
    print(f"{options.method}, {options.size}, seeds {options.seeds} {' '.join(options.override)}")
    print(f"{'up/down':<12}{'a round %':>10}{'whole %':>9}{'up MB':>8}{'down MB':>9}{'PSNR':>8}{'to fp32':>9}  by seed")
    plain: list[Found] = []
    for way in options.ways:
        found = [carried(way, seed, world, options) for seed in options.seeds]
        plain = plain or found
        up, down = split(options.out / "runs" / name(way, options.seeds[0], options))
        part, whole = (
            100 * mean(getattr(one, key) for one in found) / mean(getattr(one, key) for one in plain)
            for key in ("last", "whole")
        )
        line = f"{way:<12}{part:>10.1f}{whole:>9.1f}{up / 1e6:>8.2f}{down / 1e6:>9.2f}"
        pairs = [
            (a.psnr, b.psnr) for a, b in zip(found, plain, strict=True) if a.psnr is not None and b.psnr is not None
        ]
        if pairs:
            line += f"{mean(a for a, _ in pairs):>8.2f}{mean(a - b for a, b in pairs):>+9.2f}  "
            line += " ".join(f"{a - b:+.2f}" for a, b in pairs)
        print(line, flush=True)


def make(world: Path, options: argparse.Namespace) -> None:
    from shared.data.phantom.phantom import PhantomOptions, write_world

    family = FAMILY.get(options.method, "glioma")
    made = PhantomOptions(family=family, subjects=options.subjects, coordinator=6, heldout=0, size=options.voxels)  # type: ignore[arg-type]
    write_world(made, world, workers=1)


def name(way: str, seed: int, options: argparse.Namespace) -> str:
    return f"{options.method}-{way.replace('/', '-').replace('--', 'x-')}-{seed}"


def carried(way: str, seed: int, world: Path, options: argparse.Namespace) -> Found:
    from server.journal import facts

    runs, run = options.out / "runs", name(way, seed, options)
    up, down = way.split("/")
    words = [f"method={options.method}", f"size={options.size}", "tracking=none", "validation.every=1000000"]
    words += ["validation.slices=64", *options.override, f"federation.up={up.rstrip('-')}", f"federation.down={down}"]
    again = (runs / run / "config.json").exists()
    words += [f"world={world}", f"runs={runs}", f"seed={seed}", f"resume={run}" if again else f"run={run}"]
    if not (runs / run / "final" / "model.json").exists():
        command = [sys.executable, __file__, "--part", json.dumps([up.endswith("-"), words])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.stderr.write(done.stderr[-3000:])
            raise SystemExit(f"{way}: exit {done.returncode}")
    history = facts.read(runs / run / "rounds.jsonl")
    values = [value for value in (history[-1].validation or {}).values() if value is not None]
    sizes = [one.bytes_up + one.bytes_down for one in history]
    return Found(seed=seed, last=sizes[-1], whole=sum(sizes), psnr=mean(values) if values else None)


def split(run: Path) -> tuple[int, int]:
    """Bytes up and down of the last round."""
    from server.journal import facts

    last = facts.read(run / "rounds.jsonl")[-1]
    return last.bytes_up, last.bytes_down


def part(forgetful: bool, words: list[str]) -> None:
    """One run; a forgetful site has never kept anything."""
    from client.round import residuals
    from server.runs import runs
    from server.runs.simulation import find_cohorts, simulate
    from shared.base.disk.tensors import Tensors
    from shared.base.records import NO_REST

    if forgetful:
        residuals.Rests.before = lambda *_: (Tensors({}), NO_REST)  # type: ignore[method-assign]
    simulate(*runs.create(words, check=find_cohorts))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--part"]:
        part(*json.loads(sys.argv[2]))
    else:
        main()
