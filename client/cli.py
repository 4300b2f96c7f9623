"""`lacuna-site`: a hospital's command, beside its data. Thin: every verb calls one function elsewhere."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from client import enrol_cli, node_cli, policy_cli
from shared.errors import ConfigError, DataError, LacunaError, PlanRefused

app = typer.Typer(
    name="lacuna-site",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""What a site does with its own images. Only **run** and **up** send anything: what **ledger** lists.

**init** and **join** make the site part of a federation. **run**, or **up** and **down** in a container, take part in
its training; **status** and **logs** tell how that goes, and **doctor** what is lacking.

**ingest** makes a cohort of DICOM, **prepare** checks a BIDS cohort and caches it, **synthesize** fills in what a
subject lacks from a signed bundle,
**reconstruct** does so from raw measurements too,
**evaluate** scores a bundle on the site's own subjects.

**policy** says what the site allows, **plans** what it was asked and what waits for a yes, **ledger** what left it,
**budget** shows what private training has spent of the site's privacy budget, **audit** tests what it stands on, and
whether a bundle remembers the site's subjects.

Exit codes: 0 done · 2 a wrong key or value · 3 data or a bundle that can't be used · 4 the privacy budget is spent, or
a warning with --strict · 5 an audit failed, or the way to the server.""",
)

Bundle = Annotated[Path, typer.Option(help="Folder of the bundle.")]
Trust = Annotated[
    Path | None,
    typer.Option(help="The coordinator's public key; a bundle signed by another is refused.", show_default=False),
]
AnySigner = Annotated[
    bool, typer.Option("--any-signer", help="Take a whole bundle whoever signed it; forgery is then not excluded.")
]
Without = Annotated[
    list[str] | None,
    typer.Option(help="A modality of the subject's that is not to be used; repeat it.", show_default=False),
]
Device = Annotated[str, typer.Option(help="auto | cpu | cuda")]
Force = Annotated[
    bool, typer.Option("--force", help="Go on with an input far from what the bundle was trained on; recorded.")
]
Kind = Annotated[
    str | None, typer.Option(help="mean | multistep | ddim | ancestral. Default: the bundle's.", show_default=False)
]


