"""The frozen values that pass between the coordinator and a site, and inside a site between data and method."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch import Tensor

from shared.base.vocabulary import Modality, Owner, SiteName, Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A tensor owned slice by slice: `owners[i]` owns index i along `dim`."""

    dim: int
    owners: tuple[Owner, ...]


# the metrics a site may send, all of them; `before`: in the first step of the round, before the network was changed
RELEASED = ("loss", "samples", "seconds", "feature_std", "feature_std_before")
PRIVATE = ("samples",)  # those of a private update: what the plan says, nothing that looks at the data
Owners: TypeAlias = Mapping[str, Owner | Cut]  # by tensor name; a tensor that is not named is frozen in this phase


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPlan:
    """Server -> site: what to do in this round, and the weights to start from."""

    run: str
    phase: str
    round: int
    config: str  # JSON: method, train, grid; what a site needs to rebuild the method, never code
    schema: str  # hash of what both sides must agree on before any number is averaged
    weights: Weights
    hidden: tuple[Modality, ...] = ()  # in a phase of sums: held by too few sites, so nobody sums it
    known: tuple[int, str] | None = None  # (sequence, head) of the site's privacy budget as last seen here
    sha256: str = ""  # at a site: of the weights' bytes, as they were signed
    secure: str = ""  # where the coordinator sees sums alone: who hides what with whom (shared/plan/secure.py)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """A private site's word on its budget, with every update: how many rows it has, and what they come to."""

    ledger: str  # the budget's own id, drawn when the site was enrolled
    sequence: int  # rows so far; a lower one than before is a budget that was rolled back
    head: str  # the chain's last link
    epsilon: float  # over all that this cohort has ever been asked, in all runs
    budget: float
    delta: float
    size: int  # a public round figure of the site's subjects
    others: int  # updates that left this cohort without privacy


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """Site -> server: the owned slices of the delta, and how many samples gave gradient to each owner."""

    site: SiteName
    run: str
    phase: str
    round: int
    schema: str
    delta: Weights
    counts: Mapping[Owner, int]
    metrics: Mapping[str, float] = field(default_factory=dict)
    frozen: str = ""  # hash of what it was trained around and did not change: an autoencoder, agreed constants
    spent: Spent | None = None  # None: this update is not private


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """Site -> server, before round 1: what the site holds, in cells too large to point at a subject."""

    site: SiteName
    schema: str
    subjects: int  # at least so many: a hidden cell counts as one
    patterns: Mapping[tuple[Modality, ...], int]  # present modalities -> subjects; -k means "1 to k-1"
    refused: Mapping[str, str] = field(default_factory=dict)  # phase -> why the site takes no part in it
    summed: tuple[Modality, ...] = ()  # what enough people here hold for a phase of sums
    preparation: str = ""  # digest of how its images were prepared; "" where `lacuna-site ingest` did not make them
    spent: Spent | None = None  # None: the site does not train privately
    box: str = ""  # where the coordinator is to see sums alone: what other sites seal to, and the site's signature


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Slices (BMHW) or volumes (BMDHW) of one site. Values in [0, 1], blank exactly 0.

    Where `exists_BM` is False the image content means nothing (a tripwire test fills it with NaN):
    use `torch.where(shown, x, 0)`, never `shown * x`.
    """

    images_BMHW: Tensor
    exists_BM: Tensor  # bool: ground truth is there
    shown_BM: Tensor  # bool, a subset of exists: what a network may see
    subject_B: Tensor  # int64, number of the subject inside this site's cohort, or cohorts; never leaves
    clinical: tuple[Mapping[str, float | str], ...] = ()

    def __len__(self) -> int:
        return len(self.subject_B)

    def to(self, device: torch.device | str) -> "Batch":
        return replace(
            self,
            images_BMHW=self.images_BMHW.to(device),
            exists_BM=self.exists_BM.to(device),
            shown_BM=self.shown_BM.to(device),
            subject_B=self.subject_B.to(device),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """What a method's loss gives back: one number per sample, never normalised over the batch."""

    loss_B: Tensor
    gave: Mapping[Owner, Tensor]  # owner -> bool_B: did this sample give gradient to that owner?
    watch: Mapping[str, float] = field(default_factory=dict)  # scalars worth following, such as a feature's spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One training stage of a method, a federation of its own.

    kind "train": sites send deltas. kind "sums": sites send sums over their data (normal equations, latent moments)
    which the server adds exactly and hands to `Method.settle`, in one round, or in `rounds` where each needs the last.
    """

    name: str
    kind: str = "train"
    rounds: int = 1  # of a phase of sums; of the others the training says how many
    # of every sum: which sum counts the people in its cells, and how many of its first axes tell the cells apart
    cells: Mapping[str, tuple[str, int]] = field(default_factory=dict, hash=False)
    # (watch name, fraction): the run fails below that fraction of what it was in the network that was not trained yet
    collapse: tuple[str, float] | None = None
