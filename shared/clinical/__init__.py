"""Clinical text: what the chart says, as tokens, made and used at the site and nowhere else.

A provider turns a chart, the target and the available modalities into six tokens (`PIECES`). The table names them.
"""

from collections.abc import Callable, Mapping

from shared.base.errors import ConfigError
from shared.clinical.builtin import WIDTH, Builtin
from shared.clinical.chart import FIELDS, PIECES, Chart, chart_of, unfit
from shared.clinical.encoder import Encoder, Hearing, Unset
from shared.clinical.labels import LabelEmbedding, NoText
from shared.clinical.settings import TextSettings

__all__ = [
    "ENCODERS",
    "FIELDS",
    "OWN",
    "PIECES",
    "WIDTH",
    "Chart",
    "Encoder",
    "Hearing",
    "TextSettings",
    "Unset",
    "chart_of",
    "make_encoder",
    "unfit",
]


def _hf_dir(width: int, settings: TextSettings) -> Encoder:
    from shared.clinical.hf_dir import open_folder

    return open_folder(width, settings)


def _openai_compatible(width: int, settings: TextSettings) -> Encoder:
    from shared.clinical.endpoint import open_endpoint

    return open_endpoint(width, settings)


ENCODERS: Mapping[str, Callable[[int, TextSettings], Encoder]] = {
    "builtin": lambda width, _: Builtin(width),
    "label_embedding": lambda width, _: LabelEmbedding(width),
    "hf_dir": _hf_dir,
    "openai_compatible": _openai_compatible,
    "none": lambda width, _: NoText(width),
}
OWN = ("hf_dir", "openai_compatible")  # the site's own: a method's build() puts Unset, and `attach` the encoder


def make_encoder(kind: str, width: int, settings: TextSettings | None = None) -> Encoder:
    if kind not in ENCODERS:
        raise ConfigError(f"text={kind}: must be one of {', '.join(ENCODERS)}")
    return ENCODERS[kind](width, settings or TextSettings())