@app.command()
def ingest(
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
    modality: Annotated[
        list[str] | None, typer.Option(help="Only these; repeat it. Default: all that are found.", show_default=False)
    ] = None,
    visit_days: Annotated[
        int, typer.Option(min=0, help="A patient's studies within so many days are one visit; 0: of the same day.")
    ] = 0,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes.", show_default="one per core")] = None,
    spacing: Annotated[
        float | None, typer.Option(help="Voxels in mm; default: the reference image's own.", show_default=False)
    ] = None,
    strip_weights: Annotated[
        Path | None,
        typer.Option(help="A network that finds the brain, TorchScript or .pt2. Default: BET.", show_default=False),
    ] = None,
    strip_sha256: Annotated[
        str | None, typer.Option(help="The SHA-256 of that file; another is not loaded.", show_default=False)
    ] = None,
    strip_output: Annotated[
        str, typer.Option(help="What it gives: probability, logit, or distance (mm, below 0 inside).")
    ] = "probability",
    template: Annotated[
        bool, typer.Option("--template", help="Bring every subject into the space of MNI152 (affine).")
    ] = False,
    auth_file: Annotated[
        Path | None,
        typer.Option(
            help="Holds the server's authorization, `Bearer ...` or `Basic ...`; mode 600.", show_default=False
        ),
    ] = None,
    studies: Annotated[
        Path | None, typer.Option(help="Of a server, only these: StudyInstanceUIDs, one a line.", show_default=False)
    ] = None,
    dates: Annotated[str, typer.Option(help="Of a server, only these study dates: 20240101-20241231.")] = "",
    idle: Annotated[float, typer.Option(min=1, help="Seconds without a new image that end `receive:`.")] = 60.0,
    peer: Annotated[
        list[str] | None, typer.Option(help="AE titles that may send; repeat it. Default: all.", show_default=False)
    ] = None,
) -> None:
    """From DICOM or BIDS to a de-identified, co-registered cohort of brains, with a reason for all that was left out.

    **Where from.** A folder is walked whatever its names and nesting; nothing is unpacked, nothing in it is changed. A
    DICOMweb server is asked page by page; its authorization comes from --auth-file or LACUNA_DICOMWEB_AUTH, never from
    the command line. `receive:11112/LACUNA` listens for what a PACS sends by C-STORE.

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
    from client.ingest.brain import Strip
    from client.ingest.pipeline import ingest as carry_out
    from client.ingest.preparation import Preparation
    from client.ingest.runner import disk_needed, prepare_all
    from client.ingest.sources import find_source

    strip = Strip() if strip_weights is None else Strip(tool="weights", sha256=strip_sha256, output=strip_output)
    options = Preparation(spacing_mm=spacing, to_template=template, strip=strip)

    def prepare_jobs(jobs, cohort, progress):  # type: ignore[no-untyped-def]
        typer.echo(f"{'disk for the cohort':<28}up to {disk_needed(jobs, options) / 1e9:.2f} GB", err=True)
        return prepare_all(
            jobs, cohort, options=options, weights=strip_weights, workers=workers, progress=progress
        )  # fmt: skip

    done = carry_out(
        find_source(source, auth_file=auth_file, studies=studies, dates=dates, idle=idle, peers=tuple(peer or ())),
        out,
        state,
        prepare=prepare_jobs,
        preparation=options.digest,
        modalities=modality,
        review=review,
        visit_days=visit_days,
        workers=workers,
        bar=_bar,
    )
    for name, value in done.summary:
        typer.echo(f"{name:<28}{value}")
    for subject, why in done.excluded.items():
        typer.echo(f"excluded: {subject}: {why}")
    typer.echo(f"{'why each was left aside':<28}{done.asides_file}")
    if done.series_file is not None:
        typer.echo(f"{'what each series is':<28}{done.series_file}")
    if done.visits == 0:
        raise DataError(f"out={out}: no subject can be used; {out / 'exclusions.csv'} says why")
    typer.echo("edit it, then run again without --review" if review else str(done.cohort))


@app.command()
def prepare(
    cohort: Annotated[Path, typer.Argument(help="BIDS folder: sub-*/anat|ct|pet/*.nii.gz and participants.tsv.")],
    height: Annotated[int, typer.Option(min=8, help="Of the grid, in pixels.")] = 64,
    width: Annotated[int, typer.Option(min=8, help="Of the grid, in pixels.")] = 64,
    spacing: Annotated[
        float | None, typer.Option(help="Pixel size in mm; default: each subject's own.", show_default=False)
    ] = None,
    modality: Annotated[
        list[str] | None, typer.Option(help="Only these; repeat it. Default: all that are found.", show_default=False)
    ] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes.", show_default="as many as pay")] = None,
) -> None:
    """Check a cohort file by file and cache it for training; again and again: only what changed is done anew.

    What was used, left aside or excluded, and why, stands in exclusions.csv beside the cache.
    """
    from shared.data import cohort as data
    from shared.data.volumes import Grid

    grid = Grid(spacing_mm=spacing, height=height, width=width)
    with _bar("preparing") as advance:
        done = data.prepare(cohort, grid, modalities=modality, workers=workers, progress=advance)
    for name, value in done.summary:
        typer.echo(f"{name:<28}{value}")
    for remark in done.remarks:
        if remark.done in ("excluded", "skipped modality"):
            typer.echo(f"{remark.done}: {remark.subject} {remark.file}: {remark.why}")
    typer.echo(str(done.folder))


@app.command()
def synthesize(
    bundle: Bundle,
    subject: Annotated[Path, typer.Option(help="A subject's BIDS folder, sub-*.")],
    out: Annotated[
        Path, typer.Option(help="Folder for the synthetic volumes, their uncertainty, sidecars, a preview.")
    ],
    trust: Trust = None,
    any_signer: AnySigner = False,
    target: Annotated[
        list[str] | None, typer.Option(help="Default: all that the subject lacks; repeat it.", show_default=False)
    ] = None,
    without: Without = None,
    sampler: Kind = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Monte-Carlo samples; 2 or more give an uncertainty.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same volume.")] = 0,
    device: Device = "auto",
    force: Force = False,
    diagnosis: Annotated[
        str | None, typer.Option(help="Of models that read the chart: AD | MCI | HC.", show_default=False)
    ] = None,
    mmse: Annotated[float | None, typer.Option(help="0 to 30.", show_default=False)] = None,
    adas13: Annotated[float | None, typer.Option(help="0 to 85.", show_default=False)] = None,
    cdrsb: Annotated[float | None, typer.Option(help="0 to 18.", show_default=False)] = None,
    no_diagnosis: Annotated[
        bool, typer.Option("--no-diagnosis", help="Do not tell the model, whatever participants.tsv says.")
    ] = False,
    chart_values: Annotated[
        bool, typer.Option("--chart-values", help="Write the values into the sidecar too, not their names alone.")
    ] = False,
    dicom: Annotated[
        Path | None,
        typer.Option(
            help="The ingest's STATE, or a folder of the study that the subject's images came from: each synthetic "
            "volume is written as a series of that study, to OUT/SUBJECT/dicom. These files name the patient.",
            show_default=False,
        ),
    ] = None,
    burn_in: Annotated[
        bool, typer.Option("--burn-in", help="Of the DICOM series: write the warning into the pixels too.")
    ] = False,
    push: Annotated[
        str | None,
        typer.Option(help="Send the DICOM series there: https://host/dicom-web, or AET@host:port.", show_default=False),
    ] = None,
    auth_file: Annotated[
        Path | None,
        typer.Option(
            help="Holds the DICOMweb server's authorization, `Bearer ...` or `Basic ...`; mode 600. "
            "Or set LACUNA_DICOMWEB_AUTH.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Fill in what a subject lacks, in the grid of its own images, marked as synthetic.

    With --dicom, back into the PACS: `lacuna-site synthesize --bundle B --trust K.pub --subject COHORT/sub-x --out D
    --dicom STUDY --push https://pacs/dicom-web`. An input unlike what the bundle was trained on is said, or refused.

    **The chart.** A model that reads it (aca_diff) is told what participants.tsv beside the subject's folder says:
    diagnosis, mmse, adas13, cdrsb. An option here wins over the file: `--diagnosis AD --mmse 22 --adas13 28 --cdrsb
    4.5`. The sidecar names what was used. A diagnosis that the model was told is in the image: say `--no-diagnosis` if
    the image is to train a classifier of it.
    """
    from client.charts import Saying
    from client.dicom_send import Back
    from client.synthesize import synthesize as carry_out
    from shared.data.modalities import parse

    said = {"diagnosis": diagnosis, "mmse": mmse, "adas13": adas13, "cdrsb": cdrsb}
    saying = Saying(
        values={name: value for name, value in said.items() if value is not None},
        use_diagnosis=not no_diagnosis,
        show_values=chart_values,
    )
    back = Back.asked(dicom, subject, burn_in=burn_in, push=push, auth_file=auth_file)
    loaded = _load(bundle, trust, any_signer)
    with _bar("synthesizing") as advance:
        done = carry_out(
            loaded,
            subject,
            out,
            sampler=_sampler(sampler),
            samples=samples,
            seed=seed,
            device=device,
            targets=[parse(name) for name in target] if target else None,
            without=[parse(name) for name in without or []],
            progress=advance,
            force=force,
            saying=saying,
        )
    if done.chart is not None:
        typer.echo(done.chart.line, err=True)
    for remark in done.unusual:
        typer.echo(f"unusual input: {remark}", err=True)
    for remark in done.remarks:
        typer.echo(f"left aside: {remark}", err=True)
    for path in done.kept.values():
        typer.echo(f"{path} (was there already, from the same inputs and bundle)")
    for path in done.made.values():
        typer.echo(str(path))
    if done.preview is not None:
        typer.echo(str(done.preview))
    if back is not None:
        series = back.write({**done.kept, **done.made}, out / done.subject / "dicom")
        for one in series:
            typer.echo(f"{one.folder} ({len(one.files)} images, series {one.uid})")
        with _bar("sending") as advance:
            where = back.send(series, progress=advance)
        if where is not None:
            typer.echo(f"{sum(len(one.files) for one in series)} images stored by {where}")


