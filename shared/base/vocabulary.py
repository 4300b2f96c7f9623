"""The words of the house, one meaning each; a new word is added here before it is used.

The commonest ones: docs/architecture.md, "One word for each thing".

Of an ingest: a series is what one DICOM SeriesInstanceUID holds, a study the series of one appointment, a visit the
studies of a subject that count as one point in time, state the site's private disk.

Of joining a federation: a request is what a site sends, a kit what the coordinator answers with, the manifest what was
agreed; a revision counts what all kits carry, and a fingerprint is what two people compare by telephone.

Of what is signed: a warrant lets a key lead a run, a question is a message to a site (a plan, or before round 1 a
query), an answer is a site's reply to one question (shared/trust/warrant.py); a relay is whoever carries them.

Of a round whose coordinator sees sums alone: a circle is the sites that hide in it, a group an owner whose parts they
hide together, a box and a card a site's keys for a run and for a circle, to deal is to hand out keys and shares, to
hide an update is to add masks to it, and survivors are those whose hidden updates came (shared/trust/secure/circle.py).

Of a run on a SuperLink: a submission is one handing over of it, a follower watches it from another process and may
supervise it, which is to submit it again where it was killed, and its outcome is how it ended in its own words.

A slab is a number of adjacent slices that a network sees at once; a window is where it is laid on a volume.

Axes, as suffixes of tensor names: B batch, C channel, M modality, S source, D depth (slices), H height, W width, N any
count.
Image arrays in memory are D H W = (superior, anterior, right) steps of a RAS volume, so a slice is axial.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:  # `lacuna phantom` and its workers have these words and no torch
    from torch import Tensor

Modality: TypeAlias = str  # "T1", "FLAIR", ... as listed in shared/data/modalities.py
SiteName: TypeAlias = str
Weights: TypeAlias = Mapping[str, "Tensor"]  # a state dict: parameters and agreed constants, by name

Owner: TypeAlias = str  # what part of the data a tensor, or a slice of one, belongs to
SHARED: Owner = "shared"  # every site that trains at all
LOCAL: Owner = "local"  # never leaves the site, never averaged
TOGETHER: Owner = "together"  # what several shown modalities train together
CHART: Owner = "chart"  # what a prompt trains


def source(modality: Modality) -> Owner:
    """Owner of what only a *shown* modality trains: its input slices."""
    return f"from:{modality}"


def target(modality: Modality) -> Owner:
    """Owner of what only a modality with ground truth trains: its output rows."""
    return f"to:{modality}"


def beside(modality: Modality) -> Owner:
    """Owner of what only a modality trains that is shown *together with another*: its part in a choice among them."""
    return f"beside:{modality}"


def alone(modality: Modality) -> Owner:
    """Owner of what only a modality trains that is shown *without any other*."""
    return f"alone:{modality}"
