"""The brain is found by the rule for its kind of image, or taken as it comes; unpinned weights are never loaded."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from support.cohort.heads import bare_mask, head

from client.ingest.image import atlas, bet, bias, brain
from client.ingest.image.brain import Strip
from shared.base.errors import ConfigError, DataError
from shared.data.volumes import Volume

pytestmark = pytest.mark.slow  # left out of `make fast`


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def first(volume: Volume, modality: str, options: Strip | None = None, weights: Path | None = None) -> brain.Found:
    return next(brain.find_brain(volume, modality, options or Strip(), weights))


@pytest.mark.parametrize("modality", ["T1", "T2"])
def test_a_surface_grown_within_a_head_is_the_brains(modality: str) -> None:
    whole = head(modality, bare=False)
    found = first(whole, modality)
    assert found.how.startswith("surface")
    assert dice(found.mask_DHW, bare_mask(whole)) > 0.9


def test_ct_is_what_lies_within_the_skull() -> None:
    whole = head("CT", bare=False)
    found = first(whole, "CT")
    assert found.how.startswith("within the skull")
    assert dice(found.mask_DHW, bare_mask(whole)) > 0.9


def test_ct_without_bone_has_no_brain() -> None:
    soft = head("CT", bare=False)
    with pytest.raises(DataError, match="no bone"):
        first(Volume(data_DHW=np.minimum(soft.data_DHW, 100), affine=soft.affine), "CT")


def test_pet_is_where_uptake_is() -> None:
    whole = head("FDG", bare=False)
    assert dice(first(whole, "FDG").mask_DHW, bare_mask(whole)) > 0.85


@pytest.mark.parametrize("modality", ["T1", "FLAIR", "CT", "FDG"])
def test_what_was_stripped_before_is_taken_as_it_comes(modality: str) -> None:
    found = first(head(modality), modality)
    assert found.how == "stripped before"
    assert dice(found.mask_DHW, atlas.load().brain_DHW) > 0.99


def test_a_head_on_a_blank_background_is_not_taken_for_stripped() -> None:
    whole = head("T1", bare=False)
    blank = np.where(whole.data_DHW > 20, whole.data_DHW, 0).astype(np.float32)
    assert brain.stripped_before(Volume(data_DHW=blank, affine=whole.affine), "T1") is None
    small = Volume(data_DHW=blank, affine=whole.affine @ np.diag([0.85, 0.85, 0.85, 1]))  # below the limit of volume
    assert brain.stripped_before(small, "T1") is None


def test_shading_is_taken_out() -> None:
    shaded, white = head("T1", shading=0.3), atlas.load().white_DHW > 0.9

    def spread(data: np.ndarray) -> float:
        return float(data[white].std() / data[white].mean())

    assert spread(bias.correct(shaded, bias.N4()).data_DHW) < 0.6 * spread(shaded.data_DHW)


def test_a_closed_surface_is_filled_exactly() -> None:
    points, triangles = bet.icosphere(4)
    assert len(points) == 2562
    radius, affine = 21.3, np.diag([1.0, 1.5, 2.0, 1.0])
    affine[:3, 3] = (-30, -30, -30)
    mask = bet.fill(points * radius, triangles, (30, 40, 60), affine)
    assert mask.sum() * 3.0 == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.01)


class Bright(torch.nn.Module):
    """A network that calls the brighter half of its input brain."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(50 * (x - 0.05))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "strip.pt2"
    x = torch.zeros(1, 1, 32, 32, 32)
    dims = {0: None, 1: None, **dict.fromkeys((2, 3, 4), torch.export.Dim.AUTO)}  # type: ignore[attr-defined]
    torch.export.save(torch.export.export(Bright(), (x,), dynamic_shapes=(dims,)), path)
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_pinned_network_finds_the_brain(weights: Path) -> None:
    """The brain in noise, not on a blank background: else it would be taken as stripped."""
    bare = head("T1")
    noisy = bare.data_DHW + 2 * np.random.default_rng(0).random(bare.data_DHW.shape)
    volume = Volume(data_DHW=noisy.astype(np.float32), affine=bare.affine)
    found = first(volume, "T1", Strip(tool="weights", sha256=digest(weights), spacing_mm=2.0), weights)
    assert found.how == "weights"
    assert dice(found.mask_DHW, atlas.load().brain_DHW) > 0.95


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_torchscript_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "strip.pt"
    torch.jit.save(torch.jit.script(Bright()), path)  # type: ignore[no-untyped-call]
    network = brain.load_weights(path, digest(path))
    assert network(torch.ones(1, 1, 2, 2, 2)).shape == (1, 1, 2, 2, 2)


def test_weights_that_are_not_the_pinned_ones_are_not_loaded(weights: Path, tmp_path: Path) -> None:
    changed = tmp_path / "strip.pt2"
    changed.write_bytes(weights.read_bytes() + b"\0")
    with pytest.raises(ConfigError, match="not the pinned"):
        brain.load_weights(changed, digest(weights))


@pytest.mark.parametrize("content", [b"", b"not a network"])
def test_a_pinned_file_that_is_no_network_is_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "strip.pt"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="no TorchScript"):
        brain.load_weights(path, digest(path))


@pytest.mark.parametrize("sha256", [None, "", "abc"])
def test_weights_must_be_pinned(sha256: str | None) -> None:
    with pytest.raises(ConfigError, match="sha256"):
        Strip(tool="weights", sha256=sha256)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read"):
        brain.load_weights(tmp_path / "none.pt", "0" * 64)
    with pytest.raises(ConfigError, match="name the weight file"):
        brain.load_weights(None, "0" * 64)