@app.command()
def reconstruct(
    bundle: Bundle,
    subject: Annotated[Path, typer.Option(help="The subject's BIDS folder, sub-*, with the volumes that it has.")],
    out: Annotated[Path, typer.Option(help="Folder for the volumes, their uncertainty, sidecars, a preview.")],
    trust: Trust = None,
    any_signer: AnySigner = False,
    measured: Annotated[
        list[str] | None,
        typer.Option(help="MODALITY=FILE: k-space in fastMRI or ISMRMRD layout (HDF5); repeat it.", show_default=False),
    ] = None,
    maps: Annotated[
        list[str] | None,
        typer.Option(
            help="MODALITY=FILE: its coil maps, HDF5 or npy. Default: the k-space file's own, or estimated.",
            show_default=False,
        ),
    ] = None,
    simulate: Annotated[
        list[str] | None,
        typer.Option(help="Measure this volume of the subject, hide it, and score the result.", show_default=False),
    ] = None,
    acceleration: Annotated[int, typer.Option(min=1, help="simulate: one line in so many.")] = 4,
    coils: Annotated[int, typer.Option(min=1, help="simulate: coils around the head.")] = 8,
    acs: Annotated[int, typer.Option(min=0, help="simulate: lines measured round the centre.")] = 0,
    noise: Annotated[float, typer.Option(min=0, help="simulate: sd of a complex sample, of the image's range.")] = 0.01,
    mask: Annotated[str, typer.Option(help="simulate: equispaced | random")] = "equispaced",
    spacing: Annotated[
        str | None,
        typer.Option(help="X,Y,Z in mm, for raw data alone whose header does not say it.", show_default=False),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="Default: what is measured, and what the subject lacks; repeat it.", show_default=False),
    ] = None,
    without: Without = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="told | mds_fast | mds_paper | mps_paper. Default: the bundle's, or told.", show_default=False
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Monte-Carlo samples; 2 or more give an uncertainty.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same volume.")] = 0,
    device: Device = "auto",
    force: Force = False,
) -> None:
    """Reconstruct raw measurements and fill in what a subject lacks, from any mix of volumes and k-space.

    Rows of k-space are the anterior-posterior index, columns the left-right one; ISMRMRD files say their directions.
    """
    from client.cases import Raw
    from client.measurements import Simulation
    from client.reconstruct import parse_pairs, parse_spacing
    from client.reconstruct import reconstruct as carry_out
    from shared.data.modalities import parse
    from shared.options import build

    simulation = {"acceleration": acceleration, "coils": coils, "acs": acs, "noise": noise, "mask": mask}
    raw = Raw(
        measured=parse_pairs("measured", measured or []),
        maps=parse_pairs("maps", maps or []),
        simulate=tuple(parse(name) for name in simulate or []),
        simulation=build(Simulation, simulation, "simulate"),
        spacing_mm=None if spacing is None else parse_spacing(spacing),
    )
    loaded = _load(bundle, trust, any_signer)
    with _bar("reconstructing") as advance:
        done = carry_out(
            loaded,
            subject,
            raw,
            out,
            sampler=_sampler(sampler),
            samples=samples,
            seed=seed,
            device=device,
            targets=[parse(name) for name in target] if target else None,
            without=[parse(name) for name in without or []],
            progress=advance,
            force=force,
        )
    for remark in done.unusual:
        typer.echo(f"unusual input: {remark}", err=True)
    for remark in done.remarks:
        typer.echo(f"left aside: {remark}", err=True)
    for modality, line in done.flags.items():
        typer.echo(f"{modality}: {line}", err=True)
    for path in done.kept.values():
        typer.echo(f"{path} (was there already, from the same inputs and bundle)")
    for path in done.made.values():
        typer.echo(str(path))
    for modality, score in done.scores.items():
        typer.echo(f"{modality} against the hidden volume: " + ", ".join(f"{k} {v:g}" for k, v in score.items()))
    if done.preview is not None:
        typer.echo(str(done.preview))


