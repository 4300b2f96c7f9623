"""`lacuna-site synthesize`, `reconstruct` and `evaluate`: what a signed bundle is used for. Thin: they call others."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client.cli.options import Bundle, Device, Filling, Kind, Signer, sampler_of
from shared.base.display.terminal import bar
from shared.base.verbs import flat

if TYPE_CHECKING:
    from client.inference.cases import Raw
    from client.inference.charts import Saying
    from client.inference.dicom.send import Back
    from client.inference.job import Done

app = typer.Typer()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChartOptions:
    """What a model that reads the chart is told of the subject."""

    diagnosis: Annotated[
        str | None, typer.Option(help="Of models that read the chart: AD | MCI | HC.", show_default=False)
    ] = None
    mmse: Annotated[float | None, typer.Option(help="0 to 30.", show_default=False)] = None
    adas13: Annotated[float | None, typer.Option(help="0 to 85.", show_default=False)] = None
    cdrsb: Annotated[float | None, typer.Option(help="0 to 18.", show_default=False)] = None
    no_diagnosis: Annotated[
        bool, typer.Option("--no-diagnosis", help="Do not tell the model, whatever participants.tsv says.")
    ] = False
    chart_values: Annotated[
        bool, typer.Option("--chart-values", help="Write the values into the sidecar too, not their names alone.")
    ] = False

    def saying(self) -> "Saying":
        from client.inference.charts import Saying

        said = {"diagnosis": self.diagnosis, "mmse": self.mmse, "adas13": self.adas13, "cdrsb": self.cdrsb}
        return Saying(
            values={name: value for name, value in said.items() if value is not None},
            use_diagnosis=not self.no_diagnosis,
            show_values=self.chart_values,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DicomOptions:
    """The way back into the PACS."""

    dicom: Annotated[
        Path | None,
        typer.Option(
            help="The ingest's STATE, or a folder of the study that the subject's images came from: each synthetic "
            "volume is written as a series of that study, to OUT/SUBJECT/dicom. These files name the patient.",
            show_default=False,
        ),
    ] = None
    burn_in: Annotated[
        bool, typer.Option("--burn-in", help="Of the DICOM series: write the warning into the pixels too.")
    ] = False
    push: Annotated[
        str | None,
        typer.Option(help="Send the DICOM series there: https://host/dicom-web, or AET@host:port.", show_default=False),
    ] = None
    auth_file: Annotated[
        Path | None,
        typer.Option(
            help="Holds the DICOMweb server's authorization, `Bearer ...` or `Basic ...`; mode 600.",
            show_default=False,
        ),
    ] = None

    def back(self, subject: Path) -> "Back | None":
        from client.inference.dicom.send import Back

        return Back.asked(self.dicom, subject, burn_in=self.burn_in, push=self.push, auth_file=self.auth_file)


@app.command()
@flat
def synthesize(
    bundle: Bundle,
    subject: Annotated[Path, typer.Option(help="A subject's BIDS folder, sub-*.")],
    out: Annotated[
        Path, typer.Option(help="Folder for the synthetic volumes, their uncertainty, sidecars, a preview.")
    ],
    signer: Signer,
    filling: Filling,
    chart: ChartOptions,
    pacs: DicomOptions,
) -> None:
    """Fill in what a subject lacks, in the grid of its own images, marked as synthetic.

    With --dicom, back into the PACS: `lacuna-site synthesize --bundle B --trust K.pub --subject COHORT/sub-x --out D
    --dicom STUDY --push https://pacs/dicom-web`. An input unlike what the bundle was trained on is said, or refused.

    **The chart.** A model that reads it (aca_diff) is told what participants.tsv beside the subject's folder says:
    diagnosis, mmse, adas13, cdrsb. An option here wins over the file: `--diagnosis AD --mmse 22 --adas13 28 --cdrsb
    4.5`. The sidecar names what was used. A diagnosis that the model was told is in the image: say `--no-diagnosis` if
    the image is to train a classifier of it.
    """
    from client.inference.synthesize import synthesize as carry_out

    asked = filling.asked(saying=chart.saying())
    back = pacs.back(subject)
    loaded = signer.load(bundle)
    with bar("synthesizing") as advance:
        done = carry_out(loaded, subject, out, asked, progress=advance)
    if done.chart is not None:
        typer.echo(done.chart.line, err=True)
    _print_remarks(done)
    _print_volumes(done)
    _print_preview(done)
    if back is not None:
        _send_back(back, done, out)


def _send_back(back: "Back", done: "Done", out: Path) -> None:
    series = back.write({**done.kept, **done.made}, out / done.subject / "dicom")
    for one in series:
        typer.echo(f"{one.folder} ({len(one.files)} images, series {one.uid})")
    with bar("sending") as advance:
        where = back.send(series, progress=advance)
    if where is not None:
        typer.echo(f"{sum(len(one.files) for one in series)} images stored by {where}")


def _print_remarks(done: "Done") -> None:
    if done.unusual is not None:
        typer.echo(f"unusual input: {done.unusual} (figures: the sidecar's Guard)", err=True)
    for remark in done.remarks:
        typer.echo(f"left aside: {remark}", err=True)


def _print_volumes(done: "Done") -> None:
    for path in done.kept.values():
        typer.echo(f"{path} (was there already, from the same inputs and bundle)")
    for path in done.made.values():
        typer.echo(str(path))


def _print_preview(done: "Done") -> None:
    if done.preview is not None:
        typer.echo(str(done.preview))


@dataclass(frozen=True, slots=True, kw_only=True)
class RawOptions:
    """Raw data, measured or to be simulated."""

    measured: Annotated[
        list[str] | None,
        typer.Option(help="MODALITY=FILE: k-space in fastMRI or ISMRMRD layout (HDF5); repeat it.", show_default=False),
    ] = None
    maps: Annotated[
        list[str] | None,
        typer.Option(
            help="MODALITY=FILE: its coil maps, HDF5 or npy. Default: the k-space file's own, or estimated.",
            show_default=False,
        ),
    ] = None
    simulate: Annotated[
        list[str] | None,
        typer.Option(help="Measure this volume of the subject, hide it, and score the result.", show_default=False),
    ] = None
    acceleration: Annotated[int, typer.Option(min=1, help="simulate: one line in so many.")] = 4
    coils: Annotated[int, typer.Option(min=1, help="simulate: coils around the head.")] = 8
    acs: Annotated[int, typer.Option(min=0, help="simulate: lines measured round the centre.")] = 0
    noise: Annotated[float, typer.Option(min=0, help="simulate: sd of a complex sample, of the image's range.")] = 0.01
    mask: Annotated[str, typer.Option(help="simulate: equispaced | random")] = "equispaced"
    spacing: Annotated[
        str | None,
        typer.Option(help="X,Y,Z in mm, for raw data alone whose header does not say it.", show_default=False),
    ] = None

    def raw(self) -> "Raw":
        from client.inference.cases import Raw
        from client.inference.measurements import Simulation
        from client.inference.reconstruct import parse_pairs, parse_spacing
        from shared.base.options import build
        from shared.data.modalities import parse

        simulation = {key: getattr(self, key) for key in ("acceleration", "coils", "acs", "noise", "mask")}
        return Raw(
            measured=parse_pairs("measured", self.measured or []),
            maps=parse_pairs("maps", self.maps or []),
            simulate=tuple(parse(name) for name in self.simulate or []),
            simulation=build(Simulation, simulation, "simulate"),
            spacing_mm=None if self.spacing is None else parse_spacing(self.spacing),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RawFilling(Filling):
    target: Annotated[
        list[str] | None,
        typer.Option(help="Default: what is measured, and what the subject lacks; repeat it.", show_default=False),
    ] = None
    sampler: Annotated[
        str | None,
        typer.Option(
            help="told | mds_fast | mds_paper | mps_paper. Default: the bundle's, or told.", show_default=False
        ),
    ] = None


@app.command()
@flat
def reconstruct(
    bundle: Bundle,
    subject: Annotated[Path, typer.Option(help="The subject's BIDS folder, sub-*, with the volumes that it has.")],
    out: Annotated[Path, typer.Option(help="Folder for the volumes, their uncertainty, sidecars, a preview.")],
    signer: Signer,
    measured: RawOptions,
    filling: RawFilling,
) -> None:
    """Reconstruct raw measurements and fill in what a subject lacks, from any mix of volumes and k-space.

    Rows of k-space are the anterior-posterior index, columns the left-right one; ISMRMRD files say their directions.
    """
    from client.inference.reconstruct import reconstruct as carry_out

    raw = measured.raw()
    asked = filling.asked()
    loaded = signer.load(bundle)
    with bar("reconstructing") as advance:
        done = carry_out(loaded, subject, raw, out, asked, progress=advance)
    _print_remarks(done)
    for modality, line in done.flags.items():
        typer.echo(f"{modality}: {line}", err=True)
    _print_volumes(done)
    for modality, score in done.scores.items():
        typer.echo(f"{modality} against the hidden volume: " + ", ".join(f"{k} {v:g}" for k, v in score.items()))
    _print_preview(done)


@app.command()
@flat
def evaluate(
    bundle: Bundle,
    cohort: Annotated[Path, typer.Option(help="BIDS folder; it is prepared for the bundle's grid.")],
    out: Annotated[Path, typer.Option(help="Folder for the report; it names subjects and stays at the site.")],
    signer: Signer,
    sampler: Kind = None,
    every: Annotated[int, typer.Option(min=1, help="Use one brain slice in so many.")] = 1,
    seed: int = 0,
    device: Device = "auto",
) -> None:
    """Score a bundle on the site's own subjects, each present modality hidden in turn, beside floors.

    Where participants.tsv has a column `split` with subjects of `test`, these alone are scored. The floors are the mean
    image and two regressions, fitted for each subject on all the others, and the prediction that the bundle's network
    is told, where it is told one.
    """
    from client.inference.evaluate import evaluate_here
    from shared.base.display import terminal
    from shared.data import cohort as data
    from shared.model.scorecard import FIGURES, printable

    loaded = signer.load(bundle)
    with bar("preparing") as advance:
        prepared = data.prepare(cohort, loaded.model.grid, progress=advance).cohort
    with bar("scoring") as advance:
        done = evaluate_here(
            loaded, prepared, out, sampler=sampler_of(sampler), seed=seed, every=every, device=device, progress=advance
        )
    terminal.table(FIGURES, *printable(done.lines))
    if done.split is None:
        typer.echo("no subject is of split test: where this site trained the bundle, its scores flatter it", err=True)
    typer.echo(str(out))
