"""`lacuna`: the coordinator's and the researcher's command. Thin: every verb calls one function elsewhere."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from server.cli import federation as federation_cli
from server.cli import receipts as receipts_cli
from server.cli import train as train_cli
from shared.base import doors
from shared.base.errors import ConfigError, LacunaError, RunFailed

if TYPE_CHECKING:
    from shared.data.phantom.brains import Family

app = typer.Typer(
    name="lacuna",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""Train together the models that fill in missing imaging modalities, without an image leaving a site.

On one machine: **phantom** makes hospitals, **simulate** trains over them, **evaluate** says what the federation
bought them, **export** gives the signed bundle that `lacuna-site synthesize` runs, **report** tells it on one page.

Exit codes: 0 done · 2 a wrong key or value · 3 data that can't be used · 4 a plan that a site refuses ·
5 a run that could not go on (its checkpoint is whole: the same command with `resume=RUN` goes on).""",
)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Any key of configs/config.yaml, such as `size=tiny`, `strategy=fedadam`, `method.encoder=unet`.",
        show_default=False,
    ),
]
Run = Annotated[str, typer.Argument(help="Name of the run.")]
Runs = Annotated[Path, typer.Option(help="Folder of all runs.")]


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(help="Folder to write: sites/, heldout/, coordinator/, contact sheets.")],
    family: Annotated[str, typer.Option(help="glioma | dementia | vessels")] = "glioma",
    sites: Annotated[int, typer.Option(min=1, max=999, help="How many hospitals.")] = 3,
    subjects: Annotated[int, typer.Option(min=1, help="Training subjects per site.")] = 12,
    subjects_at: Annotated[
        list[str] | None, typer.Option(help="Another number at a site, as `site-c=8`; repeat it.", show_default=False)
    ] = None,
    heldout: Annotated[int, typer.Option(min=0, help="Complete test subjects per site, never trained on.")] = 4,
    coordinator: Annotated[int, typer.Option(min=0, help="Complete subjects of the coordinator's own.")] = 3,
    missing: Annotated[
        list[str] | None,
        typer.Option(
            help="What a site never acquires, as `site-a=FLAIR,T2`; repeat it for others, `none` for nothing anywhere. "
            "Default: the sites lack one or another, in turn.",
            show_default=False,
        ),
    ] = None,
    drop: Annotated[float, typer.Option(min=0, max=1, help="Chance that a training subject lacks one more.")] = 0.0,
    size: Annotated[int, typer.Option(min=16, help="Voxels along each edge of the 192 mm cube.")] = 64,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    anatomy: Annotated[
        Path | None, typer.Option(help="Folder of FreeSurfer-style label maps. Default: nilearn's MNI152 maps.")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0 is one per core.")] = 0,
) -> None:
    """Make hospitals: multi-modality brains as BIDS cohorts, with lesions, scanners and missing patterns of their own.

    `lacuna phantom world --family dementia --sites 4 --missing site-a=AV45 --missing site-b=FDG,CT`
    """
    from shared.base.display import terminal
    from shared.base.options import build
    from shared.data.phantom.phantom import FAMILIES, PhantomOptions, write_world

    if family not in FAMILIES:
        raise ConfigError(f"--family {family}: must be one of {', '.join(FAMILIES)}")
    names = tuple(f"site-{chr(ord('a') + i)}" if sites <= 26 else f"site-{i + 1:03d}" for i in range(sites))
    options = build(
        PhantomOptions,
        {
            "family": family,
            "subjects": subjects,
            "counts": _counts(subjects_at, names, subjects),
            "heldout": heldout,
            "coordinator": coordinator,
            "sites": names,
            "missing": _missing(missing, names, cast("Family", family)),
            "drop": drop,
            "size": size,
            "seed": seed,
            "anatomy": anatomy,
        },
        "phantom",
    )
    with terminal.bar("drawing subjects") as advance:
        typer.echo(str(write_world(options, out, workers=workers, progress=advance)))


@app.command()
def simulate(overrides: Overrides = None) -> None:
    """Run a whole federation on this machine: the same apps and messages as between hospitals.

    `lacuna simulate world=demo/world size=small` trains; `resume=RUN` goes on after a kill, to the same bits;
    `federation.alone=true` trains each site alone afterwards; `federation.engine=ray` uses Flower's own simulation.
    """
    from server.runs import runs
    from server.runs.simulation import find_cohorts
    from server.runs.simulation import simulate as carry_out

    config, folder = runs.create(overrides or [], check=find_cohorts)
    typer.echo(str(carry_out(config, folder)))


