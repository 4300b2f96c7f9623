"""Many subjects, prepared: in parallel, resumable, each whole or not at all.

    COHORT/sub-*/[ses-*/]anat|ct|pet/   images and sidecars
           preparation.json             the options, and their digest: only in a cohort that was prepared whole
           quality/<subject>.json       what became of it, its figures, and a hash of all that decided that
           quality/<subject>.png        three planes of each modality, with the edges of the reference
           quality.html                 all of them on one page, for a person

Done again, only what changed is prepared anew. A subject that fails stops nobody.
"""

import math
import multiprocessing
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from client.ingest.arrive.records import Job
from client.ingest.cohort import page, review
from client.ingest.cohort.outcome import QUALITY, Outcome, read_outcome
from client.ingest.image.preparation import Preparation, Ready, prepare
from shared.base.display.progress import Progress, unwatched
from shared.base.errors import ConfigError, DataError
from shared.base.files import make_folder, new_folder, sweep, write_json, write_text
from shared.base.options import plain
from shared.base.vocabulary import Modality
from shared.data.bids import PREPARATION, read_preparation
from shared.data.limits import SPACING_LIMITS
from shared.data.modalities import bids_path
from shared.data.preparation import hash_file, hash_json
from shared.data.volumes import shape_and_affine, write

PAGE = "quality.html"
MEMORY_PER_VOXEL = 120  # bytes of working memory, at the largest


def prepare_all(
    jobs: Sequence[Job],
    cohort: Path,
    *,
    options: Preparation,
    weights: Path | None = None,
    workers: int | None = None,
    progress: Progress = unwatched,
) -> tuple[Outcome, ...]:
    """Every job's outcome, in their order. `jobs` are all that the cohort is to hold. `workers` None: one per core."""
    make_folder(cohort / QUALITY)
    _check_disk(jobs, cohort, options)
    accepted = review.accepted(cohort)
    digest = options.digest
    if _stored_digest(cohort) != digest:
        (cohort / PREPARATION).unlink(missing_ok=True)  # until all are done, the cohort is of no one preparation
    kept: dict[int, Outcome] = {}
    todo: dict[int, _Task] = {}
    for number, job in enumerate(jobs):
        task = _Task(job=job, cohort=cohort, options=options, weights=weights, accepted=job.subject in accepted)
        stored = _stored(cohort, job, task.key)
        if stored is None:
            todo[number] = task
        else:
            kept[number] = stored
    progress(len(kept), len(jobs))
    for number, outcome in _run(todo, _processes(workers, todo)):
        kept[number] = outcome
        progress(len(kept), len(jobs))
    done = tuple(kept[number] for number in range(len(jobs)))
    _sweep(cohort, done)
    write_json(
        cohort / PREPARATION,
        {"digest": digest, "made_by": "lacuna-site ingest", "options": plain(options)},
        sort_keys=True,
    )
    write_text(cohort / PAGE, page.render(cohort, done, digest))
    return done


def disk_needed(jobs: Sequence[Job], options: Preparation) -> int:
    """Bytes that the cohort takes at most, from the headers alone."""
    needed = 0
    for job in jobs:
        largest = 0
        for path in job.inputs.values():
            with suppress(DataError):  # its line comes when it is read
                shape, affine = shape_and_affine(path)
                voxels = math.prod(shape)
                if options.spacing_mm is not None:
                    voxel = abs(float(affine[0, 0] * affine[1, 1] * affine[2, 2])) or 1.0
                    voxels = int(voxels * voxel / max(options.spacing_mm, SPACING_LIMITS[0]) ** 3)
                largest = max(largest, voxels)
        needed += largest * 2 * len(job.inputs) + 500_000  # float32 of a brain, the rest blank, packed
    return needed


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    job: Job
    cohort: Path
    options: Preparation
    weights: Path | None
    accepted: bool

    @property
    def key(self) -> str:
        read = {modality: hash_file(path) for modality, path in self.job.inputs.items()}
        return hash_json([self.options.digest, read, plain(self.job.sidecars), self.accepted])


