"""What became of a subject's preparation, as COHORT/quality/<subject>.json keeps it."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from client.ingest.image.preparation import Quality
from shared.base.options import build
from shared.base.vocabulary import Modality

QUALITY = "quality"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one job."""

    subject: str
    session: str | None
    files: Mapping[Modality, str]  # in the cohort, relative to it
    quality: Quality | None
    left: Mapping[Modality, str]  # modality -> why it was left out
    excluded: str | None  # why the whole visit is not in the cohort
    key: str  # of the inputs, the options and a person's word
    decided: str = ""  # the preparation's digest

    @property
    def name(self) -> str:
        return self.subject if self.session is None else f"{self.subject}_{self.session}"


def outcomes(cohort: Path) -> list[Outcome]:
    """Every job's outcome, as the last preparation stored it."""
    found = []
    for path in sorted((cohort / QUALITY).glob("sub-*.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            found.append(read_outcome(path))
    return found


def read_outcome(path: Path) -> Outcome:
    return build(Outcome, json.loads(path.read_text(encoding="utf-8")), "outcome")
