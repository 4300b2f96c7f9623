"""Three sites with different modalities train ACADiff together, over the same grid as every run."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.cohort.worlds import write_world
from torch import Tensor

from client.round import work
from server.runs import runs
from server.runs.simulation import simulate
from shared.base.errors import ConfigError, RunFailed
from shared.base.vocabulary import TOGETHER, alone, beside
from shared.model.model import read_model
from shared.plan.config import load

pytestmark = pytest.mark.slow  # left out of `make fast`

MODALITIES = ("T1", "T2", "FLAIR")
TEACH = "{rounds:1,steps:3,batch:2,lr:0.002}"
BASE = (
    "method=aca_diff",
    "size=tiny",
    "tracking=none",
    "validation.every=0",
    "federation.min_cell=1",
    "grid.height=16",
    "grid.width=16",
    "method.depth=16",
    f"method.modalities=[{','.join(MODALITIES)}]",
    "training.generate_T1.steps=12",
    f"+training.generate_T2={TEACH}",
    f"+training.generate_FLAIR={TEACH}",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One site without FLAIR, one without T2, one with everything."""
    sites = {"one": [("T1", "T2")] * 2, "two": [("T1", "FLAIR")] * 2, "all": [MODALITIES] * 2}
    return write_world(tmp_path_factory.mktemp("chart") / "world", sites)


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
        *(f"autoencoders.{m}." for m in MODALITIES),
        "generators.T2.fusion.alone.T1",
        "generators.FLAIR.fusion.alone.T1",
        "generators.T1.fusion.alone.T2",
        "generators.T1.unet.",
        "anchor.mean_MDHW",
        "anchor.covariance_MMDHW",
        "seen.spread_MC",
        "made.spread_MC",
    ):
        names = [n for n in trained if n.startswith(part)]
        assert any(not torch.equal(trained[n], before[n]) for n in names), part


def test_a_path_that_one_site_alone_takes_is_not_released(world: Path, trained: dict[str, Tensor]) -> None:
    """T2 with FLAIR is at one site only: with min_holders=2 what only they train together keeps its first value."""
    two, before = run(world, "two", "federation.min_holders=2"), first(world)
    method = load([*BASE, f"world={world}"]).build_method()
    owners = method.owners(method.build(0), "generate_T1")
    single = [n for n, owner in owners.items() if owner in (TOGETHER, beside("T2"), beside("FLAIR"))]
    assert single
    assert all(torch.equal(two[n], before[n]) for n in single)
    assert any(not torch.equal(trained[n], before[n]) for n in single)
    both = [n for n, owner in owners.items() if owner == alone("T2")]  # at two sites
    assert any(not torch.equal(two[n], before[n]) for n in both)


def test_another_method_may_take_the_frozen_coders_and_leave_the_phase(world: Path, trained: dict[str, Tensor]) -> None:
    start = ("tuning.start=chart", "tuning.take=[autoencoders.*]", "tuning.skip=[autoencode]")
    ldm = run(world, "ldm", "method=ldm", "federation.min_holders=1", *start)
    kept = [n for n in trained if n.startswith(("autoencoders.", "anchor."))]  # the same subjects: the same sums
    assert all(torch.equal(ldm[n], trained[n]) for n in kept)
    counts = [n for n in trained if n.startswith(("anchor.subjects", "anchor.products", "anchor.voxels"))]
    assert len(counts) == 3
    assert not any(trained[n].any() for n in counts), "what is released counts no subjects"
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
        touched = {n: v + 1 if n == "made.spread_MC" else v for n, v in weights.items()}
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


def test_a_site_alone_leaves_the_phases_that_it_has_nothing_for(world: Path) -> None:
    own = run(
        world,
        "alone",
        "federation.sites=[one]",
        "federation.targets=[]",
        "federation.min_sites=1",
        "federation.min_holders=1",
    )
    before = first(world)
    left = [n for n in own if n.startswith("generators.FLAIR.")]
    assert all(torch.equal(own[n], before[n]) for n in left)
    assert any(not torch.equal(own[n], before[n]) for n in own if n.startswith("generators.T2."))
