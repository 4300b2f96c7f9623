"""Checkpoints: whole or not at all, newest that verifies, nothing believed unchecked."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.disk.disks import full

from shared.base import checkpoint
from shared.base.disk.tensors import load, lying_in
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


def test_the_file_is_what_safetensors_writes_and_each_look_reads_one_tensor_anew(tmp_path: Path) -> None:
    every = {
        "b": torch.randn(3, 2),
        "a": torch.arange(4),
        "z": torch.tensor([True, False, True]),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(1.5),
        "half": torch.randn(3).bfloat16(),
        "wide": torch.randn(2, 2).double().T,
    }
    checkpoint.save_tensors(tmp_path / "ours", every)
    save_file({name: value.contiguous() for name, value in every.items()}, tmp_path / "theirs")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    lying = lying_in(tmp_path / "ours")
    assert all(torch.equal(lying[name], value) for name, value in every.items())
    lying["b"].zero_()
    assert torch.equal(lying["b"], every["b"])


@pytest.mark.parametrize(
    "content", [b"", b"\x02" + bytes(7) + b"[]", b"\xff" * 8, bytes(8), b"\x02" + bytes(7) + b"{x"]
)
def test_a_file_that_is_no_list_of_tensors_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(DataError, match="x: is no list of tensors"):
        lying_in(tmp_path / "x")


def test_a_file_that_was_cut_short_is_noticed_when_it_is_read(tmp_path: Path) -> None:
    checkpoint.save_tensors(tmp_path / "x", TENSORS)
    (tmp_path / "x").write_bytes((tmp_path / "x").read_bytes()[:-4])
    lying = lying_in(tmp_path / "x")
    assert torch.equal(lying["state/b"], TENSORS["state/b"])
    with pytest.raises(DataError, match="before what should be there"):
        lying["weights/a"]


def test_a_network_takes_weights_one_by_one_and_no_others(tmp_path: Path) -> None:
    net, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    checkpoint.save_tensors(tmp_path / "x", other.state_dict())
    load(net, lying_in(tmp_path / "x"))
    assert torch.equal(net.weight, other.weight)
    with pytest.raises(DataError, match="1 tensors of another network, such as"):
        load(net, {"weight": other.weight})
    with pytest.raises(DataError, match=r"weight has shape \(2,\), the network's is \(2, 3\)"):
        load(net, {"weight": torch.zeros(2), "bias": torch.zeros(2)})
