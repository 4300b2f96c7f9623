"""Checkpoints: whole or not at all, newest that verifies, nothing believed unchecked."""

from pathlib import Path

import pytest
import torch
from support.disk.disks import full

from shared.base import checkpoint
from shared.base.errors import DataError

TENSORS = {"weights/a": torch.randn(3), "state/b": torch.arange(4)}


def test_round_trip_is_bit_exact(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c", TENSORS, {"round": 3})
    tensors, record = checkpoint.load(tmp_path / "c")
    assert all(torch.equal(tensors[k], TENSORS[k]) for k in TENSORS)
    assert record["round"] == 3


def test_only_the_newest_two_are_kept(tmp_path: Path) -> None:
    for step in range(5):
        checkpoint.save_step(tmp_path, step, TENSORS, {"round": step})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000003", "000004"]


@pytest.mark.parametrize("harm", ["truncate", "flip", "no record", "empty record"])
def test_a_damaged_newest_one_falls_back_to_the_one_before(tmp_path: Path, harm: str) -> None:
    for step in range(2):
        checkpoint.save_step(tmp_path, step, TENSORS, {"round": step})
    newest = tmp_path / "000001"
    data = (newest / "tensors.safetensors").read_bytes()
    if harm == "truncate":
        (newest / "tensors.safetensors").write_bytes(data[:-1])
    elif harm == "flip":
        (newest / "tensors.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif harm == "no record":
        (newest / "record.json").unlink()
    else:
        (newest / "record.json").write_text("")
    found = checkpoint.load_latest(tmp_path)
    assert found is not None
    assert found[1]["round"] == 0


def test_a_kill_in_the_middle_of_a_save_leaves_the_last_one(tmp_path: Path) -> None:
    checkpoint.save_step(tmp_path, 0, TENSORS, {"round": 0})
    half = tmp_path / ".000001.partial"
    half.mkdir()
    (half / "tensors.safetensors").write_bytes(b"half")
    found = checkpoint.load_latest(tmp_path)
    assert found is not None
    assert found[1]["round"] == 0
    checkpoint.save_step(tmp_path, 1, TENSORS, {"round": 1})
    assert not half.exists()


def test_a_full_disk_is_an_oserror_and_leaves_the_last_one_and_its_own_room(tmp_path: Path) -> None:
    checkpoint.save_step(tmp_path, 0, TENSORS, {"round": 0})
    with full(), pytest.raises(OSError, match=r"tensors\.safetensors"):
        checkpoint.save_step(tmp_path, 1, {"weights/a": torch.zeros(10_000)}, {"round": 1})
    assert [p.name for p in tmp_path.iterdir()] == ["000000"]
    found = checkpoint.load_latest(tmp_path)
    assert found is not None
    assert found[1]["round"] == 0


def test_nothing_there_is_none_and_all_damaged_is_an_error(tmp_path: Path) -> None:
    assert checkpoint.load_latest(tmp_path / "nowhere") is None
    checkpoint.save_step(tmp_path, 0, TENSORS, {})
    (tmp_path / "000000" / "tensors.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match="sha256"):
        checkpoint.load_latest(tmp_path)
