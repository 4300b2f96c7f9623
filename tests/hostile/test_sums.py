"""One person in a sum: a site with one subject of a rare modality, and a coordinator that adds and subtracts.

What a coordinator ever gets of the rare image is looked for in all sums, in what is settled from them, in the released
model and its bundle, and in MLflow's files.
"""

import contextlib
import copy
import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message, RecordDict
from safetensors.torch import load_file
from support.cohort.worlds import prepare_here, write_cohort
from support.model.models import signed
from support.rounds.federation import config
from support.rounds.spoilt import about, start

from server.journal import facts
from shared.base.errors import RunFailed
from shared.data.cohort import Cohort, cache_folder
from shared.data.slices import Slices
from shared.plan import tensors
from shared.plan.config import Config, Tracking
from shared.plan.settings import Choice
from shared.plan.training import PhaseTraining

pytestmark = [pytest.mark.usefixtures("probe"), pytest.mark.slow]

MODALITIES = ["T1", "T2", "FLAIR"]
PEOPLE = {"min-subjects": 5}  # what a deployed site asks for of itself
SITES = {
    "north": [("T1", "T2")] * 6 + [("T1", "T2", "FLAIR")],  # the last is alone in FLAIR
    "east": [("T1", "FLAIR")] * 6,
    "south": [("T1", "T2", "FLAIR")] * 6,
}
STEPS = PhaseTraining(rounds=1, steps=1, batch=14, lr=1e-4)  # of enough people
ACA = Choice(
    name="aca_diff",
    options={
        "modalities": MODALITIES,
        "size": "tiny",
        "text": "none",
        "anchor": "linear",
        "depth": 16,
        "height": 16,
        "width": 16,
    },
)
ACA_TRAINING = dict.fromkeys(("autoencode", "generate_T1", "generate_T2", "generate_FLAIR"), STEPS)
AMM_TRAINING = {"pretext": STEPS, "translate": STEPS}


def amm(**options: Any) -> Choice:
    return Choice(name="amm_diff", options={"modalities": MODALITIES, "size": "tiny", **options})


METHODS: dict[str, tuple[Choice, dict[str, PhaseTraining]]] = {
    "ACADiff, linear": (ACA, ACA_TRAINING),
    "AMM-Diff, ridge": (amm(anchor="ridge"), AMM_TRAINING),
    "AMM-Diff, mixture": (amm(anchor="mixture", components=3, iterations=4), AMM_TRAINING),
    "probe": (Choice(name="probe"), {"fit": STEPS}),
}


def world_of(root: Path, sites: Mapping[str, Any]) -> Path:
    for i, (site, patterns) in enumerate(sites.items()):
        prepare_here(write_cohort(root / "sites" / site, site, patterns, seed=i))
    return root


