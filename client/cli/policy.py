"""`lacuna-site policy | plans | ledger`: what may be asked of this site, what was asked, what left. Thin."""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from shared.base.errors import ConfigError, DataError

app = typer.Typer()
State = Annotated[
    Path | None,
    typer.Option(help="This site's private disk, of `init` and `join`.", envvar="LACUNA_STATE", show_default=False),
]


def _state(given: Path | None) -> Path:
    if given is None:
        raise ConfigError("--state: name this site's private disk, or set LACUNA_STATE")
    if not given.is_dir():
        raise ConfigError(f"--state {given}: no folder there")
    return given


# --- policy ---------------------------------------------------------------------------------------------------------


@app.command()
def policy(
    state: State = None,
    check: Annotated[bool, typer.Option("--check", help="Only say whether it can be read.")] = False,
) -> None:
    """What this site allows, in words: [policy] of STATE/site.toml.

    ```
    [policy]
    methods = ["amm_diff"]         # a run of any other is refused
    phases = ["translate"]         # and these phases alone
    sizes = ["tiny", "small"]
    max_rounds_per_day = 50        # in any 24 hours, over all runs
    max_hours_per_day = 8.0        # of work; a round that gets there ends
    max_rounds = 2000              # of a run, over all its phases
    repeats = "same"               # a round is answered again for the same weights alone
    min_samples = 32               # slices behind an update: steps x batch of a round
    min_subjects = 5               # people behind every sum, and every part of an update
    min_cell = 5                   # smaller counts leave only as fewer than this
    min_holders = 3                # what fewer sites trained is not released
    metrics = ["loss", "samples"]  # others are left out of what is sent
    epsilon = 8.0                  # private only, and never more than this
    delta = 1e-5                   # of that budget
    manifest = "installed"         # the kit's is asked of each plan anyway; so none without a kit
    approve = "ask"                # each run waits for a yes, see `plans`
    ```

    `lacuna-site init` writes the file: each key with a line that explains it, and none set. A key that is left out is
    no rule, but for `max_rounds`, `repeats` and those that begin with `min_`, whose defaults stand above. A key that is
    not known is an error: nothing is trained until it is mended. The same keys may stand in Flower's node config
    (`max-rounds-per-day=50`), but not with another value.
    """
    from client.site.plans import used
    from client.site.settings import SETTINGS

    folder = _state(state)
    found = _policy_of(folder)
    if check:
        typer.echo(f"{folder / SETTINGS}: [policy] can be read")
        return
    for key, words in found.words():
        typer.echo(f"{key:<20}{words}")
    rounds, hours = used(folder)
    typer.echo(f"{'used':<20}{rounds} rounds and {hours:.2f} hours in the last 24")


def _policy_of(state: Path):  # type: ignore[no-untyped-def]
    from client.site.policy import make_policy
    from client.site.settings import read_file

    return make_policy(read_file(state).policy)


# --- plans ----------------------------------------------------------------------------------------------------------

plans = typer.Typer(rich_markup_mode="markdown")
app.add_typer(plans, name="plans")
Plan = Annotated[str, typer.Argument(metavar="ID", help="Of the plan, or its first characters.", show_default=False)]


@plans.callback(invoke_without_command=True)
def list_plans(context: typer.Context, state: State = None) -> None:
    """Every plan that the coordinator ever sent: what it would train, and what became of it.

    Where the policy says `approve = "ask"` a run waits for `lacuna-site plans approve ID`. The coordinator sees that
    it waits, goes on without this site, and asks again before each round. A yes is for that run with those very
    settings; any change makes another plan. `refuse` holds under any policy, and can be said at any time.
    """
    if context.invoked_subcommand is not None:
        return
    from client.site.plans import SHORT, listing, printable, summary

    found = listing(_state(state))
    for plan in found:
        said = summary(plan)
        what = f"{said['method']} {said['size']}; privacy {said['privacy']}; min holders {said['min_holders']}"
        typer.echo(f"{plan.id[:SHORT]}  {_when(plan.came)}  {plan.state:<16}{printable(plan.run):<24} {what}")
        if plan.asked:
            typer.echo(f"{'':14}messages: {len(plan.asked)}; the last: {printable(plan.asked[-1].verdict)}")
    waiting = [plan.id[:SHORT] for plan in found if plan.pending]
    if waiting:
        typer.echo(f"waiting for you: {', '.join(waiting)}; `lacuna-site plans show ID`, then approve or refuse")
    if not found:
        typer.echo("no plan has come yet")


@plans.command()
def show(
    plan: Plan,
    state: State = None,
    config: Annotated[
        bool, typer.Option("--config", help="The plan's settings in full, as JSON, as they came.")
    ] = False,
) -> None:
    """One plan in full: what it asks for, the rules here that its numbers must keep, every message and its answer."""
    from client.site.plans import find, printable, summary
    from client.site.policy import RULES

    found = find(_state(state), plan)
    if config:
        typer.echo(json.dumps(found.settings, indent=1, sort_keys=True))
        return
    facts = {"plan": found.id, "run": printable(found.run), "settings": f"sha256 {found.hash}", **summary(found)}
    facts |= {"came": _when(found.came), "decision": found.state}
    if found.said_at is not None:
        facts["decision"] += f" {_when(found.said_at)}"
    for key, value in facts.items():
        typer.echo(f"{key:<20}{value}")
    for key, words in _policy_of(_state(state)).words():
        if key in RULES:
            typer.echo(f"{f'here: {key}':<20}{words}")
    for one in found.asked:
        about = "handshake" if one.phase is None else f"{printable(one.phase)} round {one.round}"
        worked = "" if one.worked is None else f"{one.worked:.1f} s; "
        typer.echo(f"{_when(one.at)}  {about:<24}{worked}{printable(one.verdict)}")