@app.command()
def evaluate(
    bundle: Bundle,
    cohort: Annotated[Path, typer.Option(help="BIDS folder; it is prepared for the bundle's grid.")],
    out: Annotated[Path, typer.Option(help="Folder for the report; it names subjects and stays at the site.")],
    trust: Trust = None,
    any_signer: AnySigner = False,
    sampler: Kind = None,
    every: Annotated[int, typer.Option(min=1, help="Use one brain slice in so many.")] = 1,
    seed: int = 0,
    device: Device = "auto",
) -> None:
    """Score a bundle on the site's own subjects, each present modality hidden in turn."""
    from client.evaluate import evaluate_here
    from shared.data import cohort as data

    loaded = _load(bundle, trust, any_signer)
    with _bar("preparing") as advance:
        prepared = data.prepare(cohort, loaded.model.grid, progress=advance).cohort
    with _bar("scoring") as advance:
        evaluate_here(
            loaded, prepared, out, sampler=_sampler(sampler), seed=seed, every=every, device=device, progress=advance
        )
    typer.echo(str(out))


@app.command()
def review(
    cohort: Annotated[Path, typer.Argument(help="The cohort of an ingest.", show_default=False)],
    accept: Annotated[
        list[str] | None, typer.Option(help="A subject to take though it was excluded.", show_default=False)
    ] = None,
    reject: Annotated[list[str] | None, typer.Option(help="A subject to leave out.", show_default=False)] = None,
    why: Annotated[str, typer.Option(help="The reason, for whoever reads the decision later.")] = "",
) -> None:
    """List a cohort's subjects, or write down a person's decision on some of them. Look at quality.html first.

    A rejected subject's files stay, and `lacuna-site prepare` leaves it out, with the reason in its exclusions.csv. An
    accepted one is prepared at the next ingest with the limits of quality set aside. The latest decision counts.
    """
    from client.ingest.review import decide, listing

    if accept or reject:
        decide(cohort, accept=accept or (), reject=reject or (), why=why)
    for row in listing(cohort):
        typer.echo(f"{row.subject:<24}{row.state:<16}{row.why}")


