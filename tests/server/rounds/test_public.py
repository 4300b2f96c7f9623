"""What comes with Lacuna: a model of made heads, from which a run may start, and which leaves as a bundle."""

import json
from pathlib import Path

import pytest
import torch

from server.rounds import prior
from shared.model.model import PUBLIC, SHIPPED, read_model, run_folder
from shared.plan.config import load
from shared.trust import claims


def test_it_is_small_reads_and_says_what_it_was_trained_on() -> None:
    files = [path for path in SHIPPED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 5e6
    model = read_model(SHIPPED / "final")
    assert model.record["card"]["trained_on"] == "made heads alone; no image of a person"
    assert claims.read(model.record["provenance"])
    assert all(torch.isfinite(value).all() for value in model.net.state_dict().values() if value.is_floating_point())
    text = "".join(path.read_text() for path in files if path.suffix == ".json")
    assert "/tmp" not in text, "a path of the machine that made it"
    assert "/work" not in text


def test_a_run_starts_from_it_privately_too(tmp_path: Path) -> None:
    config = load(["size=small", f"runs={tmp_path}", f"tuning.start={PUBLIC}", "privacy=dp"])
    found = prior.find(config)
    assert found is not None
    assert found.data is not None, "its data are public"
    own = config.build_method().build(0).state_dict()
    begun = prior.initial(found, config, own)
    assert set(begun) == set(own)
    assert any(not torch.equal(begun[name], own[name]) for name in own)
    assert all(value.dtype == own[name].dtype for name, value in begun.items())


def test_a_run_of_ones_own_with_that_name_comes_first(tmp_path: Path) -> None:
    assert run_folder(tmp_path, PUBLIC) == SHIPPED
    assert run_folder(tmp_path, "other") == tmp_path / "other"
    (tmp_path / PUBLIC).mkdir()
    assert run_folder(tmp_path, PUBLIC) == tmp_path / PUBLIC


def test_another_method_is_told_why_not(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="method is amm_diff"):
        prior.find(load(["method=any2all", "size=tiny", f"runs={tmp_path}", f"tuning.start={PUBLIC}"]))


def test_its_config_is_that_of_a_run() -> None:
    said = json.loads((SHIPPED / "config.json").read_text())
    assert (said["run"], said["world"], said["runs"]) == (PUBLIC, None, "runs")
