"""What it costs that the coordinator sees sums alone: a round of N tensors of 1 MB, open and hidden, in one process.

    python benchmarks/secure.py                                 100 MB; 4, 16 and 64 sites; none and a tenth drop out
    python benchmarks/secure.py --words 32 --sites 16

A trainer of nothing, so what is left of a site's work is reading the plan, hiding, the ledger and the wire. CPU seconds
of a site, and of the coordinator; bytes up of a site; wall seconds of the round. A site that drops out does so after it
has dealt: the coordinator then has to make the masks that it left in the sum.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from flwr.app import Error, Message

if TYPE_CHECKING:
    from shared.plan.config import Config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tensors", type=int, default=100, help="of 1 MB each")
    parser.add_argument("--sites", type=int, nargs="*", default=[4, 16, 64])
    parser.add_argument("--words", type=int, nargs="*", default=[64, 32], help="bits of a number")
    parser.add_argument("--drop", type=float, nargs="*", default=[0.0, 0.1], help="share of the sites that drop out")
    options = parser.parse_args()
    print(f"{options.tensors} x 1 MB, {os.cpu_count()} cores")
    heads = ("sites", "word", "drop", "round", "site CPU s", "server CPU s", "MB up", "wall s", "bits")
    print("".join(f"{head:>13}" for head in heads))
    for sites in options.sites:
        for word in options.words:
            for share in options.drop:
                gone = round(share * sites)
                if share and not gone:
                    continue
                weights, asked = set(), {"tensors": options.tensors, "sites": sites, "word": word, "gone": gone}
                for secure in (False, True):
                    row = _run({**asked, "secure": secure})
                    weights.add(row["weights"])
                    same = "" if not secure else "the same" if len(weights) == 1 else "OTHERS"
                    cells = (sites, word, gone, "hidden" if secure else "open", row["site"], row["server"], row["mb"])
                    print("".join(_cell(one) for one in (*cells, row["wall"], same)), flush=True)


def _cell(value: object) -> str:
    return f"{value:>13.2f}" if isinstance(value, float) else f"{value!s:>13}"


def _run(words: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, __file__, "--one", json.dumps(words)]
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.stderr.write(done.stderr[-3000:])
        raise SystemExit(f"{words}: exit {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


# --- one round, in a process of its own -----------------------------------------------------------------------------


def one(tensors: int, sites: int, word: int, gone: int, secure: bool) -> None:
    import noop_lacuna

    from server.journal import facts
    from server.runs.local_grid import LocalGrid
    from server.runs.serve import serve
    from shared.base import doors
    from shared.base.disk.tensors import lying_in
    from shared.base.owners import digest

    class Metered(LocalGrid):
        """Counts the sites' CPU seconds apart, and loses the last sites' updates."""

        site_cpu = 0.0

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            for reply in super().pull_messages(message_ids):
                lost = self._names[reply.metadata.src_node_id] in lost_ones
                if lost and reply.has_content() and "update" in reply.content.config_records:
                    yield Message(Error(8, "dropped out"), reply_to=reply)
                else:
                    yield reply

        def _answer(self, message: Message) -> Message:
            started = time.process_time()
            try:
                return super()._answer(message)
            finally:
                self.site_cpu += time.process_time() - started

    folder, nodes = noop_lacuna.prepared(tensors, 1, sites, rewrite=_hidden(word, secure))
    lost_ones = sorted(nodes)[len(nodes) - gone :]
    grid = Metered(doors.load(doors.CLIENT_APP), nodes)
    serve_started, cpu = time.monotonic(), time.process_time()
    final = serve(grid, folder, quiet=True)
    wall, cpu = time.monotonic() - serve_started, time.process_time() - cpu
    done = facts.read(folder / "rounds.jsonl")[-1]
    sent = [f.bytes_up for f in done.sites.values() if f.status == "ok"]
    row = {
        "site": grid.site_cpu / sites,
        "server": cpu - grid.site_cpu,
        "mb": sum(sent) / len(sent) / 1e6,
        "wall": wall,
    }
    print(json.dumps({**row, "weights": digest(lying_in(final / "weights.safetensors"))}))


def _hidden(word: int, secure: bool) -> Callable[["Config"], "Config"]:
    from shared.plan.settings import Limits

    def rewrite(config: "Config") -> "Config":
        federation = dataclasses.replace(
            config.federation,
            min_sites=3,
            min_holders=3,
            secure=secure,
            word=word,  # type: ignore[arg-type]  # what the config allows, it says
            limits=Limits(entry=1.0) if word == 32 else Limits(),  # fewer digits, spent where updates lie
        )
        return dataclasses.replace(config, federation=federation)

    return rewrite


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(**json.loads(sys.argv[2]))
    else:
        main()
