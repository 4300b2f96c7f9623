"""`lacuna phantom`: hospitals without a hospital. Thin: the work is done elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from shared.base.errors import ConfigError
from shared.base.verbs import flat

if TYPE_CHECKING:
    from shared.data.phantom.brains import Family
    from shared.data.phantom.phantom import PhantomOptions

app = typer.Typer(rich_markup_mode="markdown")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Which hospitals."""

    family: Annotated[
        str, typer.Option(help="glioma | dementia | vessels | everyone (any disease, each from a scanner of its own)")
    ] = "glioma"
    sites: Annotated[int, typer.Option(min=1, max=999, help="How many hospitals.")] = 3
    subjects: Annotated[int, typer.Option(min=1, help="Training subjects per site.")] = 12
    subjects_at: Annotated[
        list[str] | None, typer.Option(help="Another number at a site, as `site-c=8`; repeat it.", show_default=False)
    ] = None
    heldout: Annotated[int, typer.Option(min=0, help="Complete test subjects per site, never trained on.")] = 4
    coordinator: Annotated[int, typer.Option(min=0, help="Complete subjects of the coordinator's own.")] = 3
    missing: Annotated[
        list[str] | None,
        typer.Option(
            help="What a site never acquires, as `site-a=FLAIR,T2`; repeat it for others, `none` for nothing anywhere. "
            "Default: the sites lack one or another, in turn.",
            show_default=False,
        ),
    ] = None
    drop: Annotated[float, typer.Option(min=0, max=1, help="Chance that a training subject lacks one more.")] = 0.0
    size: Annotated[int, typer.Option(min=16, help="Voxels along each edge of the 192 mm cube.")] = 64
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0
    anatomy: Annotated[
        Path | None, typer.Option(help="Folder of FreeSurfer-style label maps. Default: nilearn's MNI152 maps.")
    ] = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(
            f"site-{chr(ord('a') + i)}" if self.sites <= 26 else f"site-{i + 1:03d}" for i in range(self.sites)
        )

    def options(self) -> "PhantomOptions":
        from shared.base.options import build
        from shared.data.phantom.phantom import FAMILIES, PhantomOptions

        if self.family not in FAMILIES:
            raise ConfigError(f"--family {self.family}: must be one of {', '.join(FAMILIES)}")
        as_said = ("family", "subjects", "heldout", "coordinator", "drop", "size", "seed", "anatomy")
        values = {name: getattr(self, name) for name in as_said}
        counts = _counts(self.subjects_at, self.names, self.subjects)
        lacking = _missing(self.missing, self.names, cast("Family", self.family))
        return build(PhantomOptions, {**values, "sites": self.names, "missing": lacking, "counts": counts}, "phantom")


@app.command()
@flat
def phantom(
    out: Annotated[Path, typer.Argument(help="Folder to write: sites/, heldout/, coordinator/, contact sheets.")],
    asked: Asked,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0 is one per core.")] = 0,
) -> None:
    """Make hospitals: multi-modality brains as BIDS cohorts, with lesions, scanners and missing patterns of their own.

    `lacuna phantom world --family dementia --sites 4 --missing site-a=AV45 --missing site-b=FDG,CT`
    """
    from shared.base.display import terminal
    from shared.data.phantom.phantom import write_world

    options = asked.options()
    with terminal.bar("drawing subjects") as advance:
        typer.echo(str(write_world(options, out, workers=workers, progress=advance)))


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