@pytest.fixture(scope="module")
def rare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world_of(tmp_path_factory.mktemp("rare"), SITES)


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same people; the rare image was never taken."""
    return world_of(tmp_path_factory.mktemp("without"), SITES | {"north": [("T1", "T2")] * 7})


def plan(world: Path, name: str, **federation: Any) -> Config:
    choice, training = METHODS[name]
    return dataclasses.replace(config(world, **federation), method=choice, training=training)


def recorded(folder: Path, wanted: Config, *, whole: bool = False) -> dict[tuple[str, str, int], RecordDict]:
    """The sums of every site, phase and round."""
    sent: dict[tuple[str, str, int], RecordDict] = {}
    phases = wanted.build_method().phases
    sums = [phase.name for phase in phases if phase.kind == "sums"]
    after = [phase.name for phase in phases[1 + max(i for i, phase in enumerate(phases) if phase.name in sums) :]]

    def keep(site: str, reply: Message) -> Message | None:
        found = about(reply)
        if found is not None and found[0] in sums:
            sent[site, *found] = copy.deepcopy(reply.content)
        if found is not None and found[0] in after and not whole:
            raise KeyboardInterrupt  # nothing is summed any more
        return reply

    sites = wanted.federation.sites or tuple(SITES)
    with contextlib.suppress(KeyboardInterrupt):
        start(folder, wanted, spoil=keep, policies=dict.fromkeys(sites, PEOPLE))
    return sent


def numbers(content: RecordDict) -> dict[str, torch.Tensor]:
    return {k: v.double() for k, v in dict(tensors.unpack(content.array_records["delta"])).items()}


def rare_image(world: Path, wanted: Config) -> np.ndarray:
    """The one FLAIR of north, on the grid: D H W."""
    cohort = Cohort.open(cache_folder(world / "sites" / "north", wanted.grid))
    slices = Slices(cohort, MODALITIES, split=None, only=lambda held: "FLAIR" in held)
    (subject,) = slices.subjects
    assert subject.split == "train"
    image = slices.volume(0).images_MDHW[2].double().numpy()
    return np.pad(image, [(0, 16 - len(image)), (0, 0), (0, 0)])  # as the method sees it: a slab of 16


@pytest.mark.parametrize("name", METHODS)
def test_what_a_site_sums_is_the_same_bits_without_the_one_rare_image(
    name: str, rare: Path, without: Path, tmp_path: Path
) -> None:
    """So whatever anybody computes of the sums, or of what is settled from them, it is not in there."""
    with_it = recorded(tmp_path / "with", plan(rare, name))
    without_it = recorded(tmp_path / "without", plan(without, name))
    assert len(with_it) >= 3
    for key, content in with_it.items():
        mine, other = numbers(content), numbers(without_it[key])
        for tensor, value in mine.items():
            assert torch.equal(value, other[tensor]), (key, tensor)
    assert any(value.abs().sum() > 0 for value in numbers(with_it[next(iter(with_it))]).values())


def test_the_template_is_no_bodys_volume(rare: Path, tmp_path: Path) -> None:
    """Before, north's sum of FLAIR was the rare volume, bit for bit, and it was in the released anchor."""
    wanted = dataclasses.replace(
        plan(rare, "ACADiff, linear"), tracking=Tracking(uri=f"sqlite:///{tmp_path}/mlflow.db")
    )
    sent = recorded(tmp_path / "run", wanted, whole=True)
    image = rare_image(rare, wanted)
    inside = image > 0
    final = load_file(tmp_path / "run" / "final" / "weights.safetensors")
    seen = {**{f"{k}": v for k, v in numbers(sent["north", "template", 0]).items()}, **final}
    volumes = [(n, v[m]) for n, v in seen.items() if v.ndim == 4 and v.shape[1:] == image.shape for m in range(3)]
    assert len(volumes) >= 9
    whole = numbers(sent["south", "template", 0])["x"][2].numpy()
    usual = np.corrcoef(image[inside], whole[inside])[0, 1]  # heads are alike
    varied = 0  # what is the same everywhere shows nobody
    for tensor, volume in volumes:
        found = volume.double().numpy()[inside]
        if found.std() > 0:
            varied += 1
            assert np.corrcoef(image[inside], found)[0, 1] < usual + 0.01, tensor
    assert varied >= 4, "T1 and T2 are there, in the site's sums and in the released anchor"
    rows = [
        row.astype(kind).tobytes()
        for row in image.reshape(-1, 16)
        if np.count_nonzero(row) >= 6
        for kind in (np.float16, np.float32, np.float64)
    ]
    made, _ = signed(tmp_path / "signed", tmp_path / "run" / "final")
    kept = [p for p in (*made.rglob("*"), *tmp_path.glob("mlflow*"), *(tmp_path / "run").glob("*")) if p.is_file()]
    assert len(kept) > 5
    assert [p.name for p in kept for row in rows if row in p.read_bytes()] == []


def test_a_voxel_that_one_persons_brain_alone_reaches_is_left_out(rare: Path, tmp_path: Path) -> None:
    """The sums of a modality that everybody has are over five people at every voxel, or blank."""
    sent = recorded(tmp_path / "run", plan(rare, "ACADiff, linear"))
    counts = numbers(sent["north", "template", 0])["n"] / 2**20
    assert set(counts.unique().tolist()) <= {0.0, *map(float, range(5, 20))}
    assert counts.max() >= 5


