"""`lacuna-site ingest`, `prepare` and `review`: from a hospital's images to a cohort. Thin: they call others."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client.cli.options import Modalities, Why
from shared.base.display.terminal import bar
from shared.base.errors import ConfigError, DataError
from shared.base.verbs import flat

if TYPE_CHECKING:
    from client.ingest.arrive.source import Source
    from client.ingest.cohort.pipeline import Ingested
    from client.ingest.image.preparation import Preparation

app = typer.Typer()


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOptions:
    """How a subject's images are made to fit together."""

    spacing: Annotated[
        float | None, typer.Option(help="Voxels in mm; default: the reference image's own.", show_default=False)
    ] = None
    strip_weights: Annotated[
        Path | None,
        typer.Option(help="A network that finds the brain, TorchScript or .pt2. Default: BET.", show_default=False),
    ] = None
    strip_sha256: Annotated[
        str | None, typer.Option(help="The SHA-256 of that file; another is not loaded.", show_default=False)
    ] = None
    strip_output: Annotated[
        str, typer.Option(help="What it gives: probability, logit, or distance (mm, below 0 inside).")
    ] = "probability"
    template: Annotated[
        bool, typer.Option("--template", help="Bring every subject into the space of MNI152 (affine).")
    ] = False

    def preparation(self) -> "Preparation":
        from client.ingest.image.brain import Strip
        from client.ingest.image.preparation import Preparation

        own = self.strip_weights is not None
        strip = Strip(tool="weights", sha256=self.strip_sha256, output=self.strip_output) if own else Strip()
        return Preparation(spacing_mm=self.spacing, to_template=self.template, strip=strip)

    def prepare(self, workers: int | None, jobs, cohort, progress):  # type: ignore[no-untyped-def]
        from client.ingest.cohort.runner import disk_needed, prepare_all

        options, weights = self.preparation(), self.strip_weights
        typer.echo(f"{'disk for the cohort':<28}up to {disk_needed(jobs, options) / 1e9:.2f} GB", err=True)
        return prepare_all(jobs, cohort, options=options, weights=weights, workers=workers, progress=progress)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """Of a source that is a server, or whoever sends to us."""

    auth_file: Annotated[
        Path | None,
        typer.Option(
            help="Holds the server's authorization, `Bearer ...` or `Basic ...`; mode 600.", show_default=False
        ),
    ] = None
    studies: Annotated[
        Path | None, typer.Option(help="Of a server, only these: StudyInstanceUIDs, one a line.", show_default=False)
    ] = None
    dates: Annotated[str, typer.Option(help="Of a server, only these study dates: 20240101-20241231.")] = ""
    idle: Annotated[float, typer.Option(min=1, help="Seconds without a new image that end `receive:`.")] = 60.0
    peer: Annotated[
        list[str] | None,
        typer.Option(help="Who may send to `receive:`, AETITLE or AETITLE@ADDRESS; repeat it.", show_default=False),
    ] = None

    def find(self, text: str) -> "Source":
        from client.ingest.arrive.sources import find_source

        peers = tuple(self.peer or ())
        return find_source(
            text, auth_file=self.auth_file, studies=self.studies, dates=self.dates, idle=self.idle, peers=peers
        )


