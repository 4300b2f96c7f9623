"""What every provider of clinical text is, and what stands where a site has yet to attach its own."""

from collections.abc import Sequence
from typing import NoReturn, Protocol

import torch
from torch import Tensor

from shared.base.errors import ConfigError
from shared.base.vocabulary import Modality
from shared.clinical.chart import FIELDS, PIECES, Chart


class Encoder(Protocol):
    """Frozen: the same chart gives the same tokens. Tokens are patient data, as the chart is."""

    @property
    def id(self) -> str:
        """Provider, version, seed or hash of its weights: equal ids mean equal tokens."""

    @property
    def width(self) -> int:
        """D: numbers in a token. Their root mean square is about 1."""

    def encode(
        self, charts: Sequence[Chart], targets: Sequence[Modality], available: Sequence[tuple[Modality, ...]]
    ) -> tuple[Tensor, Tensor]:
        """tokens_BLD (float32, CPU) and held_BL, L = len(PIECES); what is missing is not held, and exactly 0."""


class Unset:
    """In a network whose provider is the site's own (hf_dir, openai_compatible), until `attach` brings it."""

    def __init__(self, kind: str, width: int) -> None:
        self.kind, self.width = kind, width
        self.id = f"unset {kind}"

    def encode(
        self, charts: Sequence[Chart], targets: Sequence[Modality], available: Sequence[tuple[Modality, ...]]
    ) -> NoReturn:
        raise ConfigError(
            f"text={self.kind}: no encoder is attached; a site that trains names its own in STATE/site.toml [text], "
            "everybody else in the environment: LACUNA_TEXT_FOLDER, or LACUNA_TEXT_URL and LACUNA_TEXT_MODEL"
        )


class Hearing:
    """A network that hears clinical text; `encoder` is no module of it, so its own weights are not the network's."""

    encoder: Encoder


def pieces_of(chart: Chart, target: Modality, available: Sequence[Modality]) -> dict[str, object]:
    """Each piece that is there, with its value; modalities sorted, so that their order does not matter."""
    found: dict[str, object] = {name: getattr(chart, name) for name in FIELDS if getattr(chart, name) is not None}
    if target:
        found["target"] = target
    if available:
        found["available"] = tuple(sorted(set(available)))
    return found


def check_lengths(
    charts: Sequence[Chart], targets: Sequence[Modality], available: Sequence[tuple[Modality, ...]]
) -> None:
    assert len(charts) == len(targets) == len(available), "one target and one set of modalities for each chart"


def empty(n: int, width: int) -> tuple[Tensor, Tensor]:
    """Make tokens of which none is held."""
    return torch.zeros(n, len(PIECES), width), torch.zeros(n, len(PIECES), dtype=torch.bool)
