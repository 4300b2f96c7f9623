"""What a model is told of a subject beside its images: from participants.tsv or said here, and plainly recorded.

A sidecar names the fields that were used. Their values are in it only if asked for; a digest of so few possible values
could be guessed back to them, so the key of a result is made with a secret of the output folder.
"""

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.inference.sources import Subject
from shared.base.errors import ConfigError, DataError
from shared.base.files import private_folder, read_secret, write_once
from shared.clinical import FIELDS, Chart
from shared.clinical.chart import unfit
from shared.data.bids import Clinical, Participant, read_participants
from shared.methods import ReadsChart
from shared.model.model import Model

LEAK = (
    "The diagnosis was part of the prompt, so it is in this image: whatever is trained or tested on it to tell "
    "diagnoses would learn the prompt."
)
NEARLY = "CDR-SOB was part of the prompt, and is nearly the diagnosis."
SECRET = ".chart-secret"  # in the output folder, for its owner alone
FILE, SAID = "participants.tsv", "said"


@dataclass(frozen=True, slots=True, kw_only=True)
class Saying:
    """What is said of the chart on the command line; it wins over the file."""

    values: Mapping[str, float | str]
    use_diagnosis: bool = True
    show_values: bool = False

    def __post_init__(self) -> None:
        Chart(**self.values)  # type: ignore[arg-type]
        if "diagnosis" in self.values and not self.use_diagnosis:
            raise ConfigError(f"diagnosis={self.values['diagnosis']!r}: --no-diagnosis was said too")


NOTHING = Saying(values={})


@dataclass(frozen=True, slots=True, kw_only=True)
class ChartUsed:
    """What the model hears, where each field came from, and why others were not used."""

    chart: Chart
    origin: Mapping[str, str]
    unused: Mapping[str, str]
    show_values: bool

    @property
    def clinical(self) -> Clinical:
        return {name: getattr(self.chart, name) for name in self.chart.known}

    @property
    def line(self) -> str:
        used = ", ".join(f"{name} ({origin})" for name, origin in self.origin.items()) or "nothing"
        unused = "; ".join(f"{name}: {why}" for name, why in self.unused.items())
        return f"from the chart: {used}" + (f"; not used: {unused}" if unused else "")

    @property
    def facts(self) -> dict[str, Any]:
        """What the sidecar says of it."""
        warnings = [text for name, text in (("diagnosis", LEAK), ("cdrsb", NEARLY)) if name in self.origin]
        return {
            "Used": dict(self.origin),
            "NotUsed": dict(self.unused),
            **({"Values": dict(self.clinical)} if self.show_values else {}),
            **({"Warning": " ".join(warnings)} if warnings else {}),
        }

    def digest(self, out: Path) -> str:
        """Give a hash that tells another chart apart, to whoever may read the output folder's secret."""
        values = "\n".join(f"{name}={value}" for name, value in sorted(self.clinical.items()))
        return hmac.new(_secret(out), values.encode(), hashlib.sha256).hexdigest()


def chart_for(model: Model, subject: Subject, name: str, saying: Saying) -> ChartUsed | None:
    """Find what the model may hear of the subject; None if it reads no chart. `name` is the subject's folder.

    A value that breaks its rule is an error, not a field left out behind the reader's back.
    """
    if not isinstance(model.method, ReadsChart):
        if saying.values:
            raise ConfigError(f"{next(iter(saying.values))}: the model {model.name} does not read the chart")
        return None
    reads = model.method.reads
    for field in saying.values:
        if field not in reads:
            heard = ", ".join(reads) or "none of it"
            raise ConfigError(f"{field}: this bundle's model was not trained to hear it; of the chart it hears {heard}")
    left = {field: "the model was not trained to hear it" for field in FIELDS if field not in reads}
    if not saying.use_diagnosis and "diagnosis" in reads:
        left["diagnosis"] = "--no-diagnosis"
    wanted = [field for field in reads if field not in left]
    known = _from_file(subject, name, [field for field in wanted if field not in saying.values])
    values = {**known, **saying.values}
    return ChartUsed(
        chart=Chart(**{field: values[field] for field in wanted if field in values}),  # type: ignore[arg-type]
        origin={f: SAID if f in saying.values else FILE for f in wanted if f in values},
        unused={**left, **{field: "not known" for field in wanted if field not in values}},
        show_values=saying.show_values,
    )


def _from_file(subject: Subject, name: str, wanted: list[str]) -> Clinical:
    if not isinstance(subject, Path) or not wanted:
        return {}
    row = read_participants(subject.resolve().parent).get(name, Participant())
    for remark in row.remarks:  # not a number at all
        field, _, rest = remark.why.partition("=")
        if field in wanted:
            raise DataError(f"{FILE}: {field}={rest.partition(';')[0]}; mend it, or say --{field}")
    known = {field: row.clinical[field] for field in wanted if field in row.clinical}
    for field, rule in unfit(known).items():
        raise DataError(f"{FILE}: {field}={known[field]!r}: must be {rule}; mend it, or say --{field}")
    return known


def _secret(out: Path) -> bytes:
    path = out / SECRET
    if not path.exists():
        private_folder(out)
        with suppress(FileExistsError):  # another process was first
            write_once(path, secrets.token_bytes(32))
    return read_secret(path, "secret of the output folder")
