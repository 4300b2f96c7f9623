"""The way back of `synthesize --dicom`: checked before a model is run, written, then sent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from client.dicom_out import Series, write_series
from client.dicom_push import Peer, Progress, parse_target, push
from client.dicom_source import SourceSeries, read_study
from client.ingest.dicomweb import read_authorization
from shared.errors import ConfigError
from shared.vocabulary import Modality


@dataclass(frozen=True, slots=True, kw_only=True)
class Back:
    """Where a subject's synthetic series go."""

    study: tuple[SourceSeries, ...]
    burn_in: bool
    target: str | Peer | None
    authorization: str

    @staticmethod
    def asked(dicom: Path | None, *, burn_in: bool, push: str | None, auth_file: Path | None) -> "Back | None":
        """What the command line asks for; a wrong address or study fails here, before minutes of sampling."""
        if dicom is None:
            for name, given in (("--push", push), ("--burn-in", burn_in), ("--auth-file", auth_file)):
                if given:
                    raise ConfigError(f"{name}: needs --dicom, the folder of the study that the images came from")
            return None
        target = None if push is None else parse_target(push)
        web = isinstance(target, str)
        return Back(
            study=read_study(dicom),
            burn_in=burn_in,
            target=target,
            authorization=read_authorization(auth_file) if web else "",
        )

    def write(self, volumes: Mapping[Modality, Path], out: Path) -> tuple[Series, ...]:
        return write_series(volumes, self.study, out, now=datetime.now(), burn_in=self.burn_in)

    def send(self, series: Sequence[Series], *, progress: Progress | None = None) -> str | None:
        """Where all of it is now; None where nothing was to be sent."""
        if self.target is None:
            return None
        files = [path for one in series for path in one.files]
        push(files, self.target, authorization=self.authorization or None, progress=progress)
        return self.target if isinstance(self.target, str) else f"{self.target.aet}@{self.target.host}"