@app.command()
def pretrain(overrides: Overrides = None) -> None:
    """Train the same method on all cohorts of a world pooled in one place: the counterpart of a federation.

    Several GPUs: `torchrun --nproc-per-node 4 -m server.cli pretrain world=... size=paper run=prior`.
    """
    from server.runs import runs
    from server.runs.pretrain import one_site
    from server.runs.pretrain import pretrain as carry_out
    from server.runs.simulation import find_cohorts

    typer.echo(str(carry_out(*runs.create_shared(overrides or [], check=find_cohorts, form=one_site))))


@app.command()
def evaluate(
    words: Annotated[
        list[str],
        typer.Argument(metavar="RUN... [task=TASK] [KEY=VALUE]...", help="A run, or runs to compare at a task."),
    ],
    runs_folder: Annotated[Path, typer.Option("--runs", help="Folder of all runs.")] = Path("runs"),
    sampler: Annotated[
        str | None, typer.Option(help="mean | multistep | ddim | ancestral. Default: the run's.", show_default=False)
    ] = None,
    every: Annotated[int, typer.Option(min=1, help="Use one brain slice in so many.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the samplers that draw noise; paired over models.")] = 0,
    device: Annotated[str, typer.Option(help="auto | cpu | cuda")] = "auto",
) -> None:
    """Score a run on held-out subjects: every shown subset x target x site, against floors and each site alone.

    Writes scores.csv, bought.csv, summary.json and figures to runs/RUN/evaluation; prints what the federation bought.

    `lacuna evaluate aca aca:scores ldm task=diagnosis` asks what sets that runs of aca_diff and ldm complete are worth
    to a classifier of AD against HC, beside leaving subjects out, the mean volume and a regression. RUN:scores is not
    told the diagnosis, RUN:diagnosis nothing else, RUN:images nothing of the chart. Keys: `study=FOLDER` (subjects of
    its own, default the world's held-out ones), `strangers=true` (though some bear the names of trained ones),
    `size=tiny|small|paper`, `rates=[0.2,0.4,0.6,0.8]`, `generations=3`, `test_loses=true`, `test=0.3`, `val=0.2`,
    `ill=AD|MCI`, `well=HC|MCI`, `steps=N`, `out=FOLDER`. Stopped, the same command goes on.

    `lacuna evaluate aca aca:images ldm task=images` gives PSNR, SSIM, NMI and MAE of every direction for the same kind
    of rows, floors, and each site's own model. Keys: `subjects=N` of each site, `out=FOLDER`.
    """
    from server.cli import evaluate as evaluate_cli
    from server.evaluation.compare import compare
    from shared.base.display import terminal
    from shared.model.scorecard import printable
    from shared.plan.config import load_sampler

    if evaluate_cli.carry_out(words, runs=runs_folder, sampler=sampler, seed=seed, device=device):
        return
    run = words[0]
    chosen = load_sampler(sampler) if sampler is not None else None
    with terminal.bar("scoring") as advance:
        lines = compare(runs_folder / run, sampler=chosen, every=every, seed=seed, device=device, progress=advance)
    terminal.table("PSNR in dB; differences with 95 % intervals over subjects", *printable(lines))


@app.command()
def restore(
    run: Run,
    runs_folder: Annotated[Path, typer.Option("--runs", help="Folder of all runs.")] = Path("runs"),
    sampler: Annotated[
        list[str] | None,
        typer.Option(
            help="mds_paper | mps_paper | mds_fast | told | mean ...; repeat it.", show_default="mds_fast, told"
        ),
    ] = None,
    group: Annotated[
        list[str] | None, typer.Option(help="reconstruct | synthesise | mixed; repeat it.", show_default="all")
    ] = None,
    slices: Annotated[int, typer.Option(min=2, help="Held-out slices, one of each subject while they last.")] = 24,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Monte-Carlo samples, averaged.", show_default="the sampler's")
    ] = None,
    acceleration: Annotated[int, typer.Option(min=1, help="Of the simulated raw data.")] = 4,
    coils: Annotated[int, typer.Option(min=1)] = 8,
    acs: Annotated[int, typer.Option(min=0, help="Lines in the middle that are always measured.")] = 0,
    noise: Annotated[float, typer.Option(min=0, help="Of a complex sample, for images in [0, 1].")] = 0.01,
    seed: Annotated[int, typer.Option(help="Of slices, noise and samples; paired over all ways.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Default: runs/RUN/restoration.", show_default=False)] = None,
    device: Annotated[str, typer.Option(help="auto | cpu | cuda")] = "auto",
) -> None:
    """Score a prior (method any2all) at reconstruction from raw data, synthesis, and both, against floors.

    Writes scores.csv, gains.csv, summary.json and pictures; prints the table.
    """
    from server.evaluation.restoration import printable
    from server.evaluation.restoration import restore as carry_out
    from server.evaluation.tasks import Scan
    from shared.base.display import terminal

    with terminal.bar("restoring") as advance:
        outcomes = carry_out(
            runs_folder / run,
            samplers=sampler or ["mds_fast", "told"],
            groups=group or (),
            scan=Scan(acceleration=acceleration, coils=coils, acs=acs, noise=noise),
            count=slices,
            samples=samples,
            seed=seed,
            device=device,
            out=out,
            progress=advance,
        )
    terminal.table("means over slices, in the brain; gains in dB with 95 % intervals", *printable(outcomes))


