"""AD against HC on completed sets: who loses what, the classifier, and what may be said of it (ACADiff Table 1).

What of that table can't be so: docs/methods/aca_diff.md, "The diagnosis task".

All ways of completing a set are compared on the same draws: the same subjects are trained, validated and tested on, the
same lose the same modalities, the classifier starts from the same weights and sees the same subjects in the same order.
What a subject loses is drawn once; at a higher rate those of a lower one have lost it too, so completions are shared.
Accuracy, sensitivity and specificity come from one threshold, chosen on the validation subjects; the paper's can't.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.base.errors import ConfigError, DataError
from shared.base.options import require
from shared.base.randomness import generator, seed_of
from shared.base.vocabulary import Modality

FOLDS, REPEATS = 5, 4  # of the leak's probe
PROBE = 4  # voxels along an edge that the probe sees
PROBE_STRENGTH = 1.0  # of its ridge, as a part of the features' mean square

Size: TypeAlias = Literal["tiny", "small", "paper"]
Read: TypeAlias = Callable[[int], Tensor]  # a subject's number -> its completed volume MDHW, of one shape for all


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A 3D DenseNet, what it sees, and how long it is trained: the same for every way and rate."""

    edge: int | None  # voxels that a volume is pooled to along each axis; None: full resolution
    blocks: tuple[int, ...]
    features: int
    growth: int
    steps: int
    batch: int
    lr: float


SIZES: dict[Size, Shape] = {
    "tiny": Shape(edge=16, blocks=(2, 2), features=8, growth=4, steps=24, batch=8, lr=3e-3),
    "small": Shape(edge=32, blocks=(6, 12, 24, 16), features=16, growth=8, steps=30, batch=12, lr=2e-3),
    "paper": Shape(edge=None, blocks=(6, 12, 24, 16), features=64, growth=32, steps=4000, batch=4, lr=1e-4),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DiagnosisOptions:
    size: Size = "small"
    ill: Literal["AD", "MCI"] = "AD"
    well: Literal["HC", "MCI"] = "HC"
    rates: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)  # share of training subjects that lose something; 0 is the oracle
    generations: int = 3  # each with its own split, samples of the generators and classifier
    test: float = 0.3  # share of all subjects
    val: float = 0.2  # share of the others
    test_loses: bool = False  # validation and test subjects lose as training subjects do
    steps: int | None = None  # of training; null: the size's

    def __post_init__(self) -> None:
        require(self.ill != self.well, "well", self.well, f"another one than ill={self.ill}")
        require(len(self.rates) >= 1, "rates", self.rates, "one or more")
        for rate in self.rates:
            require(0 < rate < 1, "rates", rate, "in (0, 1); 0 is always there as the oracle")
        require(sorted(set(self.rates)) == list(self.rates), "rates", self.rates, "rising")
        require(self.generations >= 1, "generations", self.generations, "1 or more")
        require(0 < self.test < 1, "test", self.test, "in (0, 1)")
        require(0 < self.val < 1, "val", self.val, "in (0, 1)")
        require(self.steps is None or self.steps >= 1, "steps", self.steps, "1 or more")

    @property
    def shape(self) -> Shape:
        return SIZES[self.size]


# --- who loses what -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """One generation's subjects, by number, and who of them loses what, from which rate on."""

    train: tuple[int, ...]
    val: tuple[int, ...]
    test: tuple[int, ...]
    loses: tuple[frozenset[int], ...]  # of every subject: rows of modalities
    turn: tuple[float, ...]  # of every subject: it loses at every rate above this; 1 for those that never do

    def lost(self, subject: int, rate: float) -> frozenset[int]:
        return self.loses[subject] if self.turn[subject] < rate else frozenset()


def draw(ill: Sequence[bool], modalities: Sequence[Modality], options: DiagnosisOptions, seed: int, g: int) -> Draw:
    """Split and losses are stratified by diagnosis. What a subject loses is the same in every generation."""
    train, val, test = _split(ill, options, seed, g)
    turn = [1.0] * len(ill)
    for name, part in (("train", train), ("val", val), ("test", test)):
        for of, word in ((True, options.ill), (False, options.well)):
            members = [i for i in part if ill[i] == of]
            order = torch.randperm(len(members), generator=generator("cpu", seed, "turn", g, name, word)).tolist()
            for rank, place in enumerate(order if name == "train" or options.test_loses else []):
                turn[members[place]] = (rank + 0.5) / len(members)
    loses = tuple(_loses(len(modalities), seed, i) for i in range(len(ill)))
    return Draw(train=train, val=val, test=test, loses=loses, turn=tuple(turn))


