"""Images prepared in different ways are not averaged unnoticed: the digest travels, and the handshake compares."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from support.cohort.worlds import write_cohort
from support.rounds.federation import config, write

from client.round.work import preparation_of
from server.federation.lead import Lead
from server.rounds import roster
from server.runs import simulation
from server.runs.local_grid import LocalGrid
from shared.base.errors import DataError, RunFailed, UpdateRejected
from shared.base.records import Inventory
from shared.data.bids import PREPARATION
from shared.data.cohort import Cohort, cache_folder, prepare
from shared.data.volumes import Grid
from shared.plan import wire

ONE, OTHER = "1" * 64, "2" * 64
PATTERNS = [("T1", "T2")] * 5


def inventories(**digests: str) -> dict[str, Inventory]:
    return {
        site: Inventory(site=site, schema="s", subjects=5, patterns={("T1",): 5}, preparation=digest)
        for site, digest in digests.items()
    }


@pytest.mark.parametrize(
    ("digests", "refused"),
    [
        ({"a": ONE, "b": ONE}, []),
        ({"a": "", "b": ""}, []),
        ({"a": OTHER, "b": ONE, "c": ONE}, ["a"]),
        ({"a": OTHER, "b": ONE}, ["b"]),  # among equals the first site by name
        ({"z": OTHER, "b": ONE}, ["z"]),
        ({"a": ONE, "b": "", "c": ONE}, ["b"]),
        ({}, []),
    ],
)
def test_the_most_common_preparation_is_the_runs(digests: Mapping[str, str], refused: list[str]) -> None:
    assert list(roster.mixed(inventories(**digests))) == refused


def test_a_site_that_takes_no_part_has_no_vote() -> None:
    found = inventories(a=OTHER, b=OTHER, c=ONE)
    for site in "ab":
        found[site] = Inventory(
            site=site, schema="s", subjects=0, patterns={}, refused={"fit": "no"}, preparation=OTHER
        )
    assert "c" not in roster.mixed(found)


def test_the_refusal_names_both_digests_and_what_to_do() -> None:
    why = roster.mixed(inventories(a=ONE, b=OTHER, c=ONE))["b"]
    assert ONE[:12] in why
    assert OTHER[:12] in why
    assert "mixed_preparation=true" in why


@pytest.mark.parametrize("said", ["", ONE])
def test_the_digest_crosses_the_wire(said: str) -> None:
    (inventory,) = inventories(a=said).values()
    assert wire.unpack_inventory(wire.pack_inventory(inventory)).preparation == said


@pytest.mark.parametrize("said", ["secret words", ONE[:-1], ONE + "\n", "A" * 64])
def test_nothing_but_a_digest_crosses_the_wire(said: str) -> None:
    (inventory,) = inventories(a=said).values()
    with pytest.raises(UpdateRejected, match="preparation"):
        wire.unpack_inventory(wire.pack_inventory(inventory))


def world(root: Path, **digests: str) -> Path:
    for i, (site, digest) in enumerate(digests.items()):
        folder = write_cohort(root / "sites" / site, site, PATTERNS, seed=i)
        if digest:
            (folder / PREPARATION).write_text(json.dumps({"digest": digest}))
        prepare(folder, Grid(height=16, width=16), workers=0)
    return root


def handshake(root: Path, folder: Path, **federation: bool) -> tuple[roster.Roster, list[str]]:
    wanted = config(root, **federation)
    write(folder, wanted)
    cohorts = simulation.find_cohorts(wanted)
    grid = LocalGrid(simulation.client_app(), simulation._node_configs(wanted, folder, cohorts))
    said: list[str] = []
    shake = roster.Handshake(
        grid=grid,
        settings=wanted.for_sites(),
        federation=wanted.federation,
        run=wanted.name_of(folder),
        lead=Lead.read(folder),
        say=said.append,
    )
    return shake.gather(), said


@pytest.mark.usefixtures("probe")
def test_a_site_prepared_unlike_the_others_is_refused_by_name(tmp_path: Path) -> None:
    root = world(tmp_path / "world", east=ONE, north=OTHER, south=ONE)
    found, said = handshake(root, tmp_path / "run")
    assert sorted(found.nodes) == ["east", "south"]
    assert OTHER[:12] in found.refusals["north"]
    assert any(line.startswith("refused: north") for line in said)
    allowed, _ = handshake(root, tmp_path / "allowed", mixed_preparation=True)
    assert sorted(allowed.nodes) == ["east", "north", "south"]


@pytest.mark.usefixtures("probe")
def test_two_sites_that_differ_are_no_quorum(tmp_path: Path) -> None:
    root = world(tmp_path / "world", east=ONE, north="")
    with pytest.raises(RunFailed, match="prepared as"):
        handshake(root, tmp_path / "run")


def test_the_cache_keeps_the_digest_and_notices_a_change(tmp_path: Path) -> None:
    root = world(tmp_path / "world", east=ONE, north="")
    caches = {site: cache_folder(root / "sites" / site, Grid(height=16, width=16)) for site in ("east", "north")}
    cohorts = {site: Cohort.open(cache) for site, cache in caches.items()}
    assert cohorts["east"].preparation == ONE
    assert cohorts["north"].preparation == ""
    both = preparation_of(list(cohorts.values()))
    assert both not in ("", ONE)
    assert wire.PREPARATION.fullmatch(both)
    path = caches["east"] / "cohort.json"
    path.write_text(path.read_text().replace(ONE, OTHER))
    with pytest.raises(DataError, match="changed"):
        Cohort.open(caches["east"])


def test_a_damaged_preparation_is_one_line(tmp_path: Path) -> None:
    root = world(tmp_path / "world", east="")
    (root / "sites" / "east" / PREPARATION).write_text('{"digest": "no"}')
    with pytest.raises(DataError, match=r"preparation\.json"):
        prepare(root / "sites" / "east", Grid(height=16, width=16), workers=0)
