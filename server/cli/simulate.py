"""`lacuna simulate | pretrain`: a run carried out on this machine. Thin: the work is done elsewhere."""

from typing import Annotated

import typer

app = typer.Typer(rich_markup_mode="markdown")

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Any key of configs/config.yaml, such as `size=tiny`, `strategy=fedadam`, `method.encoder=unet`.",
        show_default=False,
    ),
]


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
