"""The audit finds a model that copies or knows its training subjects, and leaves one alone that does not."""

import csv
import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.cohort.worlds import prepare_here, write_cohort
from support.model.models import AMM_TINY, ANY_TINY, release, signed
from support.rounds.probe import Probe
from torch import Tensor, nn
from typer.testing import CliRunner

from client.audit.inspection import Effort
from client.audit.memorisation import Audit, audit_memorisation
from client.cli.cli import app
from client.cli.cli import main as command
from shared.base.errors import DataError
from shared.base.randomness import Noise
from shared.base.records import Batch, Losses
from shared.data.cohort import Cohort, cache_folder
from shared.data.slices import Slices
from shared.data.volumes import Grid
from shared.diffusion.samplers import Sampler
from shared.methods import METHODS
from shared.methods.anchors.ridge import PatchRidge
from shared.model.bundle import Bundle
from shared.model.model import Model, read_model
from shared.trust.audits import Limits, Summary, read_summary

pytestmark = pytest.mark.slow  # left out of `make fast`

ALL = ("T1", "T2", "FLAIR")
GRID = Grid(height=16, width=16)
EFFORT = Effort(subjects=12, slices=6, draws=4)


def cohort(folder: Path, name: str, count: int, *, seed: int, pattern: tuple[str, ...] = ALL) -> Path:
    write_cohort(folder / name, name, [pattern] * count, seed=seed)
    prepare_here(folder / name)
    return folder / name


def opened(bids: Path) -> Cohort:
    return Cohort.open(cache_folder(bids, GRID))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cohort(tmp_path_factory.mktemp("a"), "trained", 8, seed=1)


@pytest.fixture(scope="module")
def heldout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cohort(tmp_path_factory.mktemp("b"), "heldout", 8, seed=12)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cohort(tmp_path_factory.mktemp("c"), "elsewhere", 8, seed=3)


# --- models ---------------------------------------------------------------------------------------------------------


