"""`lacuna-site budget` and `audit`: what private training has spent, and tests of what it stands on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from client.cli.options import Bundle, Device, Kind, Signer, Why, sampler_of
from shared.base.display.terminal import bar
from shared.base.errors import PlanRefused
from shared.base.verbs import flat

app = typer.Typer()
audits = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="Look for what should not be there.")
app.add_typer(audits, name="audit")


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
        float | None,
        typer.Option(help="Make, raise or lower the budget; stands in the ledger for good.", show_default=False),
    ] = None,
    set_size: Annotated[
        int | None,
        typer.Option(help="The round figure of the site's subjects, or another; likewise.", show_default=False),
    ] = None,
    delta: Annotated[
        float | None, typer.Option(help="Of a budget that is made now; later it can't be changed.", show_default="1e-5")
    ] = None,
    why: Why = "",
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

    **A budget is made here**, by `lacuna-site budget STATE --set-epsilon 8 --set-size 70` or by `epsilon` in the
    policy: no plan makes one, and none may spend more than it.

    **Backup**: copy STATE/privacy and STATE/privacy.enrolled together, while no run is on. Once the site has trained
    since, a restored copy is refused, here or by the coordinator: it would forget what was spent meanwhile.

    **Before a run** ask what it would cost: `lacuna-site budget STATE --plan config.json`; exit code 4 if too much.
    """
    import json

    from client.privacy import budget_view as view
    from client.privacy.budget import Budget

    folder = state / "privacy"
    if plan is not None:
        said = view.what_if(folder, view.read_settings(plan))
        typer.echo(json.dumps(said, indent=1) if as_json else "\n".join(view.plan_lines(said)))
        view.refuse(said)
        return
    if set_epsilon is not None or set_size is not None:
        _set_budget(folder, set_epsilon, set_size, delta, why)
    with Budget.look(folder) as own:
        said = view.facts(own)
    typer.echo(json.dumps(said, indent=1) if as_json else "\n".join(view.lines(said)))


def _set_budget(folder: Path, epsilon: float | None, size: int | None, delta: float | None, why: str) -> None:
    """Make a budget, or change the one that is there."""
    from client.privacy.budget import Budget
    from client.privacy.budget_files import enrolled
    from client.site.policy import DELTA

    if not enrolled(folder):
        Budget.open(folder, epsilon=epsilon, delta=DELTA if delta is None else delta, size=size).close()
        return
    with Budget.open(folder, delta=delta) as own:
        own.change_budget(epsilon, size=size, why=why)


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
    from client.privacy.proof.audit import audit_privacy as carry_out

    carry_out(repeat=repeat, as_json=as_json, bar=bar)


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitOptions:
    duplicates: Annotated[
        float, typer.Option(min=0, max=1, help="Warn above this share of near-duplicates, beyond the control.")
    ] = 0.05
    auc: Annotated[
        float, typer.Option(min=0.5, max=1, help="Warn where the interval of the membership AUC begins above this.")
    ] = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class EffortOptions:
    subjects: Annotated[int, typer.Option(min=1, help="Of each cohort, at most so many go through the network.")] = 100
    slices: Annotated[int, typer.Option(min=1, help="Of each subject.")] = 8
    draws: Annotated[int, typer.Option(min=1, help="Of times and noise, for each slice.")] = 16
    sampler: Kind = None
    seed: Annotated[int, typer.Option(help="Same seed, same figures.")] = 0
    device: Device = "auto"


@audits.command("memorisation")
@flat
def audit_memorisation(
    bundle: Bundle,
    train: Annotated[Path, typer.Option(help="BIDS cohort that the bundle was trained on: its split `train`.")],
    heldout: Annotated[
        Path, typer.Option(help="BIDS cohort of the same kind that it was not; the same folder: its other splits.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for figures and pictures: patient data, stays at the site.")],
    signer: Signer,
    limit: LimitOptions,
    effort: EffortOptions,
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
    from client.audit.inspection import Effort
    from client.audit.memorisation import audit_memorisation as carry_out
    from shared.data import cohort as data
    from shared.trust.audits import Limits

    limits = Limits(duplicates=limit.duplicates, auc=limit.auc)
    looked = Effort(subjects=effort.subjects, slices=effort.slices, draws=effort.draws, seed=effort.seed)
    loaded = signer.load(bundle)
    with bar("preparing") as advance:
        trained, others = (
            data.prepare(folder, loaded.model.grid, progress=advance).cohort for folder in (train, heldout)
        )
    sampler, device = sampler_of(effort.sampler), effort.device
    with bar("looking") as advance:
        done = carry_out(
            loaded, trained, others, out, limits=limits, effort=looked, sampler=sampler, device=device, progress=advance
        )
    for remark in done.remarks:
        typer.echo(f"remark: {remark}", err=True)
    for warning in done.summary.warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(done.verdict)
    typer.echo(str(out))
    if strict and done.summary.warnings:
        raise PlanRefused(f"audit: {len(done.summary.warnings)} figures are above the limits, and --strict was said")
