"""`lacuna-site run | up | down | status | logs | doctor`: the site's node. Thin: verbs call one function elsewhere."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()

State = Annotated[Path, typer.Option(help="This site's private disk, of `init` and `join`.", show_default=False)]
Cohorts = Annotated[
    list[Path] | None,
    typer.Option(help="A prepared cohort; repeat it. Default: those in STATE/site.toml.", show_default=False),
]


@app.command()
def run(
    state: State,
    cohort: Cohorts = None,
    device: Annotated[str | None, typer.Option(help="auto | cpu | cuda", show_default="STATE/site.toml")] = None,
    give_up: Annotated[
        float | None,
        typer.Option(min=1, help="End with exit code 5 after so many seconds without contact; default: never."),
    ] = None,
) -> None:
    """Take part: keep this site's node connected until it is told to stop (SIGTERM, Ctrl-C).

    For a host without Docker (Slurm, Apptainer), and what runs inside the site's container. It only calls out, to the
    server that the kit names, and runs nothing but the Lacuna that is installed here: a run that brings code is
    refused. A lost network, a server that is down, a worker that was killed are waited out and said in one line each;
    `lacuna-site status` shows the last. What the site allows is in STATE/site.toml, [policy].
    """
    from client.node import node
    from client.site import settings

    given = {"cohorts": None if cohort is None else tuple(str(c.absolute()) for c in cohort), "device": device}
    node.run(state, settings.load(state).having(given), give_up=give_up)


@app.command()
def up(
    state: State,
    cohort: Cohorts = None,
    image: Annotated[
        str | None, typer.Option(help="The client image, which is on this machine.", show_default="STATE/site.toml")
    ] = None,
    gpu: Annotated[str | None, typer.Option(help="auto | all | none", show_default="STATE/site.toml, or auto")] = None,
    memory: Annotated[
        str | None, typer.Option(help="The most it may use, like 16g.", show_default="STATE/site.toml, or 16g")
    ] = None,
    wait: Annotated[float, typer.Option(min=1, help="Seconds until its node must have the server's answer.")] = 180.0,
) -> None:
    """Take part in a container: start the site's on this machine's Docker engine, and wait until it is well.

    It is what STATE/federation/compose.yaml describes: not root, nothing writable but STATE, no open port, no right to
    anything, and no way out but a gate beside it, which passes on to the server alone. When it is not well in time the
    reason is said, and it is left trying; exit code 2 for what has to be mended here first, 5 when it does not come to
    the server.
    """
    from client.node import launcher
    from client.site import settings

    given = {
        "cohorts": None if cohort is None else tuple(str(c.absolute()) for c in cohort),
        "image": image,
        "gpu": gpu,
        "memory": memory,
    }
    done = launcher.up(state, settings.load(state).having(given), patience=wait, say=typer.echo)
    for note in done.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"{done.name}: {done.said} ({done.seconds:.0f} s{', with GPU' if done.gpu else ''})")


@app.command()
def down(state: State) -> None:
    """Stop and remove the site's container and its gate. STATE stays as it is, and the server waits for nobody."""
    from client.node import launcher

    typer.echo("done" if launcher.down(state, say=typer.echo) else "there is no container of this site")


@app.command()
def status(
    state: State,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing; for a container's health check.")] = False,
) -> None:
    """What the site's node is doing, in a container or not. Exit code 0 when it works or waits for work, else 5."""
    from client.node.status import status as look
    from shared.base.errors import RunFailed

    found = look(state)
    if not quiet:
        typer.echo(found.said + (f"; {found.restarts} restarts" if found.restarts else ""))
    if not found.healthy:
        raise typer.Exit(RunFailed.exit_code)


@app.command()
def logs(
    state: State,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="From the end.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines come, until Ctrl-C.")] = False,
) -> None:
    """The lines of the site's node, in a container or not: STATE/node/site.log. They stay here."""
    from client.node.log import tail

    for line in tail(state, lines, follow=follow):
        typer.echo(line)


@app.command()
def doctor(
    state: Annotated[Path, typer.Option(help="This site's private disk.", show_default=False)],
    cohort: Cohorts = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="For a program: a list of name, status, found, remedy.")
    ] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Without the network.")] = False,
) -> None:
    """Look at all that this site needs: data, disk, memory, GPU, versions, keys, certificates, clock, network.

    One line each: ok, or warn or FAIL with what to do. Nothing is changed, and nothing is sent but a question for the
    server's health. Exit code 0 when nothing fails; else that of the first: 2 keys, kit, versions or settings, 3 data
    or disk, 5 the way to the server.
    """
    import json

    from client.node import doctor as examination
    from shared.base.options import plain

    checks = examination.examine(state, cohort, offline=offline)
    if as_json:
        typer.echo(json.dumps([plain(check) for check in checks], indent=1))
    else:
        marks = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}
        for check in checks:
            typer.echo(f"{marks[check.status]}  {check.name:<13} {check.found}")
            if check.remedy:
                typer.echo(f"{'':20}-> {check.remedy}")
    failure = examination.error_of(checks)
    if failure is not None:
        raise failure