@app.command()
def vessels(
    run: Annotated[list[str], typer.Argument(help="Names of finished runs; the others are compared with the first.")],
    runs_folder: Annotated[Path, typer.Option("--runs", help="Folder of all runs.")] = Path("runs"),
    shown: Annotated[
        list[str] | None,
        typer.Option(
            help="T1+T2+FLAIR | all, which is every subset; repeat it. Default: all sources of each run.",
            show_default=False,
        ),
    ] = None,
    sampler: Annotated[
        list[str] | None,
        typer.Option(
            help="bridge | bridge_fast | ddim | mean ... for all runs that take it, or RUN=ddim for one; repeat it. "
            "Default: the run's.",
            show_default=False,
        ),
    ] = None,
    subjects: Annotated[int | None, typer.Option(min=1, help="The first few of each site.", show_default="all")] = None,
    low: Annotated[
        float, typer.Option(help="Vessels are at least this bright; 0.23 suits voxels of 2 mm, 0.32 of 3 mm ...")
    ] = 0.23,
    high: Annotated[float, typer.Option(help="... and each reaches this somewhere; 0.44 at 3 mm.")] = 0.33,
    seed: Annotated[int, typer.Option(help="Of the samplers that draw noise; paired over runs.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Default: vessels/ in the first run.", show_default=False)] = None,
    device: Annotated[str, typer.Option(help="auto | cpu | cuda")] = "auto",
) -> None:
    """Score runs that make angiograms (mmdm, bbdm, ddpm, pix2pix) side by side: volumes, projections, vessels.

    Writes scores.csv, summary.csv, summary.json and mips.png; what scores.csv has is not made again.
    """
    from server.evaluation.vessel_tables import printable
    from server.evaluation.vessels import compare_vessels
    from shared.base.display import terminal
    from shared.model.angiograms import Threshold

    with terminal.bar("filling volumes") as advance:
        lines = compare_vessels(
            run,
            runs_folder,
            shown=shown or (),
            samplers=sampler or (),
            subjects=subjects,
            seed=seed,
            device=device,
            out=out,
            rule=Threshold(low=low, high=high),
            progress=advance,
        )
    title = "means over subjects, in the brain; MIP: axial; leads over the first run with 95 % intervals"
    terminal.table(title, *printable(lines))


