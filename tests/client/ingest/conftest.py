"""What the tests of an ingest share: an ingest whose preparation is a plain stand-in, and a look at what it left."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from client.ingest.arrive.records import Aside, Job
from client.ingest.arrive.source import Folder, Source
from client.ingest.cohort.outcome import Outcome
from client.ingest.cohort.pipeline import Ingested, Options, ingest
from client.ingest.cohort.tables import read_asides


@dataclass
class Site:
    """A site's disks, and an ingest into its cohort; the jobs are kept in place of prepared images."""

    root: Path
    jobs: list[Job] = field(default_factory=list)
    refuse: Callable[[Job], str | None] = lambda job: None

    @property
    def source(self) -> Path:
        return self.root / "source"

    @property
    def cohort(self) -> Path:
        return self.root / "cohort"

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def asides(self) -> list[Aside]:
        return read_asides(self.state / "ingest")

    def ingest(self, source: Source | Path | None = None, **options: Any) -> Ingested:
        place = self.source if source is None else source
        of = Folder(path=place) if isinstance(place, Path) else place
        wanted = Options(workers=1, **options)
        return ingest(of, self.cohort, self.state, prepare=self._prepare, preparation="none", options=wanted)

    def _prepare(self, jobs: Sequence[Job], cohort: Path, progress: Callable[[int, int], None]) -> list[Outcome]:
        self.jobs = list(jobs)
        done = []
        for job in jobs:
            why = self.refuse(job)
            if why is None:
                (cohort / job.subject / (job.session or "") / "anat").mkdir(parents=True, exist_ok=True)
            files: dict[str, str] = {} if why else dict.fromkeys(job.inputs, "")
            who = {"subject": job.subject, "session": job.session}
            done.append(Outcome(**who, files=files, quality=None, left={}, excluded=why, key=""))
            progress(len(done), len(jobs))
        return done

    def leftovers(self) -> Iterator[Path]:
        """Half-written files, of which there are never any."""
        for place in (self.cohort, self.state):
            yield from place.rglob("*.partial")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    (tmp_path / "source").mkdir()
    return Site(tmp_path)
