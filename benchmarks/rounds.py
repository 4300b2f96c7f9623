"""What a round costs each of its parts: the ServerApp, a site's worker, and a whole simulation.

    python benchmarks/rounds.py                  100 tensors of 1 MB; 3, 16 and 64 sites
    python benchmarks/rounds.py --tensors 1 --sites 2
    python benchmarks/rounds.py --up int4 --down int8 --rounds 3    in few bits, from the second plan on

Messages go through Flower's own code for a SuperLink, objects and all, but over a folder instead of HTTP: what is
measured is the memory and CPU of the two ends. Memory is a process's high-water mark above what it had when its
imports were done, in MB and in models; CPU is its own user + system seconds after them. A worker does one round of one
site; its network is one of its models. A simulation's memory is all of it, imports included.
"""

# ruff: noqa: TID251  (the figures are of Flower's own code)

import argparse
import json
import os
import pickle
import resource
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

MODEL_MB = 512 * 512 * 4 / 1e6  # one tensor of noop_lacuna.py


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tensors", type=int, default=100, help="of 1 MB each")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--sites", type=int, nargs="*", default=[3, 16, 64])
    parser.add_argument("--strategy", default="fedavg")
    parser.add_argument("--up", default="fp32")
    parser.add_argument("--down", default="fp32")
    options = parser.parse_args()
    how = f"{options.strategy}, {options.up}/{options.down}"
    print(f"{options.tensors} x 1 MB, {options.rounds} rounds, {how}, {os.cpu_count()} cores")
    print(f"{'part':<12}{'sites':>6}{'MB':>8}{'models':>8}{'CPU s':>8}{'wall s':>8}")
    for sites in options.sites:
        for part in ("serverapp", "worker", "simulation"):
            if part == "worker" and sites != options.sites[0]:
                continue  # it does not know how many there are
            with tempfile.TemporaryDirectory() as scratch:
                words = {k: getattr(options, k) for k in ("tensors", "rounds", "strategy", "up", "down")} | {
                    "sites": sites
                }
                row = _run(part, words, scratch)
            models = row["mb"] / (options.tensors * MODEL_MB)
            print(
                f"{part:<12}{sites:>6}{row['mb']:>8.0f}{models:>8.1f}{row['cpu']:>8.1f}{row['wall']:>8.1f}", flush=True
            )