@pytest.mark.parametrize("name", ["probe", "AMM-Diff, mixture"])
def test_what_one_site_alone_has_is_neither_asked_for_nor_used(name: str, rare: Path, tmp_path: Path) -> None:
    """Of east and north, east alone has FLAIR in enough people: nobody sums it, and the anchor does not know it."""
    wanted = plan(rare, name, sites=("east", "north"), targets=("T1",))
    sent = recorded(tmp_path / "run", wanted)
    assert {site for site, *_ in sent} == {"east", "north"}
    for (site, *_), content in sent.items():
        sums = numbers(content)
        flair = sums["pixels_M"][2] if name == "probe" else sums["seen"][:, 4:]
        assert not flair.any(), site


def test_a_hostile_site_does_not_make_two_of_one(rare: Path, tmp_path: Path) -> None:
    """A site that sends what it was asked to leave out is one holder, and what one holds is not used."""

    def more(site: str, reply: Message) -> Message | None:
        if site == "east" and about(reply) == ("level", 0):
            sums = dict(tensors.unpack(reply.content.array_records["delta"]))
            sums["total_M"][1], sums["pixels_M"][1] = 2**20 * 900, 2**20 * 1000  # T2, which east does not have
            reply.content["delta"] = tensors.pack(sums)
        return reply

    sites = ("east", "north")
    start(
        tmp_path / "lied",
        plan(rare, "probe", sites=sites, targets=("T1",)),
        spoil=more,
        policies=dict.fromkeys(sites, PEOPLE),
    )
    start(tmp_path / "honest", plan(rare, "probe", sites=sites, targets=("T1",)), policies=dict.fromkeys(sites, PEOPLE))
    lied, honest = (load_file(tmp_path / n / "final" / "weights.safetensors") for n in ("lied", "honest"))
    assert honest["level.mean_M"][1] == 0.0
    assert lied["level.mean_M"][1] == 0.0


# --- two runs -------------------------------------------------------------------------------------------------------


def kept_on_disk(world: Path, disks: Path, **federation: Any) -> Config:
    return plan(
        world, "probe", disks=str(disks), min_subjects=5, sites=("north", "south"), targets=("T1",), **federation
    )


def go(folder: Path, wanted: Config) -> dict[str, str]:
    """Each site's part in the sums of a run."""
    start(folder, wanted)
    first = next(one for one in facts.read(folder / "rounds.jsonl") if one.phase == "level")
    return {site: fact.status for site, fact in first.sites.items()}


def test_two_runs_over_nearly_the_same_people_are_no_subtraction(tmp_path: Path) -> None:
    """One subject more between two runs was that subject; the same people, or many others, are none."""
    world = world_of(tmp_path / "world", {"north": [("T1", "T2")] * 5, "south": [("T1", "T2")] * 5})
    wanted = kept_on_disk(world, tmp_path / "disks", min_holders=1)
    assert go(tmp_path / "first", wanted) == {"north": "ok", "south": "ok"}
    assert go(tmp_path / "again", wanted) == {"north": "ok", "south": "ok"}
    write_cohort(tmp_path / "new", "more", [("T1", "T2")] * 5, seed=77)
    newcomers = sorted((tmp_path / "new").glob("sub-*"))
    north = world / "sites" / "north"
    shutil.copytree(newcomers[0], north / newcomers[0].name)
    prepare_here(north)
    with pytest.raises(
        RunFailed, match=r"fewer people than its policy asks for \(min_subjects=5\) from those of run first"
    ):
        go(tmp_path / "one-more", wanted)
    for folder in newcomers[1:]:
        shutil.copytree(folder, north / folder.name)
    prepare_here(north)
    assert go(tmp_path / "many-more", wanted) == {"north": "ok", "south": "ok"}
