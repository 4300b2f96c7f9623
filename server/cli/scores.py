"""`lacuna evaluate | restore | vessels | generate`: what finished runs are worth. Thin: the work is done elsewhere."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from server.cli.options import RUNS, Device, Run, Runs
from shared.base.verbs import flat

app = typer.Typer(rich_markup_mode="markdown")


@app.command()
def evaluate(
    words: Annotated[
        list[str],
        typer.Argument(metavar="RUN... [task=TASK] [KEY=VALUE]...", help="A run, or runs to compare at a task."),
    ],
    runs_folder: Runs = RUNS,
    sampler: Annotated[
        list[str] | None,
        typer.Option(
            help="mean | multistep | ddim | ancestral, or KIND:SAMPLES (multistep:1); repeat it to compare. "
            "Default: the run's.",
            show_default=False,
        ),
    ] = None,
    every: Annotated[int, typer.Option(min=1, help="Use one brain slice in so many.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the samplers that draw noise; paired over models.")] = 0,
    device: Device = "auto",
) -> None:
    """Score a run on held-out subjects: every shown subset x target x site, against floors and each site alone.

    Writes scores.csv, bought.csv, summary.json and figures to runs/RUN/evaluation; prints what the federation bought,
    and what samples are worth: texture, and how many truths their intervals hold (`lacuna calibrate` mends those).
    Refused where a held-out subject was trained on, by its images or its name; `strangers=true` says that those of one
    name are different people.

    `lacuna evaluate aca aca:scores ldm task=diagnosis` asks what sets that runs of aca_diff and ldm complete are worth
    to a classifier of AD against HC, beside leaving subjects out, the mean volume and a regression. RUN:scores is not
    told the diagnosis, RUN:diagnosis nothing else, RUN:images nothing of the chart. Keys: `study=FOLDER` (subjects of
    its own, default the world's held-out ones), `strangers=true`, `size=tiny|small|paper`, `rates=[0.2,0.4,0.6,0.8]`,
    `generations=3`, `test_loses=true`, `test=0.3`, `val=0.2`, `ill=AD|MCI`, `well=HC|MCI`, `steps=N`, `out=FOLDER`.
    Stopped, the same command goes on.

    `lacuna evaluate aca aca:images ldm task=images` gives PSNR, SSIM, NMI and MAE of every direction for the same kind
    of rows, floors, and each site's own model. Keys: `subjects=N` of each site, `strangers=true`, `out=FOLDER`.
    """
    from server.cli import evaluate as evaluate_cli

    evaluate_cli.carry_out(words, sampler or [], every, runs=runs_folder, seed=seed, device=device)


@app.command()
def calibrate(
    run: Run,
    runs_folder: Runs = RUNS,
    sampler: Annotated[
        str | None,
        typer.Option(help="KIND or KIND:SAMPLES that draws. Default: the run's, or multistep.", show_default=False),
    ] = None,
    cohort: Annotated[
        Path | None,
        typer.Option(help="Subjects whom nobody trained on, as BIDS. Default: WORLD/coordinator.", show_default=False),
    ] = None,
    every: Annotated[int, typer.Option(min=1, help="Use one brain slice in so many.")] = 6,
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    device: Device = "auto",
) -> None:
    """Tell from the coordinator's own subjects how wide an interval about a model's samples holds nine truths in ten.

    Kept in runs/RUN/calibration.json, for that sampler alone: `lacuna evaluate --sampler` says how well it holds on
    held-out subjects, `lacuna export` puts it into the bundle, and a site's uncertainty maps are then calibrated.
    """
    from server.evaluation import calibrate as work
    from server.evaluation.compare import named
    from server.evaluation.ways import Asked
    from shared.base.display import terminal

    with terminal.bar("drawing") as advance:
        asked = Asked(names=(run,), runs=runs_folder, seed=seed, device=device, progress=advance)
        found = work.calibrate(asked, sampler=named(sampler) if sampler else None, cohort=cohort, every=every)
    terminal.table(f"half widths for 90 %, in % of the range, from {found.source}", *work.intervals(found))


@dataclass(frozen=True, slots=True, kw_only=True)
class Restoring:
    """What is restored, and by which samplers."""

    sampler: Annotated[
        list[str] | None,
        typer.Option(
            help="mds_paper | mps_paper | mds_fast | told | mean ...; repeat it.", show_default="mds_fast, told"
        ),
    ] = None
    group: Annotated[
        list[str] | None, typer.Option(help="reconstruct | synthesise | mixed; repeat it.", show_default="all")
    ] = None
    slices: Annotated[int, typer.Option(min=2, help="Held-out slices, one of each subject while they last.")] = 24
    samples: Annotated[
        int | None, typer.Option(min=1, help="Monte-Carlo samples, averaged.", show_default="the sampler's")
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scanned:
    """The raw data that are simulated."""

    acceleration: Annotated[int, typer.Option(min=1, help="Of the simulated raw data.")] = 4
    coils: Annotated[int, typer.Option(min=1)] = 8
    acs: Annotated[int, typer.Option(min=0, help="Lines in the middle that are always measured.")] = 0
    noise: Annotated[float, typer.Option(min=0, help="Of a complex sample, for images in [0, 1].")] = 0.01


@app.command()
@flat
def restore(
    run: Run,
    *,
    runs_folder: Runs = RUNS,
    restoring: Restoring,
    scan: Scanned,
    seed: Annotated[int, typer.Option(help="Of slices, noise and samples; paired over all ways.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Default: runs/RUN/restoration.", show_default=False)] = None,
    device: Device = "auto",
) -> None:
    """Score a prior (method any2all) at reconstruction from raw data, synthesis, and both, against floors.

    Writes scores.csv, gains.csv, summary.json and pictures; prints the table.
    """
    from server.evaluation.restoration import printable
    from server.evaluation.restoration import restore as carry_out
    from server.evaluation.tasks import Scan
    from server.evaluation.ways import Asked
    from shared.base.display import terminal

    with terminal.bar("restoring") as advance:
        outcomes = carry_out(
            Asked(names=(run,), runs=runs_folder, seed=seed, device=device, out=out, strangers=True, progress=advance),
            samplers=restoring.sampler or ["mds_fast", "told"],
            groups=restoring.group or (),
            scan=Scan(acceleration=scan.acceleration, coils=scan.coils, acs=scan.acs, noise=scan.noise),
            count=restoring.slices,
            samples=restoring.samples,
        )
    terminal.table("means over slices, in the brain; gains in dB with 95 % intervals", *printable(outcomes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bright:
    """Which voxels are vessels."""

    low: Annotated[
        float, typer.Option(help="Vessels are at least this bright; 0.23 suits voxels of 2 mm, 0.32 of 3 mm ...")
    ] = 0.23
    high: Annotated[float, typer.Option(help="... and each reaches this somewhere; 0.44 at 3 mm.")] = 0.33


@app.command()
@flat
def vessels(
    run: Annotated[list[str], typer.Argument(help="Names of finished runs; the others are compared with the first.")],
    *,
    runs_folder: Runs = RUNS,
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
    bright: Bright,
    seed: Annotated[int, typer.Option(help="Of the samplers that draw noise; paired over runs.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Default: vessels/ in the first run.", show_default=False)] = None,
    device: Device = "auto",
) -> None:
    """Score runs that make angiograms (mmdm, bbdm, ddpm, pix2pix) side by side: volumes, projections, vessels.

    Writes scores.csv, summary.csv, summary.json and mips.png; what scores.csv has is not made again.
    """
    from server.evaluation.vessel_tables import printable
    from server.evaluation.vessels import compare_vessels
    from server.evaluation.ways import Asked
    from shared.base.display import terminal
    from shared.model.angiograms import Threshold

    with terminal.bar("filling volumes") as advance:
        lines = compare_vessels(
            Asked(
                names=tuple(run), runs=runs_folder, seed=seed, device=device, out=out, strangers=True, progress=advance
            ),
            shown=shown or (),
            samplers=sampler or (),
            subjects=subjects,
            rule=Threshold(low=bright.low, high=bright.high),
        )
    title = "means over subjects, in the brain; MIP: axial; leads over the first run with 95 % intervals"
    terminal.table(title, *printable(lines))


@app.command()
def generate(
    run: Run,
    out: Annotated[Path, typer.Option(help="Folder for sets.npy and a contact sheet.")],
    runs_folder: Runs = RUNS,
    count: Annotated[int, typer.Option(min=1, help="Complete sets to make.")] = 8,
    sampler: Annotated[str, typer.Option(help="ancestral | ddim | multistep | mds_fast ...")] = "ancestral",
    steps: Annotated[int | None, typer.Option(min=1, show_default="the sampler's")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same sets.")] = 0,
    device: Device = "auto",
) -> None:
    """Draw complete sets of modalities from a prior (method any2all), out of nothing: what has it learnt?"""
    import dataclasses

    from server.evaluation.generation import generate as carry_out
    from shared.base.display import terminal
    from shared.plan.settings import load_sampler

    chosen = load_sampler(sampler)
    chosen = chosen if steps is None else dataclasses.replace(chosen, steps=steps)
    with terminal.bar("generating sets") as advance:
        done = carry_out(
            runs_folder / run, out, count=count, sampler=chosen, seed=seed, device=device, progress=advance
        )
    typer.echo(str(done))
