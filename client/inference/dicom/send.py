"""The way back of `synthesize --dicom`: checked before a model is run, written, then sent."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from client.inference.dicom.out import Series, write_series
from client.inference.dicom.push import Peer, parse_target, push
from client.inference.dicom.source import SourceSeries, read_study
from client.inference.sources import find
from client.ingest.arrive.dicomweb import read_authorization
from shared.base.display.progress import Progress, unwatched
from shared.base.errors import ConfigError, DataError
from shared.base.vocabulary import Modality
from shared.data.modalities import entity

PROVENANCE = "provenance.json"  # of an ingest's STATE: which files a subject's images came from


@dataclass(frozen=True, slots=True, kw_only=True)
class Back:
    """Where a subject's synthetic series go."""

    study: tuple[SourceSeries, ...]
    burn_in: bool
    target: str | Peer | None
    authorization: str

    @staticmethod
    def asked(
        dicom: Path | None, subject: Path, *, burn_in: bool, push: str | None, auth_file: Path | None
    ) -> "Back | None":
        """Read what the command line asks for; a wrong address or study fails here, before minutes of sampling."""
        if dicom is None:
            for name, given in (("--push", push), ("--burn-in", burn_in), ("--auth-file", auth_file)):
                if given:
                    raise ConfigError(f"{name}: needs --dicom, the folder of the study that the images came from")
            return None
        target = None if push is None else parse_target(push)
        web = isinstance(target, str)
        return Back(
            study=read_study(dicom, source_files(dicom, subject) if (dicom / PROVENANCE).is_file() else None),
            burn_in=burn_in,
            target=target,
            authorization=read_authorization(auth_file) if web else "",
        )

    def write(self, volumes: Mapping[Modality, Path], out: Path) -> tuple[Series, ...]:
        return write_series(volumes, self.study, out, now=datetime.now(), burn_in=self.burn_in)

    def send(self, series: Sequence[Series], *, progress: Progress = unwatched) -> str | None:
        """Send the series, and say where all of it is now; None where nothing was to be sent."""
        if self.target is None:
            return None
        files = [path for one in series for path in one.files]
        push(files, self.target, authorization=self.authorization or None, progress=progress)
        return self.target if isinstance(self.target, str) else f"{self.target.aet}@{self.target.host}"


def source_files(state: Path, subject: Path) -> list[Path]:
    """Find the DICOM files that an ingest made a subject of, at the visit that the model is shown."""
    try:
        entries = json.loads((state / PROVENANCE).read_text(encoding="utf-8"))
        found = [entry for entry in entries if entry["subject"] == subject.name]
        if len({entry["visit"] for entry in found}) > 1:
            sessions = {entity(path, "ses") for path in find(subject).files.values()}
            found = [entry for entry in found if str(entry["visit"]) in sessions]
        files = [Path(name) for entry in found for name in entry["files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"--dicom {state}: {PROVENANCE} can't be used ({type(error).__name__})") from None
    if not files:
        raise DataError(
            f"--dicom {state}: its {PROVENANCE} knows no {subject.name}; it was ingested with another STATE"
        )
    missing = next((path for path in files if not path.is_file()), None)
    if missing is not None:
        raise DataError(f"--dicom {state}: {missing} is gone; name the folder of the study itself")
    return files
