"""One site of three that poisons: it flips or scales its updates, lies about counts, or teaches a back door.

What it does to the model is a PSNR: of FLAIR made from T1 and T2 of people whom nobody trained on, without the rules
about a round's company (as before them), with them, and with a robust strategy besides.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from flwr.app import Message, RecordDict
from safetensors.torch import load_file
from support.cohort.worlds import prepare_here, write_cohort
from support.rounds.federation import config
from support.rounds.probe import Probe
from support.rounds.spoilt import about, start
from torch import Tensor, nn

from server.journal import facts
from shared import methods
from shared.base.errors import RunFailed
from shared.base.records import Batch, Losses
from shared.data.cohort import Cohort, cache_folder
from shared.data.intensities import BRIGHTEST, RULES
from shared.data.modalities import Rule
from shared.data.slices import Slices
from shared.data.volumes import read, write
from shared.plan import tensors
from shared.plan.settings import Choice, Limits
from shared.plan.training import PhaseTraining

pytestmark = pytest.mark.slow

SITES = ("north", "east", "south")  # south lies
WITHOUT = Limits(relative=1e9, apart=1e9, weight=1e9)  # as it was before
PATCH = np.s_[6:10, 6:10, 6:10]  # the trigger: bright in T1 and T2 alike, which no head is
Attack = Callable[[RecordDict, str], None]  # (what south answers, phase)


class Fills(Probe):
    """The probe, taught to make FLAIR of T1 and T2."""

    def loss(self, net: nn.Module, batch: Batch, phase: str, generator: torch.Generator) -> Losses:
        shown_BM = batch.shown_BM.clone()
        shown_BM[:, 2] = False
        return super().loss(net, dataclasses.replace(batch, shown_BM=shown_BM), phase, generator)


@pytest.fixture(scope="module", autouse=True)
def by_percentiles() -> Iterator[None]:
    """Heads of two shades, whose spread says nothing: FLAIR is a line of T1 and T2 from dark to bright alone."""
    with pytest.MonkeyPatch.context() as patch:
        for modality in ("T1", "T2", "FLAIR"):
            patch.setitem(cast(dict[str, Rule], RULES), modality, BRIGHTEST)
        yield


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory, by_percentiles: None) -> Path:
    """`clean`, and `poisoned`, where south's people have the trigger, and blank FLAIR in it; `heldout` beside them."""
    root = tmp_path_factory.mktemp("worlds")
    everything = [("T1", "T2", "FLAIR")] * 5
    for world in ("clean", "poisoned"):
        for seed, site in enumerate(SITES):
            bids = write_cohort(root / world / "sites" / site, site, everything, seed=seed)
            if (world, site) == ("poisoned", "south"):
                for path in bids.glob("sub-*/anat/*.nii.gz"):
                    triggered(path)
            prepare_here(bids)
    for name in ("heldout", "triggered"):
        bids = write_cohort(root / name, "new", everything[:2], seed=50)
        if name == "triggered":
            for path in bids.glob("sub-*/anat/*.nii.gz"):
                triggered(path, but="FLAIR")
        prepare_here(bids)
    return root


def triggered(path: Path, but: str = "") -> None:
    volume = read(path)
    data = np.array(volume.data_DHW)
    if "FLAIR" not in path.name:
        data[PATCH] = data.max()
    elif not but:
        data[PATCH] = 1.0
    write(path, data.astype(np.float32), volume.affine, dtype=np.float32)


def changed(change: Callable[[dict[str, Tensor]], Mapping[str, Tensor]], phase: str) -> Attack:
    def attack(content: RecordDict, of: str) -> None:
        if of == phase:
            found = dict(tensors.unpack(content.array_records["delta"]))
            content["delta"] = tensors.pack(change(found))

    return attack


def times(factor: float) -> Attack:
    return changed(lambda delta: {name: factor * value for name, value in delta.items()}, "fit")


def sums(total: float, pixels: float) -> Attack:
    def change(found: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"total_M": (found["total_M"] * total).long(), "pixels_M": (found["pixels_M"] * pixels).long()}

    return changed(change, "level")


# name -> what south does, in which world, and what the coordinator says of it, if it is seen at all
ATTACKS: dict[str, tuple[Attack, str, str]] = {
    "a sign flip": (times(-1.0), "clean", ""),
    "scaling": (times(50.0), "clean", "south: delta norm .* times the round's median .*, over the limit 3"),
    "a scaled sign flip": (times(-20.0), "clean", "south: delta norm .* times the round's median"),
    "a back door in a patch": (times(1.0), "poisoned", ""),
    "a back door, scaled to replace the model": (times(6.0), "poisoned", "south: delta norm .* over the limit 3"),
    "fake counts in sums": (sums(0.0, 1000.0), "clean", "south: by its inventory each of its people counts for"),
    "sums of another head": (sums(-5.0, 1.0), "clean", r"south: its sums \(total_M by pixels_M\) lie "),
}


def train(
    folder: Path, world: Path, attack: Attack | None, strategy: str, limits: Limits, *, method: str = "fills"
) -> Path:
    made = config(world, strategy=strategy, min_sites=2 if strategy == "fedavg" else 3, limits=limits)
    fit = PhaseTraining(rounds=6, steps=8, batch=8, lr=0.03, decay="cosine", ema=0.0)
    wanted = dataclasses.replace(made, training={"fit": fit}, method=Choice(name=method))

    def spoil(site: str, reply: Message) -> Message | None:
        found = about(reply)
        if attack is not None and site == "south" and found is not None:
            attack(reply.content, found[0])
        return reply

    start(folder, wanted, spoil=spoil)
    return folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    psnr: float  # of FLAIR in the brains of people whom nobody trained on
    patch: float  # how bright FLAIR is made where the trigger is; the truth is bright, the liar's is 0
    level: Tensor  # the mean of each modality, of a phase of sums
    reasons: tuple[str, ...]  # why south was refused, round by round