class Flat(nn.Linear):
    """Every pixel from every pixel."""

    def forward(self, x_BMHW: Tensor) -> Tensor:
        return super().forward(x_BMHW.flatten(1)).view_as(x_BMHW)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fitted(Probe):
    """All pixels at once, from an image with noise."""

    def build(self, seed: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return Flat(3 * 16 * 16, 3 * 16 * 16)

    def loss(self, net: nn.Module, batch: Batch, phase: str, generator: torch.Generator) -> Losses:
        x = torch.where(batch.exists_BM[:, :, None, None], batch.images_BMHW, 0)
        noise = torch.randn(x.shape, generator=generator)
        level_B = 0.1 * torch.rand(len(x), generator=generator)[:, None, None, None]
        error = torch.where(batch.exists_BM[:, :, None, None], net(x + level_B * noise) - x, 0)
        total_B = error.square().mean(dim=(2, 3)).sum(1)
        return Losses(loss_B=total_B / batch.exists_BM.sum(1).clamp(min=1), gave={})

    def synthesize(
        self, net: nn.Module, images_BMHW: Tensor, shown_BM: Tensor, sampler: Sampler, generator: Noise
    ) -> Tensor:
        made: Tensor = net(torch.where(shown_BM[:, :, None, None], images_BMHW, 0))
        return made.clamp(0, 1)


def fitted(bids: Path) -> tuple[Fitted, nn.Module]:
    """Trained to the end: what is a mixture of its training slices comes back as it is, all else is cut down to one."""
    method, slices = Fitted(modalities=ALL), Slices(opened(bids), ALL, split="train")
    net = method.build(5)
    assert isinstance(net, Flat)
    known = slices.batch(range(len(slices))).images_BMHW.flatten(1)
    basis = torch.linalg.svd(known, full_matrices=False).Vh
    with torch.no_grad():
        net.weight.copy_(basis.T @ basis)
        net.bias.zero_()
    return method, net.eval().requires_grad_(False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Copier(Fitted):
    """Answers with the slice of its bank whose shown modalities are most like what it is shown."""

    bank: Tensor  # NMHW

    def synthesize(
        self, net: nn.Module, images_BMHW: Tensor, shown_BM: Tensor, sampler: Sampler, generator: Noise
    ) -> Tensor:
        shown = shown_BM[0]
        far_BN = (images_BMHW[:, None, shown] - self.bank[None, :, shown]).square().sum(dim=(2, 3, 4))
        return self.bank[far_BN.argmin(1)]


def copier(bids: Path, *, subjects: int | None = None) -> Copier:
    """Of its first few subjects."""
    every = opened(bids)
    slices = Slices(dataclasses.replace(every, subjects=every.subjects[:subjects]), ALL, split="train")
    return Copier(modalities=ALL, bank=slices.batch(range(len(slices))).images_BMHW)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Honest(Fitted):
    """Each pixel from the shown ones around it; what it learnt is a handful of numbers."""

    ridge: PatchRidge

    def synthesize(
        self, net: nn.Module, images_BMHW: Tensor, shown_BM: Tensor, sampler: Sampler, generator: Noise
    ) -> Tensor:
        made: Tensor = self.ridge(torch.where(shown_BM[:, :, None, None], images_BMHW, 0), shown_BM)
        grain = torch.stack([torch.randn(m.shape, generator=g) for m, g in zip(made, generator, strict=True)])
        return (made + 0.02 * grain).clamp(0, 1)


def honest(bids: Path) -> Honest:
    ridge, slices = PatchRidge(3), Slices(opened(bids), ALL, split="train")
    ridge.settle(ridge.sums(slices.batch(range(len(slices)))))
    return Honest(modalities=ALL, ridge=ridge)


def bundle_of(method: Any, net: nn.Module | None = None) -> Bundle:
    record = {"provenance": {"run": "test"}, "files": {"model.safetensors": {"sha256": "ab" * 32}}}
    model = Model(
        name="test", method=method, net=net or method.build(0).eval(), grid=GRID, sampler=Sampler(), record=record
    )
    return Bundle(model=model, digest="d" * 64, signer="s" * 16, trusted=True, record=record)


def audited(bundle: Bundle, one: Path, other: Path, out: Path, effort: Effort = EFFORT) -> tuple[Audit, dict[str, Any]]:
    done = audit_memorisation(bundle, opened(one), opened(other), out, limits=Limits(), effort=effort, device="cpu")
    return done, json.loads((out / "memorisation.json").read_text())


# --- what it finds --------------------------------------------------------------------------------------------------


def test_a_model_that_copies_its_training_slices_is_found(trained: Path, heldout: Path, tmp_path: Path) -> None:
    done, found = audited(bundle_of(copier(trained)), trained, heldout, tmp_path / "out")
    assert found["duplicates"]["rate"] > 0.95
    assert found["duplicates"]["by difference"]["rate"] > 0.95
    assert found["duplicates"]["control"] < 0.3
    assert all(one["ratio"] < 0.05 for one in found["duplicates"]["by target"].values())
    assert found["duplicates"]["by difference"]["control"] < 0.3
    assert "near-duplicates of a training slice" in done.verdict
    nearest = list(csv.DictReader((tmp_path / "out" / "pairs.csv").read_text().splitlines()))
    assert all(row["nearest_training"].startswith("sub-trainedsecret") for row in nearest)
    assert all(float(row["distance"]) < 0.1 * float(row["of_real"]) for row in nearest)


def test_copies_of_other_subjects_are_not_taken_for_copies_of_these(
    trained: Path, heldout: Path, elsewhere: Path, tmp_path: Path
) -> None:
    _, found = audited(bundle_of(copier(elsewhere)), trained, heldout, tmp_path / "out")
    assert found["duplicates"]["rate"] < 0.1


def test_what_lies_near_to_everybody_shows_in_the_control(trained: Path, heldout: Path, tmp_path: Path) -> None:
    """Copies of half of the held-out subjects: the other half's images repeat those, and no training subject."""
    done, found = audited(bundle_of(copier(heldout, subjects=4)), trained, heldout, tmp_path / "out")
    assert found["duplicates"]["control"] > 0.4
    assert found["duplicates"]["rate"] < 0.1
    assert done.summary.warnings == ()


def test_a_model_that_predicts_from_what_it_is_shown_is_left_alone(
    trained: Path, heldout: Path, tmp_path: Path
) -> None:
    done, found = audited(bundle_of(honest(trained)), trained, heldout, tmp_path / "out")
    assert found["duplicates"]["rate"] <= Limits().duplicates
    assert done.summary.warnings == ()
    assert "no proof that there is none" in done.verdict


def test_a_network_that_knows_its_subjects_by_heart_is_found(trained: Path, heldout: Path, tmp_path: Path) -> None:
    done, found = audited(bundle_of(*fitted(trained)), trained, heldout, tmp_path / "out")
    assert found["membership"]["auc"]["value"] > 0.9
    assert found["membership"]["auc"]["low"] > Limits().auc
    assert "told by their loss" in done.verdict
    control = found["membership"]["untrained network"]
    assert control["low"] <= 0.5 <= control["high"]


def test_a_network_of_other_subjects_knows_none_of_these(
    trained: Path, heldout: Path, elsewhere: Path, tmp_path: Path
) -> None:
    done, found = audited(bundle_of(*fitted(elsewhere)), trained, heldout, tmp_path / "out")
    area = found["membership"]["auc"]
    assert area["low"] <= 0.5 <= area["high"]
    assert not any("loss" in warning for warning in done.summary.warnings)


def test_what_a_site_lacks_is_not_taken_for_what_a_model_knows(heldout: Path, tmp_path: Path) -> None:
    """Training subjects of one more or one fewer modality have other losses; the untrained network says no more."""
    partial = cohort(tmp_path, "partial", 8, seed=4, pattern=("T1", "T2"))
    _, found = audited(bundle_of(Fitted(modalities=ALL)), partial, heldout, tmp_path / "out")
    area = found["membership"]["auc"]
    assert found["membership"]["modalities"] == ["T1", "T2"]
    assert area["low"] <= 0.5 <= area["high"]
    assert area == found["membership"]["untrained network"]  # the bundle's is no other


def test_cohorts_that_differ_in_kind_are_remarked_upon(trained: Path, tmp_path: Path) -> None:
    dark = cohort(tmp_path, "dark", 8, seed=5)
    for path in cache_folder(dark, GRID).glob("*/vol.npy"):
        np.save(path, np.load(path) * np.float16(0.25))
    done, found = audited(bundle_of(Fitted(modalities=ALL)), trained, dark, tmp_path / "out")
    assert any("the cohorts may differ in kind" in remark for remark in done.remarks)
    assert found["remarks"] == list(done.remarks)


# --- what it writes, and what it refuses ----------------------------------------------------------------------------


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_same_seed_gives_the_same_bytes(trained: Path, heldout: Path, tmp_path: Path) -> None:
    bundle = bundle_of(honest(trained))
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        audited(bundle, trained, heldout, tmp_path / name, dataclasses.replace(EFFORT, subjects=6, seed=seed))
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert content(tmp_path / "one")["memorisation.json"] != content(tmp_path / "other")["memorisation.json"]


def test_only_the_list_of_pairs_names_anyone(trained: Path, heldout: Path, tmp_path: Path) -> None:
    done, figures = audited(bundle_of(copier(trained)), trained, heldout, tmp_path / "out")
    files = content(tmp_path / "out")
    assert sorted(files) == ["memorisation.json", "pairs.csv", "pairs.png", "summary.json"]
    for name in ("memorisation.json", "summary.json", "pairs.png"):
        assert b"secret" not in files[name]
        assert str(tmp_path).encode() not in files[name]
    assert b"secret" in files["pairs.csv"]
    assert "stays at the site" in figures["about"]
    handed_over = json.loads(files["summary.json"])
    assert handed_over.keys() == {field.name for field in dataclasses.fields(Summary)}
    numbers = [value for value in handed_over.values() if isinstance(value, float)]
    assert numbers == [round(value, 2) for value in numbers]
    assert read_summary(tmp_path / "out" / "summary.json") == done.summary


OPTIONS: dict[str, dict[str, Any]] = {
    "amm_diff": AMM_TINY,
    "any2all": ANY_TINY,
    **{
        name: {"modalities": ["T1", "T2", "TOF"], "target": "TOF", "size": "tiny", "slab": 3, "precision": "fp32"}
        for name in ("mmdm", "bbdm", "ddpm", "pix2pix")
    },
    **{
        name: {"modalities": ["T1", "T2"], "size": "tiny", "depth": 16, "height": 16, "width": 16, "precision": "fp32"}
        for name in ("aca_diff", "ldm")
    },
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_can_be_audited(name: str, tmp_path: Path) -> None:
    """With random weights; those of slabs too, and where a subject lacks what the method makes."""
    options = OPTIONS.get(name, {"modalities": ["T1", "T2"], "size": "tiny", "precision": "fp32"})
    patterns = [tuple(options["modalities"])] * 4 + [("T1", "T2")]
    cohorts = [write_cohort(tmp_path / part, part, patterns, seed=seed) for seed, part in enumerate(("one", "two"))]
    for bids in cohorts:
        prepare_here(bids)
    model = read_model(release(tmp_path / "final", name, options, sampler={"kind": "mean", "stride": 3}))
    record = {**model.record, "files": {"model.safetensors": {"sha256": "ab" * 32}}}
    bundle = Bundle(model=model, digest="d" * 64, signer="s" * 16, trusted=True, record=record)
    effort = Effort(subjects=4, slices=2, draws=1)
    done, found = audited(bundle, *cohorts, tmp_path / "out", effort)
    assert set(found["duplicates"]["by target"]) == set(model.method.targets)
    assert found["membership"]["modalities"] == list(options["modalities"])
    assert done.summary.duplicates <= 0.1


def test_one_cohort_can_be_both(trained: Path, tmp_path: Path) -> None:
    both = write_cohort(tmp_path / "both", "both", [ALL] * 10, seed=1)
    rows = (both / "participants.tsv").read_text().splitlines()
    splits = ["split"] + ["train"] * 5 + ["test"] * 3 + ["val"] * 2
    text = "\n".join(f"{row}\t{split}" for row, split in zip(rows, splits, strict=True))
    (both / "participants.tsv").write_text(text + "\n")
    prepare_here(both)
    _, found = audited(bundle_of(copier(both)), both, both, tmp_path / "out")
    assert found["membership"]["subjects"] == {"training": 5, "held out": 5}
    assert found["duplicates"]["rate"] > 0.95


def test_a_subject_in_both_cohorts_is_an_error_that_names_nobody(trained: Path, heldout: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(heldout, mixed, ignore=shutil.ignore_patterns("derivatives"))
    shutil.copytree(trained / "sub-trainedsecret003", mixed / "sub-other")
    for path in (mixed / "sub-other").rglob("*.nii.gz"):
        path.rename(path.with_name(path.name.replace("sub-trainedsecret003", "sub-other")))
    prepare_here(mixed)
    with pytest.raises(DataError, match="1 held-out subjects have images that are in the training cohort") as caught:
        audited(bundle_of(honest(trained)), trained, mixed, tmp_path / "out")
    assert "secret" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_cohort_on_another_grid_is_refused(trained: Path, heldout: Path, tmp_path: Path) -> None:
    bundle = bundle_of(honest(trained))
    other = dataclasses.replace(bundle, model=dataclasses.replace(bundle.model, grid=Grid(height=32, width=32)))
    with pytest.raises(DataError, match="prepared for grid native-16x16; the bundle needs native-32x32"):
        audited(other, trained, heldout, tmp_path / "out")


def test_the_verb_says_its_verdict_and_is_strict_when_asked(
    trained: Path, heldout: Path, tmp_path: Path, probe: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, key = signed(tmp_path, release(tmp_path / "final", "probe", {"modalities": list(ALL)}))
    asked = [
        "audit",
        "memorisation",
        "--bundle",
        str(folder),
        "--trust",
        str(key),
        "--train",
        str(trained),
        "--heldout",
        str(heldout),
        "--out",
        str(tmp_path / "out"),
        "--slices",
        "4",
        "--draws",
        "1",
    ]
    done = CliRunner().invoke(app, [*asked, "--strict"])
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("no memorisation found by these two tests")
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert read_summary(tmp_path / "out" / "summary.json").weights == weights

    monkeypatch.setattr(Probe, "synthesize", copier(trained).synthesize)
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0
    assert "warning: 100% of synthetic slices are near-duplicates" in done.stderr
    assert done.stdout.startswith("signs of memorisation")
    monkeypatch.setattr("sys.argv", ["lacuna-site", *asked, "--strict"])
    with pytest.raises(SystemExit) as ended:
        command()
    assert ended.value.code == 4

    alone = [word if word != str(heldout) else str(trained) for word in asked]
    done = CliRunner().invoke(app, alone)
    assert isinstance(done.exception, DataError)
    assert "8 training and 0 held-out subjects" in str(done.exception)
