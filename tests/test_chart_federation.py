"""Three sites with different modalities train ACADiff together, over the same grid as every run."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from client import work
from server import runs
from server.simulation import simulate
from shared.config import load
from shared.data.phantom import PhantomOptions, write_world
from shared.errors import ConfigError, RunFailed
from shared.model import read_model
from shared.vocabulary import TOGETHER, alone, beside

HIDDEN = ("FLAIR", "T2S", "CT")
BASE = ("method=aca_diff", "size=tiny", "tracking=none", "validation.every=0", "federation.min_cell=1")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, mni_cache: Path) -> Path:
    """One site without AV45, one without FDG, one with everything."""
    out = tmp_path_factory.mktemp("chart") / "world"
    options = PhantomOptions(
        family="dementia", subjects=2, heldout=0, coordinator=0, size=32, sites=("site-a", "site-b", "site-c"),
        missing=((*HIDDEN, "AV45"), (*HIDDEN, "FDG"), HIDDEN),
    )  # fmt: skip
    write_world(options, out, workers=1, cache=mni_cache)
    return out


def run(world: Path, name: str, *overrides: str) -> dict[str, Tensor]:
    config = load([*BASE, f"world={world}", f"runs={world.parent}/runs", f"run={name}", *overrides])
    folder = Path(config.runs) / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(config.text())
    simulate(config, folder)
    return load_file(folder / "final" / "weights.safetensors")


@pytest.fixture(scope="module")
def trained(world: Path) -> dict[str, Tensor]:
    return run(world, "chart", "federation.min_holders=1")


def first(world: Path) -> dict[str, Tensor]:
    method = load([*BASE, f"world={world}"]).build_method()
    return method.build(0).state_dict()


def test_every_autoencoder_and_every_path_that_a_site_can_take_is_trained(
    world: Path, trained: dict[str, Tensor]
) -> None:
    before = first(world)
    for part in (
        *(f"autoencoders.{m}." for m in ("T1", "FDG", "AV45")),
        "generators.FDG.fusion.alone.T1", "generators.AV45.fusion.alone.T1", "generators.T1.fusion.alone.FDG",
        "generators.T1.unet.", "mean_MCDHW", "spread_MC",
    ):  # fmt: skip
        names = [n for n in trained if n.startswith(part)]
        assert any(not torch.equal(trained[n], before[n]) for n in names), part


def test_a_path_that_one_site_alone_takes_is_not_released(world: Path, trained: dict[str, Tensor]) -> None:
    """FDG with AV45 is at site-c only: with min_holders=2 what only they train together keeps its first value."""
    two, before = run(world, "two", "federation.min_holders=2"), first(world)
    method = load([*BASE, f"world={world}"]).build_method()
    owners = method.owners(method.build(0), "generate_T1")
    single = [n for n, owner in owners.items() if owner in (TOGETHER, beside("FDG"), beside("AV45"))]
    assert single
    assert all(torch.equal(two[n], before[n]) for n in single)
    assert any(not torch.equal(trained[n], before[n]) for n in single)
    both = [n for n, owner in owners.items() if owner == alone("FDG")]  # site-a and site-c
    assert any(not torch.equal(two[n], before[n]) for n in both)


def test_another_method_may_take_the_frozen_coders_and_leave_the_phase(world: Path, trained: dict[str, Tensor]) -> None:
    start = ("tuning.start=chart", "tuning.take=[autoencoders.*,mean_MCDHW,spread_MC]", "tuning.skip=[autoencode]")
    ldm = run(world, "ldm", "method=ldm", "federation.min_holders=1", *start)
    kept = [n for n in trained if n.startswith("autoencoders.") or n in ("mean_MCDHW", "spread_MC")]
    assert all(torch.equal(ldm[n], trained[n]) for n in kept)
    model = read_model(Path(str(world.parent / "runs" / "ldm" / "final")))
    assert model.name == "ldm"
    with pytest.raises(ConfigError, match="names no tensor"):
        run(world, "wrong", "method=ldm", "tuning.start=chart", "tuning.take=[nothing.*]")
    with pytest.raises(ConfigError, match="does not fit"):
        run(world, "unfit", "method=ldm", "tuning.start=chart", "tuning.take=[generators.*]")


def test_a_latent_of_another_autoencoder_is_refused_by_name(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A site whose frozen weights were changed under it trains a generator in a language of its own."""
    honest = work.frozen

    def other(weights: dict[str, Tensor], owners: object) -> str:
        touched = {n: v + 1 if n == "spread_MC" else v for n, v in weights.items()}
        return honest(touched, owners)  # type: ignore[arg-type]

    monkeypatch.setattr(work, "frozen", other)
    with pytest.raises(RunFailed, match="trained around frozen weights"):
        run(world, "mixed", "federation.min_holders=1", "federation.retries=0")


def test_a_stopped_run_goes_on_to_the_same_bits(world: Path, trained: dict[str, Tensor]) -> None:
    config = load([*BASE, f"world={world}", f"runs={world.parent}/runs", "run=again", "federation.min_holders=1"])
    folder = Path(config.runs) / "again"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config.text())
    stops = iter(range(3))
    honest = work.do_round

    def stopping(*args: object) -> object:
        if next(stops, None) is None:
            raise KeyboardInterrupt
        return honest(*args)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(work, "do_round", stopping)
        with pytest.raises(KeyboardInterrupt):
            simulate(config, folder)
    assert not runs.finished(folder)
    simulate(dataclasses.replace(config), folder)
    again = load_file(folder / "final" / "weights.safetensors")
    assert all(torch.equal(again[n], value) for n, value in trained.items())