def _carry_out(task: _Task) -> Outcome:
    job = task.job
    outcome = Outcome(
        subject=job.subject,
        session=job.session,
        files={},
        quality=None,
        left={},
        excluded=None,
        key=task.key,
        decided=task.options.digest,
    )
    target = task.cohort / job.subject / (job.session or "")
    try:
        ready = prepare(job.inputs, task.options, weights=task.weights, accepted=task.accepted)
        outcome = replace(outcome, quality=ready.quality, left=ready.left, excluded=ready.why)
        page.draw(ready, task.cohort / QUALITY / f"{job.name}.png")
        if ready.why is None:
            outcome = replace(outcome, files=_write_subject(task.cohort, target, job, ready))
    except DataError as error:
        outcome = replace(outcome, files={}, excluded=str(error))
    except ConfigError:
        raise  # the same for all subjects
    except Exception as error:  # one subject's fault, whatever it is, stops nobody; the next run tries it again
        why = "not enough memory" if isinstance(error, MemoryError) else f"failed: {type(error).__name__}: {error}"
        outcome = replace(outcome, files={}, excluded=" ".join(why.split())[:300], key="")
    if outcome.excluded is not None:
        _forget(target, job)
    write_json(task.cohort / QUALITY / f"{job.name}.json", plain(outcome), sort_keys=True)
    return outcome


def _write_subject(cohort: Path, target: Path, job: Job, ready: Ready) -> dict[Modality, str]:
    """The visit's whole folder appears at once."""
    files = {}
    with new_folder(target) as made:
        for modality, data in ready.volumes.items():
            inside = Path(bids_path(job.subject, modality))
            ending = inside.name.removeprefix(f"{job.subject}_")
            name = ending if job.session is None else f"{job.session}_{ending}"
            path = made / inside.parent.name / f"{job.subject}_{name}"
            write(path, data, ready.affine)
            sidecar = {**job.sidecars.get(modality, {}), **ready.steps[modality]}
            write_json(
                path.with_name(path.name.removesuffix(".nii.gz") + ".json"), sidecar, sort_keys=True, durable=False
            )
            files[modality] = (target / path.relative_to(made)).relative_to(cohort).as_posix()
    return files


def _forget(target: Path, job: Job) -> None:
    shutil.rmtree(target, ignore_errors=True)
    if job.session is not None:
        with suppress(OSError):  # other visits are still there
            target.parent.rmdir()


def _stored(cohort: Path, job: Job, key: str) -> Outcome | None:
    try:
        outcome = read_outcome(cohort / QUALITY / f"{job.name}.json")
    except (OSError, ValueError, KeyError, TypeError):
        return None
    there = all((cohort / file).is_file() for file in outcome.files.values())
    return outcome if outcome.key == key and there and (outcome.files or outcome.excluded) else None


def _stored_digest(cohort: Path) -> str:
    with suppress(DataError):  # damaged: written anew
        return read_preparation(cohort)
    return ""


def _run(todo: Mapping[int, _Task], processes: int) -> Iterator[tuple[int, Outcome]]:
    if processes <= 1 or len(todo) <= 1:
        for number, task in todo.items():
            yield number, _carry_out(task)
        return
    spawn = multiprocessing.get_context("spawn")
    with _one_thread_each(), ProcessPoolExecutor(min(processes, len(todo)), mp_context=spawn) as pool:
        futures = {pool.submit(_carry_out, task): number for number, task in todo.items()}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool:
            raise DataError(
                "a worker process died, most likely for lack of memory: ingest with fewer workers"
            ) from None
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _processes(workers: int | None, todo: Mapping[int, _Task]) -> int:
    """One per core, as far as memory reaches."""
    if workers is not None:
        return workers
    largest = 0
    for task in todo.values():
        for path in task.job.inputs.values():
            with suppress(DataError):
                largest = max(largest, math.prod(shape_and_affine(path)[0]))
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    return max(1, min(os.cpu_count() or 1, int(free // max(1, largest * MEMORY_PER_VOXEL))))


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """For the processes started meanwhile."""
    names = ("OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _check_disk(jobs: Sequence[Job], cohort: Path, options: Preparation) -> None:
    needed, free = disk_needed(jobs, options), shutil.disk_usage(cohort).free
    if needed > free:
        raise DataError(f"the cohort needs up to {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free")


def _sweep(cohort: Path, done: Sequence[Outcome]) -> None:
    """What a killed process left, and the figures of subjects that are gone."""
    names = {outcome.name for outcome in done}
    for path in (cohort / QUALITY).glob("sub-*"):
        if path.stem not in names:
            path.unlink()
    for folder in (cohort, cohort / QUALITY, *cohort.glob("sub-*")):
        sweep(folder)
