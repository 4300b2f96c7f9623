"""The site's cache tells nothing without its key, and believes nothing that it did not write."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from shared.base.errors import ConfigError, DataError
from shared.clinical import Chart
from shared.clinical.cache import FOLDER, Cache
from shared.clinical.prompted import Prompted

CHART = Chart(diagnosis="AD", mmse=22, adas13=28, cdrsb=4.5)
WIDTH = 8


class Model:
    """Counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, texts: list[str]) -> torch.Tensor:
        self.asked += texts
        return torch.tensor([[float(sum(map(ord, text)) % 97 + i) for i in range(WIDTH)] for text in texts])


def encode(model: Model, state: Path | None, id: str = "model one") -> torch.Tensor:
    cache = Cache(state, id) if state is not None else None
    return Prompted(id, WIDTH, model, cache).encode([CHART], ["FDG"], [("T1",)])[0]


def test_a_prompt_is_embedded_once_and_cached_tokens_are_the_same_bits(tmp_path: Path) -> None:
    first, later = Model(), Model()
    tokens = encode(first, tmp_path)
    assert sorted(first.asked) == [
        "AD patient",
        "ADAS13=28",
        "CDR-SOB=4.5",
        "Generate FDG PET",
        "MMSE=22",
        "from T1-weighted MRI",
    ]
    assert torch.equal(encode(later, tmp_path), tokens)
    assert later.asked == []
    assert torch.equal(encode(Model(), None), tokens)


def test_nothing_in_the_folder_tells_a_prompt_or_a_token(tmp_path: Path) -> None:
    tokens = encode(Model(), tmp_path)
    files = list((tmp_path / FOLDER).iterdir())
    assert len(files) == 7
    assert (tmp_path / FOLDER).stat().st_mode & 0o777 == 0o700
    told = b"".join(path.name.encode() + path.read_bytes() for path in files)
    for word in ("AD", "patient", "MMSE", "22", "ADAS", "CDR", "FDG", "model one"):
        if len(word) > 3:
            assert word.encode() not in told
    flat = tokens.flatten()
    for row in range(len(flat) - 3):
        assert struct.pack("<4f", *flat[row : row + 4].tolist()) not in told
    for path in files:
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.name == "key" or len(path.name) == 64
    other = tmp_path / "other"
    encode(Model(), other)
    assert {p.name for p in (other / FOLDER).iterdir()} & {p.name for p in files} == {"key"}


@pytest.mark.parametrize("harm", ["another key", "no key", "damaged", "cut", "swapped", "empty"])
def test_what_cannot_be_believed_is_made_anew(tmp_path: Path, harm: str) -> None:
    tokens = encode(Model(), tmp_path)
    folder = tmp_path / FOLDER
    entries = sorted(p for p in folder.iterdir() if p.name != "key")
    if harm == "another key":
        Cache(tmp_path / "other", "model one")
        (folder / "key").write_bytes((tmp_path / "other" / FOLDER / "key").read_bytes())
    elif harm == "no key":
        (folder / "key").write_bytes(b"nonsense")
    elif harm == "swapped":
        contents = [p.read_bytes() for p in entries]
        for path, content in zip(entries, contents[1:] + contents[:1], strict=True):
            path.write_bytes(content)
    else:
        for path in entries:
            content = path.read_bytes()
            flipped = content[:40] + bytes([content[40] ^ 1]) + content[41:]
            path.write_bytes({"damaged": flipped, "cut": content[:-8], "empty": b""}[harm])
    model = Model()
    assert torch.equal(encode(model, tmp_path), tokens)
    assert len(model.asked) == 6
    again = Model()
    encode(again, tmp_path)
    assert again.asked == []


def test_another_provider_does_not_see_these_entries(tmp_path: Path) -> None:
    encode(Model(), tmp_path)
    other = Model()
    encode(other, tmp_path, "model two")
    assert len(other.asked) == 6


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    Cache(tmp_path, "one")
    (tmp_path / FOLDER / "key").chmod(0o644)
    with pytest.raises(ConfigError, match="mode 0644 lets others at it"):
        Cache(tmp_path, "one")


@pytest.mark.parametrize("bad", [torch.zeros(6, WIDTH), torch.full((6, WIDTH), torch.nan), torch.ones(6, 3)])
def test_what_is_no_embedding_is_not_kept(tmp_path: Path, bad: torch.Tensor) -> None:
    encoder = Prompted("one", WIDTH, lambda _: bad, Cache(tmp_path, "one"))
    with pytest.raises(DataError, match="text encoder one: gave"):
        encoder.encode([CHART], ["FDG"], [("T1",)])
    assert [p.name for p in (tmp_path / FOLDER).iterdir()] == ["key"]


def test_a_disk_that_is_full_costs_the_cache_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path, "one")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    cache.write("MMSE=22", np.ones(WIDTH, np.float32))
    assert cache.read("MMSE=22") is None
    assert [p.name for p in (tmp_path / FOLDER).iterdir()] == ["key"]
