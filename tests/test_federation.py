"""The whole loop: real ClientApp, real ServerApp messages, cohorts on disk; what goes wrong, goes wrong for real."""

import dataclasses
import json
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from flwr.app import Error, Message
from support.cohort.worlds import write_world
from support.rounds.federation import config, weights_digest, write
from support.rounds.spoilt import Spoil, SpoiltGrid

from server.journal import facts
from server.rounds import collect
from server.rounds.strategies import STRATEGIES
from server.runs import runs, simulation
from server.runs.local_grid import LocalGrid
from server.runs.serve import serve
from shared.base import checkpoint
from shared.base.errors import ConfigError, PlanRefused, RunFailed
from shared.plan import tensors
from shared.plan.config import Config
from shared.plan.settings import Choice

pytestmark = [pytest.mark.usefixtures("probe"), pytest.mark.slow]


def start(folder: Path, wanted: Config, spoil: Spoil | None = None) -> Path:
    write(folder, wanted)
    cohorts = simulation.find_cohorts(wanted)
    simulation.prepare_cohorts(wanted, cohorts)
    grid = SpoiltGrid(simulation.client_app(), simulation._node_configs(wanted, folder, cohorts))
    if spoil is not None:
        grid.spoil = spoil  # type: ignore[method-assign]
    return serve(grid, folder, quiet=True)


def is_update(reply: Message) -> bool:
    return reply.has_content() and "update" in reply.content.config_records


def round_of(reply: Message) -> int:
    return int(str(reply.content.config_records["update"]["round"]))


def phase_of(reply: Message) -> str:
    return str(reply.content.config_records["update"]["phase"])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_carries_a_run_to_its_release(strategy: str, world: Path, tmp_path: Path) -> None:
    wanted = config(world, strategy=strategy, min_holders=1, min_sites=3)
    if strategy == "krum":  # of three sites it can outvote none
        wanted = dataclasses.replace(wanted, strategy=Choice(name="krum", options={"byzantine": 0}))
    final = start(tmp_path / "run", wanted)
    history = facts.read(tmp_path / "run" / "rounds.jsonl")
    assert [(f.phase, f.round) for f in history] == [("level", 0), ("fit", 0), ("fit", 1), ("fit", 2)]
    assert all(f.status == "ok" for one in history for f in one.sites.values())
    assert json.loads((final / "model.json").read_text())["provenance"]["sites"] == 3


