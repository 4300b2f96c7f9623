"""Sites that were not there when a run began join it between rounds; one that was refused is not asked again."""

from collections.abc import Iterable
from pathlib import Path

import pytest
from flwr.app import Message
from support.rounds.federation import config
from support.rounds.spoilt import SpoiltGrid, about, start

from server.journal import facts


@pytest.mark.usefixtures("probe")
def test_a_site_that_comes_late_joins_the_next_round(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    online, asked = {"north", "east"}, []
    everybody = SpoiltGrid.get_node_ids

    def those_online(grid: SpoiltGrid) -> Iterable[int]:
        return [node for node in everybody(grid) if grid._names[node] in online]

    monkeypatch.setattr(SpoiltGrid, "get_node_ids", those_online)

    def watch(site: str, reply: Message) -> Message | None:
        if about(reply) is None:
            asked.append(site)
        if about(reply) == ("fit", 0):
            online.add("south")
        return reply

    folder = tmp_path / "run"
    start(folder, config(world), spoil=watch, policies={"south": {"min-subjects": "3"}})
    took_part = [sorted(one.sites) for one in facts.read(folder / "rounds.jsonl")]
    assert took_part == [["east", "north"], ["east", "north"], *[["east", "north", "south"]] * 2]
    assert sorted(asked) == ["east", "north", "south"]  # each once: nobody is asked what is known


@pytest.mark.usefixtures("probe")
def test_a_site_that_was_refused_is_not_asked_again(world: Path, tmp_path: Path) -> None:
    asked = []

    def watch(site: str, reply: Message) -> Message | None:
        if about(reply) is None:
            asked.append(site)
        return reply

    start(tmp_path / "run", config(world), spoil=watch, policies={"south": {"methods": "amm_diff"}})
    assert sorted(asked) == ["east", "north", "south"]