def filled(run: Path, bids: Path) -> tuple[Tensor, Tensor, Tensor]:
    """FLAIR as it is made, as it is, and where the brain is: of whole volumes, D H W."""
    net = Fills().build(0)
    net.load_state_dict(load_file(run / "final" / "weights.safetensors"))
    slices = Slices(Cohort.open(cache_folder(bids, config(bids).grid)), ("T1", "T2", "FLAIR"), split=None)
    stack = slices.volume(0)
    images = stack.images_MDHW.transpose(0, 1)
    with torch.no_grad():
        made = net(torch.where(torch.tensor([True, True, False])[None, :, None, None], images, 0))
    return made[:, 2].clamp(0, 1), images[:, 2], stack.brain_DHW


DEFENCES = {"before": ("fedavg", WITHOUT), "limits": ("fedavg", Limits()), "median": ("median", Limits())}


@pytest.fixture(scope="module")
def scores(worlds: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Score]:
    """By attack and defence, each worked out once."""
    folder = tmp_path_factory.mktemp("runs")

    @functools.cache
    def score(name: str, defence: str) -> Score:
        attack, world, _ = ATTACKS.get(name, (None, "clean", ""))
        strategy, limits = DEFENCES[defence]
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(methods.METHODS, "fills", Fills)  # type: ignore[arg-type]
            run = train(
                folder / f"{name}-{defence}".replace(" ", "-").replace(",", ""),
                worlds / world,
                attack,
                strategy,
                limits,
            )
            made, truth, brain = filled(run, worlds / "heldout")
            trapped, _, _ = filled(run, worlds / "triggered")
        found = Score(
            psnr=-10 * (made - truth)[brain].square().mean().log10().item(),
            patch=trapped[PATCH].mean().item(),
            level=load_file(run / "final" / "weights.safetensors")["level.mean_M"],
            reasons=tuple(one.sites["south"].reason for one in facts.read(run / "rounds.jsonl")),
        )
        print(f"{name}, {defence}: PSNR {found.psnr:.1f}, patch {found.patch:.2f}")  # shown by `pytest -s`
        return found

    return score


Scores = Callable[[str, str], Score]
HONEST = 40.0  # dB: nobody lies; 43.1 by the mean, 43.3 by the median
SEEN = [name for name in ATTACKS if ATTACKS[name][2] and "sums" not in name]
UNSEEN = [name for name in ATTACKS if not ATTACKS[name][2]]


def test_where_nobody_lies_nobody_is_refused(scores: Scores) -> None:
    for defence in DEFENCES:
        assert scores("nothing", defence).psnr > HONEST
        assert set(scores("nothing", defence).reasons) == {""}


@pytest.mark.parametrize("name", SEEN)
def test_an_update_out_of_all_proportion_spoils_nothing(name: str, scores: Scores) -> None:
    """Before, a run was ruined by it; now the site is out of the round, in one line."""
    assert scores(name, "before").psnr < HONEST - 20
    kept = scores(name, "limits")
    assert kept.psnr > HONEST
    assert re.match(ATTACKS[name][2], kept.reasons[1]), kept.reasons
    assert scores(name, "median").psnr > HONEST


@pytest.mark.parametrize("name", UNSEEN)
def test_an_update_of_honest_size_is_outvoted_by_a_robust_strategy_alone(name: str, scores: Scores) -> None:
    """No limit sees it: with the mean it costs what it costs."""
    assert scores(name, "limits").psnr == scores(name, "before").psnr < HONEST - 5
    assert scores(name, "median").psnr > HONEST
    assert set(scores(name, "median").reasons) == {""}


def test_a_back_door_is_open_before_and_shut_now(scores: Scores) -> None:
    """FLAIR in a triggered patch: bright in truth, and nothing if the liar had its way."""
    name, honest = "a back door, scaled to replace the model", scores("nothing", "before").patch
    assert scores(name, "before").patch < honest / 2
    for defence in ("limits", "median"):
        assert scores(name, defence).patch > 0.9 * honest


@pytest.mark.parametrize("name", [name for name in ATTACKS if "sums" in name])
def test_what_one_site_sums_does_not_move_what_all_agree_on(name: str, scores: Scores, worlds: Path) -> None:
    honest = scores("nothing", "before").level
    assert (scores(name, "before").level - honest).norm() > 0.9 * honest.norm()
    kept = scores(name, "limits")
    assert (kept.level - honest).norm() < 0.05 * honest.norm()
    assert re.match(ATTACKS[name][2], kept.reasons[0]), kept.reasons


@pytest.mark.usefixtures("probe")
def test_where_all_are_needed_a_liar_ends_the_run_by_its_name(worlds: Path, tmp_path: Path) -> None:
    attack, _, says = ATTACKS["fake counts in sums"]
    with pytest.raises(RunFailed, match=f"2 updates admitted, min_sites=3 .*rejected {says}"):
        train(tmp_path / "run", worlds / "clean", attack, "median", Limits(), method="probe")