def test_the_same_seed_gives_the_same_bits(world: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        start(tmp_path / name, config(world))
    assert weights_digest(tmp_path / "a") == weights_digest(tmp_path / "b")
    other = dataclasses.replace(config(world), seed=4)
    start(tmp_path / "c", other)
    assert weights_digest(tmp_path / "a") != weights_digest(tmp_path / "c")


def test_arrival_order_changes_no_bit(world: Path, tmp_path: Path) -> None:
    """East's answers are always two polls late."""
    seen: dict[str, int] = {}
    held: dict[str, Message] = {}

    class LateGrid(LocalGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            for message_id in message_ids:
                for reply in super().pull_messages([message_id]):
                    held[message_id] = reply
                seen[message_id] = seen.get(message_id, 0) + 1
                if message_id in held:
                    late = self._names[held[message_id].metadata.src_node_id] == "east"
                    if seen[message_id] > (2 if late else 0):
                        yield held.pop(message_id)

    start(tmp_path / "a", config(world))
    wanted = config(world)
    folder = write(tmp_path / "b", wanted)
    cohorts = simulation.find_cohorts(wanted)
    grid = LateGrid(simulation.client_app(), simulation._node_configs(wanted, folder, cohorts))
    serve(grid, folder, quiet=True)
    assert weights_digest(tmp_path / "a") == weights_digest(tmp_path / "b")


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam", "median"])
@pytest.mark.parametrize("stop_at", [("fit", 0), ("fit", 2)])
def test_a_run_stopped_anywhere_resumes_to_the_same_bits(
    strategy: str, stop_at: tuple[str, int], world: Path, tmp_path: Path
) -> None:
    wanted = config(world, strategy=strategy, min_sites=3)
    start(tmp_path / "whole", wanted)

    def stop(site: str, reply: Message) -> Message | None:
        if is_update(reply) and site == "north" and (phase_of(reply), round_of(reply)) == stop_at:
            raise KeyboardInterrupt
        return reply

    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "broken", wanted, stop)
    start(tmp_path / "broken", wanted)
    assert weights_digest(tmp_path / "whole") == weights_digest(tmp_path / "broken")
    assert len(facts.read(tmp_path / "broken" / "rounds.jsonl")) == 4


def error_reply(site: str, reply: Message) -> Message | None:
    if is_update(reply) and site == "east":
        broken = Message(Error(8, "ClientApp stopped responding"), reply_to=reply)
        broken.metadata.__dict__["_src_node_id"] = reply.metadata.src_node_id
        return broken
    return reply


def test_a_site_that_fails_is_named_and_the_others_go_on(world: Path, tmp_path: Path) -> None:
    start(tmp_path / "run", config(world), error_reply)
    for one in facts.read(tmp_path / "run" / "rounds.jsonl"):
        assert one.sites["east"].status == "error"
        assert "stopped responding" in one.sites["east"].reason
        assert one.sites["north"].status == one.sites["south"].status == "ok"


def test_without_quorum_the_run_stops_changed_in_nothing(world: Path, tmp_path: Path) -> None:
    wanted = config(world, min_sites=3, retries=1)
    asked = []

    def later(site: str, reply: Message) -> Message | None:
        if is_update(reply) and (phase_of(reply), round_of(reply)) == ("fit", 1):
            asked.append(site)
            return error_reply(site, reply)
        return reply

    with pytest.raises(RunFailed, match=r"2 updates admitted, min_sites=3 after 1 retries.*east: error"):
        start(tmp_path / "run", wanted, later)
    assert asked.count("east") == 2  # asked again once
    assert asked.count("north") == 1  # its update was in already
    _, record = checkpoint.load_latest(tmp_path / "run" / "checkpoints") or ({}, {})
    assert (record["phase"], record["round"]) == (1, 1)
    start(tmp_path / "run", wanted)
    start(tmp_path / "whole", wanted)
    assert weights_digest(tmp_path / "run") == weights_digest(tmp_path / "whole")


def test_a_rejected_update_is_counted_named_and_changes_nothing(world: Path, tmp_path: Path) -> None:
    """East answers with nan; the result is that of the federation without east's updates."""

    def poison(site: str, reply: Message) -> Message | None:
        if is_update(reply) and site == "east" and phase_of(reply) == "fit":
            delta = dict(tensors.unpack(reply.content.array_records["delta"]))
            delta["body.weight"].fill_(torch.nan)
            reply.content["delta"] = tensors.pack(delta)
        return reply

    def silence(site: str, reply: Message) -> Message | None:
        late = is_update(reply) and site == "east" and phase_of(reply) == "fit"
        return error_reply(site, reply) if late else reply

    start(tmp_path / "poisoned", config(world), poison)
    start(tmp_path / "silent", config(world), silence)
    assert weights_digest(tmp_path / "poisoned") == weights_digest(tmp_path / "silent")
    last = facts.read(tmp_path / "poisoned" / "rounds.jsonl")[-1]
    assert last.sites["east"].status == "rejected"
    assert len(last.refusals) == 1
    assert "east: body.weight has an entry of nan" in last.refusals[0]


class Hurried:
    """A clock on which a pause is over at once."""

    paused = 0.0

    def sleep(self, seconds: float) -> None:
        self.paused += seconds

    def monotonic(self) -> float:
        return time.monotonic() + self.paused

    def time(self) -> float:
        return time.time()


def test_a_site_past_the_deadline_is_a_timeout(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "time", Hurried())
    wanted = config(world, rounds=1)
    quick = dataclasses.replace(wanted, federation=dataclasses.replace(wanted.federation, deadline=6.0))

    def never(site: str, reply: Message) -> Message | None:
        return None if is_update(reply) and site == "east" else reply

    start(tmp_path / "run", quick, never)
    assert facts.read(tmp_path / "run" / "rounds.jsonl")[-1].sites["east"].status == "timeout"


def test_a_slice_that_one_site_alone_trained_is_not_released(tmp_path: Path) -> None:
    patterns = {"north": [("T1", "T2")] * 3, "east": [("T1", "T2")] * 3, "south": [("T1", "FLAIR")] * 3}
    world = write_world(tmp_path / "world", patterns)
    wanted = config(world, min_holders=2)
    final = start(tmp_path / "run", wanted)
    from safetensors.torch import load_file

    weights = load_file(final / "weights.safetensors")
    initial = wanted.build_method().build(wanted.seed).state_dict()
    assert torch.equal(weights["head.weight"][2], initial["head.weight"][2])
    assert not torch.equal(weights["head.weight"][1], initial["head.weight"][1])
    last = facts.read(tmp_path / "run" / "rounds.jsonl")[-1]
    assert last.holders["to:FLAIR"] == 1


def test_a_target_that_nobody_holds_is_refused_before_round_one(tmp_path: Path) -> None:
    world = write_world(tmp_path / "world", {"north": [("T1", "T2")] * 2, "east": [("T1", "T2")] * 2})
    with pytest.raises(PlanRefused, match=r"federation.targets=FLAIR: no site holds FLAIR"):
        start(tmp_path / "run", config(world))
    assert not (tmp_path / "run" / "rounds.jsonl").exists()


def test_a_target_without_any_source_is_refused(tmp_path: Path) -> None:
    world = write_world(tmp_path / "world", {"north": [("T1", "T2"), ("FLAIR",)] * 2, "east": [("T1", "T2")] * 2})
    with pytest.raises(PlanRefused, match="no source -> FLAIR pair"):
        start(tmp_path / "run", config(world))


def test_small_cells_do_not_leave_the_site(world: Path, tmp_path: Path) -> None:
    start(tmp_path / "run", config(world, min_cell=3))
    north = facts.load_coverage(tmp_path / "run" / "inventory.json").sites["north"]
    assert north.patterns == {"T1+T2": 5, "T1": -3}


def test_a_site_whose_code_disagrees_refuses_the_plan(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(site: object, settings: object, schema: str) -> None:
        raise PlanRefused("east: schema aaa differs from this site's bbb")

    from client.round import work

    monkeypatch.setattr(work, "check_schema", other)
    with pytest.raises(RunFailed, match=r"min_sites=2: only 0 sites.*differs from this site's"):
        start(tmp_path / "run", config(world))


@pytest.mark.parametrize("round", [0, 1])
def test_collapsed_features_fail_the_run(world: Path, tmp_path: Path, round: int) -> None:
    """In the first round too: its start is the untrained network, not what that round made of it."""

    def collapse(site: str, reply: Message) -> Message | None:
        if is_update(reply) and phase_of(reply) == "fit" and round_of(reply) == round:
            head = reply.content.config_records["update"]
            head["metrics"] = json.dumps(json.loads(str(head["metrics"])) | {"feature_std": 1e-9})
        return reply

    with pytest.raises(RunFailed, match=r"feature_std fell to 1e-09 from 1.*collapsed"):
        start(tmp_path / "run", config(world), collapse)


def test_personal_layers_stay_at_their_sites(world: Path, tmp_path: Path) -> None:
    wanted = config(world, keep_local=("body.*",))
    final = start(tmp_path / "run", wanted)
    from safetensors.torch import load_file

    initial = wanted.build_method().build(wanted.seed).state_dict()
    assert torch.equal(load_file(final / "weights.safetensors")["body.weight"], initial["body.weight"])
    files = sorted((tmp_path / "run" / "sites" / "north" / "personal" / "run").iterdir())
    kept = load_file(files[-1])
    assert not torch.equal(kept["body.weight"], initial["body.weight"])


def test_a_fraction_of_the_sites_is_drawn_by_seed(world: Path, tmp_path: Path) -> None:
    start(tmp_path / "run", config(world, rounds=6, fraction=0.5))
    asked = [tuple(one.sites) for one in facts.read(tmp_path / "run" / "rounds.jsonl") if one.phase == "fit"]
    assert {len(sites) for sites in asked} == {2}
    assert len(set(asked)) > 1


def test_each_site_alone_is_a_run_of_its_own(world: Path, tmp_path: Path) -> None:
    wanted = config(world, rounds=1, alone=True)
    simulation.simulate(wanted, write(tmp_path / "run", wanted))
    for site in ("north", "east", "south"):
        model = json.loads((tmp_path / "run" / "alone" / site / "final" / "model.json").read_text())
        assert model["provenance"]["sites"] == 1


def test_a_resumed_run_must_be_the_same_run(tmp_path: Path, world: Path) -> None:
    common = ["size=tiny", "run=one", f"runs={tmp_path}", f"world={world}", "tracking=none"]
    runs.create(common)
    with pytest.raises(ConfigError, match="there is such a run already"):
        runs.create(common)
    again, folder = runs.create(["resume=one", f"runs={tmp_path}"])
    assert folder == tmp_path / "one"
    assert again.world == str(world)
    with pytest.raises(ConfigError, match=r"seed=9: the run being resumed has 0"):
        runs.create(["resume=one", f"runs={tmp_path}", "seed=9"])
    with pytest.raises(ConfigError, match="no such run"):
        runs.create(["resume=two", f"runs={tmp_path}"])