@app.command()
@flat
def ingest(
    *,
    source: Annotated[
        str, typer.Argument(help="A folder, http(s)://host/dicom-web, or receive:PORT/AETITLE.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="The cohort: new, or one of an earlier ingest.", show_default=False)],
    state: Annotated[
        Path, typer.Option(help="This site's private disk: the key, what was converted, lists.", show_default=False)
    ],
    review: Annotated[
        bool, typer.Option("--review", help="Stop after STATE/ingest/series.csv is written, for you to edit.")
    ] = False,
    modality: Modalities = None,
    visit_days: Annotated[
        int, typer.Option(min=0, help="A patient's studies within so many days are one visit; 0: of the same day.")
    ] = 0,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes.", show_default="one per core")] = None,
    image: ImageOptions,
    origin: SourceOptions,
) -> None:
    """From DICOM or BIDS to a de-identified, co-registered cohort of brains, with a reason for all that was left out.

    **Where from.** A folder is walked whatever its names and nesting; nothing is unpacked, nothing in it is changed. A
    DICOMweb server is asked page by page; its authorization comes from --auth-file. For what a PACS sends by C-STORE
    say `receive:ADDRESS:11112/LACUNA --peer PACS@10.0.0.5`: without ADDRESS this machine alone is listened to.

    **What is what.** Rules over the tags map each series to a modality or set it aside with a reason. Look at them
    first: run with --review, open STATE/ingest/series.csv in a spreadsheet, change the column `modality` where the
    rules are wrong (empty: do not use), and run the same command without --review. For names that your scanners use
    again and again, add lines to STATE/ingest/aliases.csv: a pattern for the series description, and a modality
    (`*t1*gd*,T1CE`). One series per modality and visit is taken: what covers more, then 3D, then finer, then later.

    **What comes out.** OUT is BIDS: pseudonyms, no dates, no free text, brains only, one grid per subject; CT in HU,
    PET as a ratio to the cerebellum (SUVR). exclusions.csv and quality.html say what was left out and show the rest;
    `lacuna-site review OUT` takes a person's decisions, `lacuna-site prepare OUT` makes the training cache.

    **Again.** The same command goes on where it was stopped, and changes nothing when nothing changed. Other sources
    add to the same OUT as long as STATE is the same. STATE/identity.key links pseudonyms to patients: keep it, and keep
    it private. A table STATE/participants.tsv (participant_id = PatientID; age, sex, diagnosis, mmse, ...) is merged.
    """
    from client.ingest.cohort.pipeline import Options
    from client.ingest.cohort.pipeline import ingest as carry_out

    done = carry_out(
        origin.find(source),
        out,
        state,
        prepare=partial(image.prepare, workers),
        preparation=image.preparation().digest,
        options=Options(modalities=modality, review=review, visit_days=visit_days, workers=workers),
        bar=bar,
    )
    _print_ingested(done)
    if done.visits == 0:
        raise DataError(f"out={out}: no subject can be used; {out / 'exclusions.csv'} says why")
    typer.echo("edit it, then run again without --review" if review else str(done.cohort))


def _print_ingested(done: "Ingested") -> None:
    for name, value in done.summary:
        typer.echo(f"{name:<28}{value}")
    for subject, why in done.excluded.items():
        typer.echo(f"excluded: {subject}: {why}")
    typer.echo(f"{'why each was left aside':<28}{done.asides_file}")
    if done.series_file is not None:
        typer.echo(f"{'what each series is':<28}{done.series_file}")


@app.command()
def prepare(
    cohort: Annotated[Path, typer.Argument(help="BIDS folder: sub-*/anat|ct|pet/*.nii.gz and participants.tsv.")],
    height: Annotated[int, typer.Option(min=8, help="Of the grid, in pixels.")] = 64,
    width: Annotated[int, typer.Option(min=8, help="Of the grid, in pixels.")] = 64,
    spacing: Annotated[float, typer.Option(min=0, help="Pixel size in mm; 0: each subject's own.")] = 3.0,
    slices: Annotated[float, typer.Option(min=0, help="From slice to slice in mm; 0: each subject's own.")] = 3.0,
    modality: Modalities = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes.", show_default="as many as pay")] = None,
) -> None:
    """Check a cohort file by file and cache it for training; again and again: only what changed is done anew.

    What was used, left aside or excluded, and why, stands in exclusions.csv beside the cache.
    """
    from shared.data import cohort as data
    from shared.data.volumes import Grid

    grid = Grid(spacing_mm=spacing or None, slice_mm=slices or None, height=height, width=width)
    with bar("preparing") as advance:
        done = data.prepare(cohort, grid, modalities=modality, workers=workers, progress=advance)
    for name, value in done.summary:
        typer.echo(f"{name:<28}{value}")
    for remark in done.remarks:
        if remark.done in ("excluded", "skipped modality"):
            typer.echo(f"{remark.done}: {remark.subject} {remark.file}: {remark.why}")
    typer.echo(str(done.folder))


@app.command()
def review(
    cohort: Annotated[Path, typer.Argument(help="The cohort of an ingest.", show_default=False)],
    accept: Annotated[
        list[str] | None, typer.Option(help="A subject to take though it was excluded.", show_default=False)
    ] = None,
    reject: Annotated[list[str] | None, typer.Option(help="A subject to leave out.", show_default=False)] = None,
    why: Why = "",
) -> None:
    """List a cohort's subjects, or write down a person's decision on some of them. Look at quality.html first.

    A rejected subject's files stay, and `lacuna-site prepare` leaves it out, with the reason in its exclusions.csv. An
    accepted one is prepared at the next ingest with the limits of quality set aside. The latest decision counts.
    """
    from client.ingest.cohort.review import decide, listing

    if accept or reject:
        decide(cohort, accept=accept or (), reject=reject or (), why=why)
    for row in listing(cohort):
        typer.echo(f"{row.subject:<24}{row.state:<16}{row.why}")


@app.command()
def withdraw(
    subject: Annotated[str, typer.Argument(help="The name in the cohort, sub-*.", show_default=False)],
    state: Annotated[Path, typer.Option(help="This site's private disk.", envvar="LACUNA_STATE", show_default=False)],
    cohort: Annotated[
        list[Path] | None,
        typer.Option(help="Repeat it. Default: [site] cohorts of STATE/site.toml.", show_default=False),
    ] = None,
    why: Why = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say where they were and what would go.")] = False,
) -> None:
    """Somebody takes it back: nobody here trains on them any more, cohort and caches forget them, and runs are named.

    It says which runs, phases and rounds they were in, by the ledger of what left. What was trained can't be untrained
    here: send the coordinator the note, which names runs and rounds and nobody, for `lacuna federation withdrawn`.
    Sums wait until several people have left or come: one person less would show that person.
    """
    from client.ingest.cohort.withdraw import withdraw as carry_out
    from client.site import settings
    from client.site.enrol import name_of

    folders = cohort or [Path(folder) for folder in settings.load(state).cohorts]
    if not folders:
        raise ConfigError(f"--cohort: name the cohort, or [site] cohorts in {state / settings.SETTINGS}")
    done = carry_out(state, folders, name_of(state), subject, why=why, rehearsal=dry_run)
    for part in done.parts:
        typer.echo(part.line() + ("; sums over them left" if part.summed else ""))
    if not done.parts:
        typer.echo("nothing that they were in has left this site")
    for path in done.forgotten:
        typer.echo(f"{'would delete' if dry_run else 'deleted'}: {path}")
    for path in done.kept:
        typer.echo(f"set aside, for you to delete: {path}")
    if done.note is not None:
        typer.echo(f"send this to the coordinator: {done.note}")
