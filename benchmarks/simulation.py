"""What a simulated federation costs beside its training: a no-op trainer over N tensors of 1 MB, 4 sites, 3 rounds.

    python benchmarks/simulation.py                  ours at 4 and 64 sites, and the peers that are installed
    python benchmarks/simulation.py --peers nvflare=/path/to/python

Each system runs in a process tree of its own; memory is the peak of the summed proportional set size (shared pages
counted once) of the whole tree, sampled every 50 ms, CPU is user + system seconds of the tree, imports included.
"""

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import psutil

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tensors", type=int, default=100, help="of 1 MB each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sites", type=int, nargs="*", default=[4, 64], help="for ours; the peers get the first")
    parser.add_argument("--peers", nargs="*", default=[], metavar="NAME=PYTHON", help="a peer in another environment")
    options = parser.parse_args()
    pythons = dict(peer.split("=", 1) for peer in options.peers)
    for name, module in (("flower-ray", "ray"), ("nvflare", "nvflare")):
        if name not in pythons and importlib.util.find_spec(module):
            pythons[name] = sys.executable
    jobs = [("lacuna", sys.executable, sites) for sites in options.sites]
    jobs += [(name, python, options.sites[0]) for name, python in pythons.items()]
    print(f"{options.tensors} x 1 MB, {options.rounds} rounds, {os.cpu_count()} cores")
    print(f"{'system':<12}{'sites':>6}{'peak MB':>10}{'CPU s':>8}{'wall s':>8}{'processes':>11}  exit")
    for name, python, sites in jobs:
        row = measure(
            [
                python,
                str(HERE / ("" if name == "lacuna" else "peers") / f"noop_{name.replace('-', '_')}.py"),
                json.dumps({"tensors": options.tensors, "rounds": options.rounds, "sites": sites}),
            ]
        )
        print(
            f"{name:<12}{sites:>6}{row['mb']:>10.0f}{row['cpu']:>8.1f}{row['wall']:>8.1f}{row['processes']:>11}"
            f"  {row['exit']}",
            flush=True,
        )


def measure(command: list[str]) -> dict[str, float | int]:
    """Run to the end; peak proportional memory and CPU seconds of the process and all its descendants."""
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "log"
        started = time.monotonic()
        # psutil sees a child's CPU only while it lives: keep the last reading of each
        cpu: dict[tuple[int, float], float] = {}
        peak, most = 0.0, 0
        with log.open("wb") as output:
            root = psutil.Popen(command, stdout=output, stderr=output, cwd=scratch, start_new_session=True)
            while root.poll() is None:
                tree = _tree(root)
                peak = max(peak, sum(_pss(process) for process in tree))
                most = max(most, len(tree))
                for process in tree:
                    try:
                        times = process.cpu_times()
                        cpu[process.pid, process.create_time()] = times.user + times.system
                    except psutil.Error:
                        continue
                time.sleep(0.05)
        if root.returncode:
            sys.stderr.write(log.read_text(errors="replace")[-2000:])
    return {
        "mb": peak / 1e6,
        "cpu": sum(cpu.values()),
        "wall": time.monotonic() - started,
        "processes": most,
        "exit": root.returncode,
    }


def _tree(root: psutil.Process) -> list[psutil.Process]:
    try:
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


def _pss(process: psutil.Process) -> float:
    try:
        for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return float(line.split()[1]) * 1024
    except OSError:
        pass
    return 0.0


if __name__ == "__main__":
    main()