@app.command()
def generate(
    run: Run,
    out: Annotated[Path, typer.Option(help="Folder for sets.npy and a contact sheet.")],
    runs_folder: Annotated[Path, typer.Option("--runs", help="Folder of all runs.")] = Path("runs"),
    count: Annotated[int, typer.Option(min=1, help="Complete sets to make.")] = 8,
    sampler: Annotated[str, typer.Option(help="ancestral | ddim | multistep | mds_fast ...")] = "ancestral",
    steps: Annotated[int | None, typer.Option(min=1, show_default="the sampler's")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same sets.")] = 0,
    device: Annotated[str, typer.Option(help="auto | cpu | cuda")] = "auto",
) -> None:
    """Draw complete sets of modalities from a prior (method any2all), out of nothing: what has it learnt?"""
    import dataclasses

    from server.evaluation.generation import generate as carry_out
    from shared.base.display import terminal
    from shared.plan.config import load_sampler

    chosen = load_sampler(sampler)
    chosen = chosen if steps is None else dataclasses.replace(chosen, steps=steps)
    with terminal.bar("generating sets") as advance:
        done = carry_out(
            runs_folder / run, out, count=count, sampler=chosen, seed=seed, device=device, progress=advance
        )
    typer.echo(str(done))


@app.command()
def export(
    run: Run,
    out: Annotated[Path, typer.Option(help="Folder of the bundle.")],
    key: Annotated[Path, typer.Option(help="Ed25519 signing key, mode 0600; made where there is none.")],
    runs_folder: Annotated[Path, typer.Option("--runs", help="Folder of all runs.")] = Path("runs"),
    ranges: Annotated[
        Path | None,
        typer.Option(
            help="The coordinator's own BIDS cohort: what inputs the bundle is for. Default: WORLD/coordinator.",
            show_default=False,
        ),
    ] = None,
    audit: Annotated[
        list[Path] | None,
        typer.Option(
            help="A site's summary.json of `lacuna-site audit memorisation`, kept in the bundle; repeat it.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Turn a finished run into a signed bundle: weights, config, provenance, hashes, torch.export and ONNX denoiser.

    Prints what may be said of the training's privacy. An audit above the limits that its site set is a warning.
    """
    import json

    from server.evaluation.compare import headline_figures
    from server.runs.trained_on import ranges_for
    from shared.model import bundle
    from shared.trust.audits import read_summary

    if not key.exists():
        typer.echo(f"made a signing key: {key} (keep it), {bundle.public_path(key)} (give it to the sites)", err=True)
        bundle.make_signing_key(key)
    folder = runs_folder / run
    made_for = ranges_for(folder, ranges)
    if made_for is None:
        typer.echo(
            "no subjects of the coordinator's own: sites can't check what they show the bundle (--ranges)", err=True
        )
    audits = [read_summary(path) for path in audit or []]
    for path, found in zip(audit or [], audits, strict=True):
        for warning in found.warnings:
            typer.echo(f"warning: {path}: {warning}", err=True)
    done = bundle.export(
        folder / "final", out, key=key, metrics=headline_figures(folder), ranges=made_for, audits=audits
    )
    for line in json.loads((done / bundle.MANIFEST).read_text())["privacy"]["statement"]:
        typer.echo(line)
    typer.echo(str(done))


@app.command()
def report(
    run: Run,
    runs_folder: Annotated[Path, typer.Option("--runs", help="Folder of all runs.")] = Path("runs"),
    out: Annotated[Path | None, typer.Option(help="Default: runs/RUN/report.html.", show_default=False)] = None,
) -> None:
    """Tell a run on one self-contained HTML page; works on unfinished runs too."""
    from server.report.report import write_report

    typer.echo(str(write_report(runs_folder / run, out)))


audits = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="Look for what should not be there.")
app.add_typer(audits, name="audit")
app.add_typer(federation_cli.app, name="federation")
app.add_typer(receipts_cli.app)
app.add_typer(train_cli.app)


@audits.command("privacy")
def audit_privacy(
    repeat: Annotated[int, typer.Option(min=1, help="Audits, one after the other; shows how often one fails.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Is the private engine that sites train with what its epsilon says? Takes seconds and needs no data.

    The same as `lacuna-site audit privacy`, whose --help says what each test shows and what none of them can.
    Exit code 5 where anything fails.
    """

    from shared.base.display import terminal

    carry_out = doors.load(doors.ENGINE_AUDIT)
    carry_out(repeat=repeat, as_json=as_json, bar=terminal.bar)


def _counts(said: Sequence[str] | None, sites: Sequence[str], usual: int) -> tuple[int, ...]:
    """`site-c=8` to a number for every site."""
    if not said:
        return ()
    counts = dict.fromkeys(sites, usual)
    for entry in said:
        site, _, number = entry.partition("=")
        if site not in counts or not number.isdecimal():
            raise ConfigError(f"--subjects-at {entry}: must be SITE=NUMBER, with one of {', '.join(sites)}")
        counts[site] = int(number)
    return tuple(counts.values())


def _missing(given: list[str] | None, sites: tuple[str, ...], family: "Family") -> tuple[tuple[str, ...], ...]:
    """Per site, what it never acquires."""
    from shared.data.modalities import parse
    from shared.data.phantom.phantom import usually_missing

    if given is None:
        return usually_missing(family, sites)
    if given == ["none"]:
        return ()
    lacks: dict[str, tuple[str, ...]] = {}
    for entry in given:
        site, _, names = entry.partition("=")
        if site not in sites or not names:
            raise ConfigError(f"--missing {entry}: must be SITE=MODALITY,... with a site among {', '.join(sites)}")
        lacks[site] = tuple(parse(name) for name in names.split(","))
    return tuple(lacks.get(site, ()) for site in sites)


def run_app(application: Callable[[], None]) -> None:
    """Errors become one line and their exit code; only a bug shows a traceback."""
    try:
        application()
    except LacunaError as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:  # a full disk, a folder that can't be written: what was saved before is whole
        typer.echo(f"RunFailed: {error}", err=True)
        sys.exit(RunFailed.exit_code)
    except KeyboardInterrupt:
        typer.echo("stopped; a run goes on with resume=RUN", err=True)
        sys.exit(130)


def main() -> None:
    run_app(app)
