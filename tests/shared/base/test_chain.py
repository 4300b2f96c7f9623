"""A chain shows a change from there on; its links can be under a key; what was half written is nobody's entry."""

import json
from pathlib import Path

import pytest

from shared.base import chain
from shared.base.chain import Chain
from shared.base.errors import ConfigError, DataError


@pytest.fixture
def kept(tmp_path: Path) -> Chain:
    made = Chain(tmp_path / "chain")
    for number in range(4):
        made.append(lambda before, last, n=number: {"n": n, "after": None if last is None else last["n"]})  # type: ignore[misc]
    return made


def test_each_entry_has_the_link_of_the_one_before(kept: Chain, tmp_path: Path) -> None:
    lines = (tmp_path / "chain").read_bytes().splitlines()
    assert [entry["after"] for entry in kept.entries()] == [None, 0, 1, 2]
    assert [entry["before"] for entry in kept.entries()] == [chain.GENESIS, *map(chain.link, lines[:-1])]
    assert kept.last() == list(kept.entries())[-1]


def test_no_byte_can_be_changed_but_in_the_last_line(kept: Chain, tmp_path: Path) -> None:
    whole = (tmp_path / "chain").read_bytes()
    for at in range(whole.rindex(b"\n", 0, -1)):
        (tmp_path / "chain").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(DataError, match="line"):
            list(kept.entries())


def test_what_is_half_written_is_cut_off_by_the_next(kept: Chain, tmp_path: Path) -> None:
    whole = (tmp_path / "chain").read_bytes()
    with (tmp_path / "chain").open("ab") as file:
        file.write(b'{"n": 4')
    assert len(list(kept.entries())) == 4
    kept.append(lambda before, last: {"n": 4})
    assert (tmp_path / "chain").read_bytes().startswith(whole)
    assert [entry["n"] for entry in kept.entries()] == [0, 1, 2, 3, 4]


def test_a_link_under_a_key_is_not_made_without_it() -> None:
    made = chain.link(b"row", b"key")
    assert chain.fits(made, chain.link(b"row", b"key"))
    for other in (chain.link(b"row"), chain.link(b"row", b"kez"), chain.link(b"rov", b"key"), "\udcff", None):
        assert not chain.fits(other, made)


def test_a_chain_is_exported_as_json_or_as_a_table(kept: Chain, tmp_path: Path) -> None:
    every = list(kept.entries())
    chain.export(tmp_path / "x.json", every, ("n",), [])
    assert json.loads((tmp_path / "x.json").read_text()) == every
    chain.export(tmp_path / "x.csv", every, ("n",), [{"n": entry["n"]} for entry in every])
    assert (tmp_path / "x.csv").read_bytes() == b"n\r\n0\r\n1\r\n2\r\n3\r\n"
    with pytest.raises(ConfigError, match=r"must end in \.csv or \.json"):
        chain.export(tmp_path / "x.txt", every, ("n",), [])