@app.command()
def budget(
    state: Annotated[Path, typer.Argument(help="This site's private disk; the ledger is STATE/privacy.")],
    plan: Annotated[
        Path | None,
        typer.Option(
            help="A run's config.json: what it would cost, and whether it fits; exit code 4 if not.", show_default=False
        ),
    ] = None,
    set_epsilon: Annotated[
        float | None, typer.Option(help="Raise or lower the budget; stands in the ledger for good.", show_default=False)
    ] = None,
    set_size: Annotated[
        int | None, typer.Option(help="Another round figure of the site's subjects; likewise.", show_default=False)
    ] = None,
    why: Annotated[str, typer.Option(help="The reason, for whoever reads the decision later.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="For a program.")] = False,
) -> None:
    """What this site's subjects have given away by private training, in all runs together, and what is left.

    **Epsilon** bounds what anyone can learn about one subject from all that was ever sent: whatever they conclude, its
    odds would have been within a factor of e^epsilon had that subject not taken part (but for a chance of delta). 1 is
    strict, 8 is common, and it only ever grows, with every step of every run.

    **The ledger can't be reset**, by a new run, a new model or by hand: each row is tied to the one before under
    STATE/privacy/key, and a ledger that is changed, missing or older than it was is refused, never taken for a fresh
    start. A charge is written before the data are looked at and never given back. When the budget is spent nothing is
    admitted any more, however cheap, until you raise it: `lacuna-site budget STATE --set-epsilon 10 --why "..."`.

    **Backup**: copy STATE/privacy and STATE/privacy.enrolled together, while no run is on. Once the site has trained
    since, a restored copy is refused, here or by the coordinator: it would forget what was spent meanwhile.

    **Before a run** ask what it would cost: `lacuna-site budget STATE --plan config.json`; exit code 4 if too much.
    """
    import json

    from client import budget_view as view
    from client.budget import Budget

    folder = state / "privacy"
    if plan is not None:
        said = view.what_if(folder, view.read_settings(plan))
        typer.echo(json.dumps(said, indent=1) if as_json else "\n".join(view.plan_lines(said)))
        view.refuse(said)
        return
    if set_epsilon is not None or set_size is not None:
        with Budget.open(folder) as ledger:
            ledger.change_budget(set_epsilon, size=set_size, why=why)
    with Budget.look(folder) as ledger:
        said = view.facts(ledger)
    typer.echo(json.dumps(said, indent=1) if as_json else "\n".join(view.lines(said)))


audits = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="Look for what should not be there.")
app.add_typer(audits, name="audit")
app.add_typer(enrol_cli.app)
app.add_typer(node_cli.app)
app.add_typer(policy_cli.app)


@audits.command("privacy")
def audit_privacy(
    repeat: Annotated[int, typer.Option(min=1, help="Audits, one after the other; shows how often one fails.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Is the private engine of this installation what its epsilon says? Takes seconds and looks at no image.

    Made-up subjects with chosen gradients go through the same charge, coins, clip, noise and division as real ones.

    **sensitivity**: one subject more, with the same coins and noise, moves the sum by at most the clip, however its
    slices and layers are made up. **noise**: a step that draws nobody releases normal noise of the right size that
    never repeats. **sites**: two sites, or one restarted, share neither noise nor coins. **ledger**: every step is
    charged once, before anything is looked at, and a refused charge ends it. **sampling**: every subject has its own
    coin. **one_run**: from what was released alone, how large must epsilon be at least (Steinke et al., arXiv
    2305.08846)? It must not be more than was charged.

    The first five do most of the work. The sixth proves a floor that lies far below the true epsilon, so that it alone
    misses many faults; it is there for faults that nobody thought of. None of them sees a weak random source of the
    operating system, a method that lets one subject into another's loss (tests hold each method to that), rounding
    in the last bits, or how long a step takes. A right engine fails less than one audit in a thousand; one that fails
    twice is wrong, and nothing should be trained with it. Exit code 5 where anything fails.
    """
    from client.audit_privacy import audit_privacy as carry_out

    carry_out(repeat=repeat, as_json=as_json, bar=_bar)


@audits.command("memorisation")
def audit_memorisation(
    bundle: Bundle,
    train: Annotated[Path, typer.Option(help="BIDS cohort that the bundle was trained on: its split `train`.")],
    heldout: Annotated[
        Path, typer.Option(help="BIDS cohort of the same kind that it was not; the same folder: its other splits.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for figures and pictures: patient data, stays at the site.")],
    trust: Trust = None,
    any_signer: AnySigner = False,
    duplicates: Annotated[
        float, typer.Option(min=0, max=1, help="Warn above this share of near-duplicates, beyond the control.")
    ] = 0.05,
    auc: Annotated[
        float, typer.Option(min=0.5, max=1, help="Warn where the interval of the membership AUC begins above this.")
    ] = 0.6,
    subjects: Annotated[int, typer.Option(min=1, help="Of each cohort, at most so many go through the network.")] = 100,
    slices: Annotated[int, typer.Option(min=1, help="Of each subject.")] = 8,
    draws: Annotated[int, typer.Option(min=1, help="Of times and noise, for each slice.")] = 16,
    sampler: Kind = None,
    seed: Annotated[int, typer.Option(help="Same seed, same figures.")] = 0,
    device: Device = "auto",
    strict: Annotated[bool, typer.Option("--strict", help="Exit code 4 after a warning.")] = False,
) -> None:
    """Does a bundle remember this site's training subjects? Compares them with held-out ones, and sends nothing.

    **Near-duplicates**: each modality of held-out subjects is hidden and made again. A made slice counts that lies
    nearer to some training slice than all but 1 % of real held-out slices do. The control asks the same of subjects
    that nobody trained on, since smooth images lie nearer to everybody; the limit, five times that 1 %, is of the
    difference.

    **Membership**: can training subjects be told by their lower loss? AUC 0.5 is chance. The default limit, 0.6 at the
    lower end of the 95 % interval, is where one in ten is recognised at 5 % false alarms instead of one in twenty.

    **Held-out subjects** must be of the same scanners and years, or the audit measures that difference; a network that
    was never trained is asked too, and tells. At least 4 of each kind are needed, 20 for all figures, 100 for an
    interval of 0.16 around chance.

    OUT/summary.json holds the few figures that may go to the coordinator: `lacuna export --audit summary.json`. Like
    all figures of an audit it is no part of a privacy budget. No warning is no proof that nothing was memorised.
    """
    from client.inspection import Effort
    from client.memorisation import audit_memorisation as carry_out
    from shared.audits import Limits
    from shared.data import cohort as data

    limits = Limits(duplicates=duplicates, auc=auc)
    effort = Effort(subjects=subjects, slices=slices, draws=draws, seed=seed)
    loaded = _load(bundle, trust, any_signer)
    with _bar("preparing") as advance:
        trained, others = (
            data.prepare(folder, loaded.model.grid, progress=advance).cohort for folder in (train, heldout)
        )
    with _bar("looking") as advance:
        done = carry_out(
            loaded,
            trained,
            others,
            out,
            limits=limits,
            effort=effort,
            sampler=_sampler(sampler),
            device=device,
            progress=advance,
        )
    for remark in done.remarks:
        typer.echo(f"remark: {remark}", err=True)
    for warning in done.summary.warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(done.verdict)
    typer.echo(str(out))
    if strict and done.summary.warnings:
        raise PlanRefused(f"audit: {len(done.summary.warnings)} figures are above the limits, and --strict was said")


def _load(folder: Path, trust: Path | None, any_signer: bool):  # type: ignore[no-untyped-def]
    from shared import bundle

    if trust is None and not any_signer:
        raise ConfigError("--trust: name the coordinator's public key, or say --any-signer to take any whole bundle")
    return bundle.load(folder, trusted=None if trust is None else bundle.read_public_key(trust))


def _sampler(kind: str | None):  # type: ignore[no-untyped-def]
    from shared.config import load_sampler

    return None if kind is None else load_sampler(kind)


@contextmanager
def _bar(title: str) -> Iterator:  # type: ignore[type-arg]
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def main() -> None:
    """Errors become one line and their exit code; only a bug shows a traceback."""
    try:
        app()
    except LacunaError as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:  # a full disk, a folder that can't be written
        typer.echo(f"DataError: {error}", err=True)
        sys.exit(DataError.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