def _split(
    ill: Sequence[bool], options: DiagnosisOptions, seed: int, g: int
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    for of, word in ((True, options.ill), (False, options.well)):
        members = [i for i, found in enumerate(ill) if found == of]
        tested = round(options.test * len(members))
        held = round(options.val * (len(members) - tested))
        if min(tested, held, len(members) - tested - held) < 2:
            raise DataError(
                f"the study has {len(members)} complete {word} subjects: at least 2 must be trained, "
                "validated and tested on each"
            )
        order = torch.randperm(len(members), generator=generator("cpu", seed, "split", g, word)).tolist()
        named = [members[place] for place in order]
        for part, some in zip(
            parts, (named[tested + held :], named[tested : tested + held], named[:tested]), strict=True
        ):
            part += some
    train, val, test = (tuple(sorted(part)) for part in parts)
    return train, val, test


def _loses(modalities: int, seed: int, subject: int) -> frozenset[int]:
    """One or two, never all."""
    if modalities < 2:
        raise ConfigError(f"modalities={modalities}: a subject can't lose its only one")
    drawn = generator("cpu", seed, "lost", subject)
    count = int(torch.randint(1, min(2, modalities - 1) + 1, (1,), generator=drawn))
    return frozenset(torch.randperm(modalities, generator=drawn)[:count].tolist())


# --- the classifier -------------------------------------------------------------------------------------------------


def pooled(images_MDHW: Tensor, edge: int | None) -> Tensor:
    """What the classifier sees of a volume."""
    if edge is None:
        return images_MDHW
    shape = images_MDHW.shape[1:]
    if min(shape) < edge:  # a small grid is drawn larger first
        images_MDHW = F.interpolate(images_MDHW[None], [max(n, edge) for n in shape], mode="trilinear")[0]
    return F.adaptive_avg_pool3d(images_MDHW, edge)


def build(modalities: int, shape: Shape, seed: int) -> nn.Module:
    """DenseNet-121 (6, 12, 24, 16 layers; Huang et al. 2017) at paper and, a quarter as wide, at small."""
    from monai.networks.nets.densenet import DenseNet  # takes seconds to import

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net: nn.Module = DenseNet(
            3, modalities, 1, init_features=shape.features, growth_rate=shape.growth, block_config=shape.blocks
        )
    return net


def fit(
    read: Read,
    train: Sequence[int],
    ill: Sequence[bool],
    shape: Shape,
    *,
    steps: int,
    seed: int,
    device: torch.device,
) -> nn.Module:
    """As many of either class in every batch, some of them mirrored; equal seeds and equal subjects, equal batches."""
    classes = [[i for i in train if ill[i] == of] for of in (True, False)]
    if not all(classes):
        which = "ill" if not classes[0] else "well"
        raise DataError(f"no {which} subject is left to train on: take lower rates, or more subjects")
    net = build(len(read(train[0])), shape, seed_of(seed, "weights")).to(device).train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=shape.lr, weight_decay=1e-2)
    falling = torch.optim.lr_scheduler.OneCycleLR(optimiser, shape.lr, total_steps=steps + 1)
    drawn = generator("cpu", seed, "batches")
    half = shape.batch // 2
    target_B = torch.tensor([1.0] * half + [0.0] * half, device=device)
    for _ in range(steps):
        chosen = [one[int(torch.randint(len(one), (1,), generator=drawn))] for one in classes for _ in range(half)]
        mirrored_B = (torch.rand(2 * half, generator=drawn) < 0.5).tolist()
        x_BMDHW = torch.stack([read(i).flip(-1) if m else read(i) for i, m in zip(chosen, mirrored_B, strict=True)])
        loss = F.binary_cross_entropy_with_logits(net(x_BMDHW.to(device))[:, 0], target_B)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        falling.step()
    batches = [list(train[start : start + shape.batch]) for start in range(0, len(train), shape.batch)]
    batches = [batch for batch in batches if len(batch) > 1 or len(train) == 1]
    torch.optim.swa_utils.update_bn((torch.stack([read(i) for i in batch]) for batch in batches), net, device)
    return net.eval()