@plans.command()
def approve(plan: Plan, state: State = None) -> None:
    """Let this site take part in this run with these settings; its policy still holds."""
    from client.site.plans import SHORT, decide, printable

    found = decide(_state(state), plan, "approved")
    typer.echo(f"{found.id[:SHORT]}: approved, run {printable(found.run)} with settings {found.hash[:12]}")


@plans.command()
def refuse(plan: Plan, state: State = None) -> None:
    """Take no part in this run, or no further part."""
    from client.site.plans import SHORT, decide, printable

    found = decide(_state(state), plan, "refused")
    typer.echo(f"{found.id[:SHORT]}: refused, run {printable(found.run)}")


# --- ledger ---------------------------------------------------------------------------------------------------------

ledger = typer.Typer(rich_markup_mode="markdown")
app.add_typer(ledger, name="ledger")


@ledger.callback(invoke_without_command=True)
def show_ledger(
    context: typer.Context,
    state: State = None,
    export: Annotated[
        Path | None,
        typer.Option(help="FILE.csv, a line each, or FILE.json, with every tensor's name, form and norm."),
    ] = None,
    last: Annotated[int, typer.Option(min=0, help="Only so many, from the end; 0: all.")] = 0,
) -> None:
    """What left this site, written down before it left: when, for which run and round, how much, and its hash.

    The lines are chained: one that was changed, taken out or moved shows, and ends this with exit code 3. That lines
    are missing at the end only the coordinator's receipts can tell: `lacuna-site ledger verify --receipts FILE`.
    """
    if context.invoked_subcommand is not None:
        return
    from client.site import ledger as egress

    book = _ledger(state)
    if export is not None:
        typer.echo(f"{egress.export(book.entries(), export)} entries; the chain is whole; written to {export}")
        return
    every = list(book.entries())
    _table([egress.row(entry) for entry in every[-last:]])
    typer.echo(
        f"{len(every)} replies, {sum(entry['bytes'] for entry in every) / 1e6:.2f} MB in all; the chain is whole"
    )


@ledger.command()
def verify(
    state: State = None,
    receipts: Annotated[
        Path | None,
        typer.Option(help="What the coordinator got: `lacuna receipts RUN --site SITE --export FILE.json`."),
    ] = None,
    site: Annotated[str | None, typer.Option(help="In a file with several sites' receipts: this one.")] = None,
) -> None:
    """Is the ledger whole, and does the coordinator say the same? Exit code 3 if not, with one line each.

    Found with the receipts: what was sent and never receipted (lost on the way, too late, or kept quiet), what was
    receipted and is not in the ledger (lines cut off, or somebody else sending in this site's name), other hashes,
    and a ledger that was written anew from some line on.
    """
    from client.site import ledger as egress

    book = _ledger(state)
    count = sum(1 for _ in book.entries())
    typer.echo(f"{count} replies; the chain is whole")
    if receipts is None:
        return
    sent = egress.read_receipts(receipts, site)
    differences = list(egress.compare(book.entries(), sent))
    for line in differences:
        typer.echo(line)
    if differences:
        raise DataError(f"run {sent.run}: {len(differences)} differences between this ledger and {receipts}")
    typer.echo(f"run {sent.run}: all {len(sent.receipts)} receipts of {sent.site} agree")


def _ledger(state: Path | None):  # type: ignore[no-untyped-def]
    from client.site.ledger import LEDGER, Ledger

    path = _state(state) / LEDGER
    if not path.exists():
        raise ConfigError(f"{path}: no ledger there: nothing has left yet, or it was taken away")
    return Ledger(path)


def _table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from client.site.plans import printable

    table = Table(box=None, pad_edge=False)
    for name in ("when", "what", "run", "round", "bytes", "tensors", "norm", "more", "sha256"):
        table.add_column(name, justify="right" if name in ("bytes", "tensors", "norm") else "left", overflow="fold")
    for row in rows:
        about = "handshake" if row["phase"] is None else f"{row['phase']} {row['round']}"
        norm = "" if row["norm"] is None or not row["tensors"] else f"{row['norm']:.4g}"
        cells = (row["time"], row["what"], row["run"] or "", about, row["bytes"], row["tensors"], norm, _more(row))
        table.add_row(*(Text(printable(cell)) for cell in (*cells, str(row["sha256"])[:16])))
    Console(width=None if Console().is_terminal else 180).print(table)


def _more(row: dict[str, Any]) -> str:
    """Counts, metrics, epsilon, or why it was a no."""
    parts = [
        f"{key}: " + ", ".join(f"{name} {value:.6g}" for name, value in row[key].items())
        for key in ("counts", "metrics")
        if row[key]
    ]
    parts += [f"epsilon {row['epsilon']:.3f}"] if row["epsilon"] is not None else []
    return "; ".join([*parts, *([row["refusal"]] if row["refusal"] else [])])


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
