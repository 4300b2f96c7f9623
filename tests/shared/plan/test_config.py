"""A run's text to its settings: what a size stands for is in its method's YAML, and every key can still be given."""

import numpy as np
import pytest
import yaml

from shared.base.errors import ConfigError
from shared.base.options import build
from shared.methods import METHODS
from shared.plan.config import load
from shared.plan.settings import CONFIGS, RunSettings, load_sampler
from shared.plan.training import PhaseTraining

pytestmark = pytest.mark.slow  # left out of `make fast`

SIZES = ("tiny", "small", "paper")


@pytest.mark.parametrize("name", METHODS)
def test_a_methods_yaml_holds_the_training_of_every_size(name: str) -> None:
    sizes = yaml.safe_load((CONFIGS / "method" / f"{name}.yaml").read_text(encoding="utf-8"))["sizes"]
    assert tuple(sizes) == SIZES
    for size, its in sizes.items():
        made = load([f"method={name}", f"size={size}"])
        for phase, values in its["training"].items():
            assert made.training[phase] == build(PhaseTraining, values, phase)
        assert (made.grid.height, made.grid.width) == (its["grid"]["height"], its["grid"]["width"])
        assert {"size": size, **its.get("method", {})}.items() <= dict(made.method.options).items()
        assert "sizes" not in made.method.options


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", METHODS)
def test_every_size_takes_a_brain_in_voxels_of_1_mm_and_one_in_those_of_a_clinic(name: str, size: str) -> None:
    """A grid of voxels refused every real scan: a brain is 180 mm long, 145 wide and 150 high."""
    grid, slab = (made := load([f"method={name}", f"size={size}"])).grid, made.build_method().slab
    assert grid.spacing_mm is not None
    assert grid.slice_mm is not None
    for z, y, x in ((1.0, 1.0, 1.0), (5.0, 0.5, 0.5)):
        brain = np.zeros([round(200 / mm) for mm in (z, y, x)], bool)
        brain[tuple(slice(round(10 / mm), round((10 + n) / mm)) for mm, n in ((z, 150), (y, 180), (x, 145)))] = True
        placement = grid.place(brain, np.diag([x, y, z, 1.0]))
        assert placement.step_zyx[1] * y <= 1.05 * grid.spacing_mm  # all but as fine as it was asked for
        assert placement.grid_DHW[0] * grid.slice_mm == pytest.approx(150, abs=grid.slice_mm)
        assert name not in ("aca_diff", "ldm") or placement.grid_DHW[0] <= slab  # whole in one piece


def test_what_a_size_stands_for_can_be_changed_added_to_and_taken_from_another() -> None:
    assert load(["size=tiny", "training.translate.lr=0.5"]).training["translate"].lr == 0.5
    more = "+training.generate_T2={rounds: 7, steps: 1, batch: 1, lr: 0.1}"
    assert load(["method=aca_diff", "method.modalities=[T1,T2]", more]).training["generate_T2"].rounds == 7
    assert load(["method=ldm", "training=aca_diff_tiny", "method.cube=3"]).method.options["cube"] == 3
    assert "pretext" not in load(["~training.pretext", "method.pretext=false"]).training


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("method.sizes.tiny.training.translate.lr=1", "method.sizes: can't be changed"),
        ("training=amm_diff_huge", "aca_diff_paper"),
        ("training.translate.lrr=1", "lrr"),
    ],
)
def test_a_wrong_key_is_named(override: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load([override])


def test_settings_of_a_runs_own_file_are_those_that_its_sites_are_sent() -> None:
    made = load(["size=tiny", "federation.min_cell=9", "federation.keep_local=[a.*]", "seed=4"])
    sent = RunSettings.parse(made.for_sites().text())
    assert sent == made.for_sites()
    assert (sent.min_cell, sent.keep_local, sent.seed, sent.method) == (9, ("a.*",), 4, made.method)


def test_a_sampler_is_read_without_hydra_as_with_it() -> None:
    methods = ("amm_diff", "any2all", "mmdm")  # between them they take every kind
    taken = {kind: name for name in methods for kind in load([f"method={name}"]).build_method().samplers}
    for path in (CONFIGS / "sampler").glob("*.yaml"):
        found = load_sampler(path.stem)
        assert found == load([f"sampler={path.stem}", f"method={taken[found.kind]}"]).sampler
    with pytest.raises(ConfigError, match="sampler=best: must be one of ancestral, bridge"):
        load_sampler("best")