def predict(net: nn.Module, read: Read, subjects: Sequence[int], shape: Shape, device: torch.device) -> Tensor:
    """A score per subject, the higher the more likely ill."""
    with torch.no_grad():
        parts = [subjects[start : start + shape.batch] for start in range(0, len(subjects), shape.batch)]
        return torch.cat([net(torch.stack([read(i) for i in part]).to(device))[:, 0].double().cpu() for part in parts])


# --- what is said of it ---------------------------------------------------------------------------------------------


class Judged(NamedTuple):
    """All at one threshold."""

    acc: float
    auc: float  # over all thresholds
    sen: float
    spe: float
    threshold: float


def judge(val: Tensor, val_ill: Sequence[bool], test: Tensor, test_ill: Sequence[bool]) -> Judged:
    """The threshold is the validation subjects', the rest the test subjects'."""
    threshold = youden(val, val_ill)
    called, truth = test.double() > threshold, torch.tensor(test_ill, dtype=torch.bool)
    sen, spe = called[truth].double().mean().item(), (~called[~truth]).double().mean().item()
    acc = (called == truth).double().mean().item()
    assert min(sen, spe) - 1e-9 <= acc <= max(sen, spe) + 1e-9, "accuracy is a weighted mean of the two"
    return Judged(acc=acc, auc=auc(test, test_ill), sen=sen, spe=spe, threshold=threshold)


def youden(scores: Tensor, ill: Sequence[bool]) -> float:
    """Halfway between two scores, where sensitivity + specificity is largest; of several such the one nearest to 0."""
    truth = torch.tensor(ill, dtype=torch.bool)
    held = torch.unique(scores.double())
    between = (held[:-1] + held[1:]) / 2
    cuts = torch.cat([held[:1] - 1, between, held[-1:] + 1])
    above_CN = scores.double() > cuts[:, None]
    found_C = above_CN[:, truth].double().mean(1) + (~above_CN[:, ~truth]).double().mean(1)
    best = cuts[found_C >= found_C.max() - 1e-12]
    return float(best[best.abs().argmin()])


def auc(scores: Tensor, ill: Sequence[bool]) -> float:
    """How often an ill subject scores above a well one; a tie counts half."""
    truth = torch.tensor(ill, dtype=torch.bool)
    over = scores.double()[truth][:, None] - scores.double()[~truth][None]
    return ((over > 0).double() + 0.5 * (over == 0).double()).mean().item() if over.numel() else math.nan


def probe(features_NF: Tensor, ill: Sequence[bool], seed: int) -> float:
    """How well a linear rule tells the diagnosis from images that it was not fitted on: AUC within held-out folds.

    Ridge on standardised features, stratified folds. nan where a class has too few subjects for two folds.
    """
    truth = torch.tensor(ill, dtype=torch.bool)
    folds = min(FOLDS, int(truth.sum()), int((~truth).sum()))
    if folds < 2:
        return math.nan
    x_NF = features_NF.double()
    found = []
    for turn in range(REPEATS):
        fold_N = torch.zeros(len(truth), dtype=torch.long)
        for of in (True, False):
            members = (truth == of).nonzero().flatten()
            order = torch.randperm(len(members), generator=generator("cpu", seed, "probe", turn, int(of)))
            fold_N[members[order]] = torch.arange(len(members)) % folds
        for fold in range(folds):
            fitted, held = fold_N != fold, fold_N == fold
            score = _ridge(x_NF[fitted], truth[fitted].double() * 2 - 1, x_NF[held])
            found.append(auc(score, truth[held].tolist()))
    return sum(found) / len(found)


def _ridge(x_NF: Tensor, y_N: Tensor, unseen_KF: Tensor) -> Tensor:
    mean_F, spread_F = x_NF.mean(0), x_NF.std(0).clamp(min=1e-6)
    x_NF, unseen_KF = (x_NF - mean_F) / spread_F, (unseen_KF - mean_F) / spread_F
    inner_NN = x_NF @ x_NF.T / x_NF.shape[1]
    dual_N = torch.linalg.solve(inner_NN + PROBE_STRENGTH * torch.eye(len(x_NF), dtype=x_NF.dtype), y_N - y_N.mean())
    score_K: Tensor = unseen_KF @ x_NF.T @ dual_N
    return score_K