def _run(part: str, words: dict[str, Any], scratch: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--part", part, json.dumps(words)]
    done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.stderr.write(done.stderr[-3000:])
        raise SystemExit(f"{part}: exit {done.returncode}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


# --- the parts, each in a process of its own ------------------------------------------------------------------------


def part(name: str, words: dict[str, Any]) -> None:
    import noop_lacuna

    folder, nodes = noop_lacuna.prepared(**words)
    if name == "serverapp":
        _serverapp(folder, nodes)
    elif name == "worker":
        _worker(folder, nodes)
    else:
        _simulation(folder, nodes)


def _simulation(folder: Path, nodes: dict[str, Any]) -> None:
    from server.runs.local_grid import LocalGrid
    from server.runs.serve import serve
    from shared.base import doors

    meter = Meter()
    serve(LocalGrid(doors.load(doors.CLIENT_APP), nodes), folder, quiet=True)
    meter.report(above=0.0)


def _serverapp(folder: Path, nodes: dict[str, Any]) -> None:
    """The sites answer in another process."""
    from server.runs.serve import serve

    sites = subprocess.Popen(
        [sys.executable, __file__, "--answer", json.dumps(nodes)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    meter = Meter()
    serve(_grid(Depot(Path("depot")), list(nodes), sites), folder, quiet=True)
    meter.report()
    assert sites.stdin is not None
    sites.stdin.close()
    sites.wait()


def _worker(folder: Path, nodes: dict[str, Any]) -> None:
    """The first site's first round, asked by a ServerApp that is ended then."""
    asker = subprocess.Popen(
        [sys.executable, __file__, "--ask", str(folder), json.dumps(nodes)],
        stderr=subprocess.PIPE,
        text=True,
    )
    _, errors = asker.communicate()
    asked = Path("depot/round")
    if not asked.exists():
        raise SystemExit(errors)
    from client import app

    assert app
    meter = Meter()
    _answer(Depot(Path("depot")), asked.read_text(), nodes)
    meter.report()


class Meter:
    def __init__(self) -> None:
        import torch

        torch.zeros(1).add_(1)
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
        self._before, self._started = _high_water(), time.monotonic()
        self._cpu = _cpu()

    def report(self, *, above: float | None = None) -> None:
        least = self._before if above is None else above
        found = {"mb": _high_water() - least, "cpu": _cpu() - self._cpu, "wall": time.monotonic() - self._started}
        print(json.dumps(found), flush=True)


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _high_water() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise SystemExit("no VmHWM in /proc/self/status")


# --- a SuperLink that is a folder -----------------------------------------------------------------------------------


class Depot:
    """Flower's runtime client over a folder: objects by their id, messages by theirs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for kind in ("objects", "messages", "replies"):
            (folder / kind).mkdir(parents=True, exist_ok=True)

    def PushMessages(self, request: Any) -> Any:
        from flwr.proto.runtime_pb2 import PushAppMessagesResponse
        from flwr.supercore.inflatable.inflatable_object import iterate_object_tree

        ids, missing = [], dict[str, None]()
        for message, tree in zip(request.messages_list, request.message_object_trees, strict=True):
            of = message.metadata.reply_to_message_id
            path = self.folder / "replies" / of if of else self.folder / "messages" / message.metadata.message_id
            path.write_bytes(pickle.dumps((message.SerializeToString(), tree.SerializeToString())))
            ids.append(message.metadata.message_id)
            for node in iterate_object_tree(tree):
                if not (self.folder / "objects" / node.object_id).exists():
                    missing[node.object_id] = None
        return PushAppMessagesResponse(message_ids=ids, objects_to_push=list(missing), session_id="one")

    def PushObject(self, request: Any) -> Any:
        from flwr.proto.message_pb2 import PushObjectResponse

        path = self.folder / "objects" / request.object_id
        whole = path.with_suffix(f".{uuid.uuid4().hex}")
        whole.write_bytes(request.object_content)
        whole.rename(path)
        return PushObjectResponse(stored=True)

    def PullObject(self, request: Any) -> Any:
        from flwr.proto.message_pb2 import PullObjectResponse

        content = (self.folder / "objects" / request.object_id).read_bytes()
        return PullObjectResponse(object_found=True, object_available=True, object_content=content)

    def PullMessages(self, request: Any) -> Any:
        """Of a reply that is there; a ServerApp's are asked for one by one."""
        from flwr.proto.runtime_pb2 import PullAppMessagesResponse

        (of,) = request.message_ids
        path = self.folder / "replies" / of
        if not path.exists():
            return PullAppMessagesResponse()
        message, tree = self.read(path)
        path.unlink()
        return PullAppMessagesResponse(messages_list=[message], message_object_trees=[tree])

    def ConfirmMessageReceived(self, request: Any) -> Any:
        from flwr.proto.message_pb2 import ConfirmMessageReceivedResponse

        return ConfirmMessageReceivedResponse()

    @staticmethod
    def read(path: Path) -> tuple[Any, Any]:
        from flwr.proto.message_pb2 import Message, ObjectTree

        message, tree = pickle.loads(path.read_bytes())  # our own, written above
        return Message.FromString(message), ObjectTree.FromString(tree)


def _grid(depot: Depot, names: list[str], sites: "subprocess.Popen[bytes] | None") -> Any:
    """Flower's grid for a SuperLink; `sites` is told of each message that is pushed and says when it was answered."""
    from flwr.superlink.grid.http_grid import HttpGrid

    from server.flower import Run, act_as_server

    class OverAFolder(HttpGrid):
        def get_node_ids(self) -> list[int]:
            return list(range(2, 2 + len(names)))

        def push_messages(self, messages: Any) -> Any:
            pushed = list(messages)
            ids = list(super().push_messages(pushed))
            for message, number in zip(pushed, ids, strict=True):
                if sites is None and message.metadata.message_type != "query":
                    (depot.folder / "round").write_text(number)
                    os._exit(0)
                _told(sites, number)
            return ids

    act_as_server(1)
    grid = OverAFolder(token="one")
    grid._client = depot  # type: ignore[assignment]
    grid._run = Run.create_empty(run_id=1)
    return grid


def _told(sites: Any, number: str) -> None:
    if sites is None:
        answers[0](number)
        return
    sites.stdin.write(number.encode() + b"\n")
    sites.stdin.flush()
    sites.stdout.readline()


answers: list[Any] = []


def ask(folder: Path, nodes: dict[str, Any]) -> None:
    """A ServerApp up to its first round's plan, the query answered in this process."""
    import noop_lacuna

    from server.runs.serve import serve

    noop_lacuna.listed()
    depot = Depot(Path("depot"))
    answers.append(lambda number: _answer(depot, number, nodes))
    serve(_grid(depot, list(nodes), None), folder, quiet=True)


def answer(nodes: dict[str, Any]) -> None:
    """Answer each message whose number comes in."""
    import noop_lacuna

    noop_lacuna.listed()
    depot = Depot(Path("depot"))
    for line in sys.stdin:
        _answer(depot, line.strip(), nodes)
        print("done", flush=True)


def _answer(depot: Depot, number: str, nodes: dict[str, Any]) -> None:
    """What Flower's worker does with a message, by its own functions."""
    from flwr.app import Context, Message, RecordDict
    from flwr.proto.node_pb2 import Node
    from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
    from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree
    from flwr.supercore.task_identity import TaskIdentity
    from flwr.supernode.runtime.run_clientapp import push_message

    from shared.base import doors

    proto, tree = depot.read(depot.folder / "messages" / number)
    node = proto.metadata.dst_node_id
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, node, 1
    pull = make_pull_object_fn_protobuf(depot.PullObject, Node(node_id=node), 1)
    message = pull_and_inflate_object_from_tree(tree, pull, lambda _: None, return_type=Message)
    message.metadata.__dict__["_message_id"] = number
    config = list(nodes.values())[node - 2]
    context = Context(run_id=1, node_id=node, node_config=config, state=RecordDict(), run_config={})
    reply = doors.load(doors.CLIENT_APP)(message=message, context=context)
    push_message(depot, reply, context)  # type: ignore[arg-type]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--part"]:
        part(sys.argv[2], json.loads(sys.argv[3]))
    elif sys.argv[1:2] == ["--ask"]:
        ask(Path(sys.argv[2]), json.loads(sys.argv[3]))
    elif sys.argv[1:2] == ["--answer"]:
        answer(json.loads(sys.argv[2]))
    else:
        main()
