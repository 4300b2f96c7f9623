"""`lacuna train`: a run checked against who is there, made as a folder, and handed to the SuperLink.

    runs/RUN/submission.json   where it was submitted, Flower's number of it, and how often

The SuperLink passes the folder's path to its executor, which must see it under the same path.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from server.federation.federation import Federation, opened
from server.federation.lead import write_lead
from server.journal import chronicle, facts
from server.runs import runs
from server.superlink.superlink import SiteState, SuperLink
from shared.base import options
from shared.base.display.figures import duration
from shared.base.errors import ConfigError, DataError, RunFailed
from shared.base.files import write_json
from shared.plan.config import Config, load
from shared.trust.manifest import Manifest
from shared.trust.secure.circle import LEAST

SUBMISSION = "submission.json"
POLL_SECONDS = 1.0
STOP_SECONDS = 60.0  # a ServerApp that computes hears of it with its next heartbeat
THEIRS = "theirs"  # federation.disks: the sites' own, kept over runs

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    superlink: str
    authorities: str  # the CA, in PEM: whoever follows needs no other file
    flower_run: int
    at: float
    times: int = 1  # submitted in all
    tried: int = 0  # since a round was finished
    rounds: int = 0  # that were finished when it was submitted
    stop: bool = False  # asked for by `lacuna stop`

    @property
    def link(self) -> SuperLink:
        return SuperLink(address=self.superlink, authorities=self.authorities)


def prepare(
    overrides: Sequence[str], link: SuperLink, *, federation: Federation, wait: float, say: Say
) -> tuple[Config, Path]:
    """The folder of a run that can start, signed: nothing is written where the plan or the roster says no."""
    manifest = federation.manifest
    named = load(overrides)
    pinned = [
        *overrides,
        *_absolute(named),
        *([] if named.resume is not None else _agreed(overrides, manifest, secure=named.federation.secure)),
        f"federation.disks={THEIRS}",
        f"federation.manifest={manifest.digest}",  # no site takes part without
    ]

    def check(config: Config) -> None:
        _check_plan(config, manifest)
        wait_for_sites(link, config, wait=wait, say=say)

    config, folder = runs.create(pinned, check=check)
    if config.resume is not None and not runs.finished(folder):  # `create` checks new runs alone
        check(config)
    _prepare_own(config)
    made = runs.read_config(folder)
    write_lead(folder, made.name_of(folder), made.for_sites().text(), federation)
    return config, folder.resolve()


def _agreed(overrides: Sequence[str], manifest: Manifest, *, secure: bool) -> list[str]:
    """The agreement's numbers of holders and sites, where nobody named others; more where sums alone are seen."""
    least = LEAST if secure else 1
    agreed = {
        "federation.min_holders": max(manifest.min_holders, least),
        "federation.min_sites": max(manifest.quorum, least),
    }
    named = {override.partition("=")[0] for override in overrides}
    return [f"{key}={value}" for key, value in agreed.items() if key not in named]


def _absolute(config: Config) -> list[str]:
    """The folders as absolute paths: the executor works somewhere else."""
    named = {"runs": config.runs, "world": config.world}
    return [quoted(key, Path(path).resolve()) for key, path in named.items() if path is not None]


def quoted(key: str, path: Path) -> str:
    """`key=path` as an override that Hydra reads back, whatever is in the path."""
    text = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"{key}='{text}'"


def _check_plan(config: Config, manifest: Manifest) -> None:
    federation = config.federation
    if federation.engine != "local":
        raise ConfigError(f"federation.engine={federation.engine}: is for `lacuna simulate`")
    if federation.alone:
        raise ConfigError("federation.alone=true: is for `lacuna simulate`: the sites' images are not here")
    if config.privacy.sites:
        raise ConfigError("privacy.sites: is for `lacuna simulate`: a deployed site says its own budget")
    if config.method.name not in manifest.methods:
        raise ConfigError(f"method={config.method.name}: the federation agreed on {', '.join(manifest.methods)}")
    for modality in config.build_method().modalities:
        if modality not in manifest.modalities:
            raise ConfigError(
                f"method.modalities: has {modality}; the federation agreed on {', '.join(manifest.modalities)}"
            )
    if federation.min_holders < manifest.min_holders:
        raise ConfigError(
            f"federation.min_holders={federation.min_holders}: the federation agreed on {manifest.min_holders} or more"
        )
    if federation.min_sites < manifest.quorum:
        raise ConfigError(
            f"federation.min_sites={federation.min_sites}: the federation agreed on {manifest.quorum} or more"
        )
    if manifest.grid is not None:
        for key in ("height", "width", "spacing_mm", "slice_mm"):
            wanted, agreed = getattr(config.grid, key), getattr(manifest.grid, key)
            if wanted != agreed:
                raise ConfigError(f"grid.{key}={wanted}: the federation agreed on {agreed}")


def wait_for_sites(link: SuperLink, config: Config, *, wait: float, say: Say) -> None:
    """Says who is online and who is missing; RunFailed where they are too few after `wait` seconds."""
    federation = config.federation
    end = time.monotonic() + wait
    last_said = ""
    while True:
        found = link.sites()
        for site in federation.named or ():
            if site not in found:
                raise ConfigError(
                    f"federation.sites={site}: the SuperLink at {link.address} knows no such site; "
                    f"`lacuna federation list` and `sync`"
                )
        named, out = federation.named, federation.without
        wanted = {site: state for site, state in found.items() if site not in out and (not named or site in named)}
        line = roster_line(wanted)
        if line != last_said:
            say(line)
            last_said = line
        online = sum(state.online for state in wanted.values())
        late = time.monotonic() >= end
        if online >= federation.min_sites and (late or online == len(wanted)):
            return
        if late:
            raise RunFailed(
                f"federation.min_sites={federation.min_sites}: {online} of {len(wanted)} sites are online; nothing was "
                "submitted (--wait SECONDS waits for them)"
            )
        time.sleep(POLL_SECONDS)


def roster_line(sites: Mapping[str, SiteState]) -> str:
    """`online: north, south · missing: east (last heard of 3:20 ago)`"""
    online = ", ".join(site for site, state in sites.items() if state.online) or "nobody"
    missing = ", ".join(f"{site} ({_heard(state)})" for site, state in sites.items() if not state.online)
    return f"online: {online}" + (f" · missing: {missing}" if missing else "")


def _heard(state: SiteState) -> str:
    return "never seen" if state.since is None else f"last heard of {duration(time.time() - state.since)} ago"


def _prepare_own(config: Config) -> None:
    """Cache the coordinator's own cohort, where it has one."""
    from server.runs.simulation import prepare_cohorts

    if config.world is not None:
        prepare_cohorts(config, {})


def submit(folder: Path, link: SuperLink) -> Submission:
    """Submit a run for the first time, or again by hand: earlier tries do not count against it."""
    if chronicle.at_work(folder):
        other = chronicle.worker(folder)
        where = "" if other is None else f" (process {other.pid} on {other.host})"
        raise RunFailed(f"{folder.name}: goes on already{where}; `lacuna follow {folder.name}` watches it")
    before = find(folder)
    if before is not None:
        save(folder, dataclasses.replace(before, stop=False))
    return hand_over(folder, link, times=0 if before is None else before.times, tried=0)


def hand_over(folder: Path, link: SuperLink, *, times: int, tried: int) -> Submission:
    check_writable(folder)
    (folder / chronicle.OUTCOME).unlink(missing_ok=True)
    rounds = finished_rounds(folder)  # before its ServerApp can finish another
    submission = Submission(
        superlink=link.address,
        authorities=link.authorities,
        flower_run=link.start(folder),
        at=time.time(),
        times=times + 1,
        tried=tried + 1,
        rounds=rounds,
    )
    before = find(folder)
    if before is not None and before.stop:  # asked for meanwhile
        link.stop(submission.flower_run)
        submission = dataclasses.replace(submission, stop=True)
    save(folder, submission)
    return submission


def check_writable(folder: Path) -> None:
    """RunFailed on a full disk: a run that could not be written down must not be started."""
    probe = folder / f".{SUBMISSION}.probe"
    try:
        probe.write_bytes(bytes(4096))
    except OSError as error:
        raise RunFailed(
            f"{folder}: can't be written: {error.strerror}; it stands {reached(folder)}. Make room, then "
            f"`lacuna resume {folder.name}`"
        ) from None
    finally:
        probe.unlink(missing_ok=True)


def finished_rounds(folder: Path) -> int:
    return len(facts.read(folder / "rounds.jsonl"))


def save(folder: Path, submission: Submission) -> None:
    write_json(folder / SUBMISSION, options.plain(submission))


def check_exists(folder: Path) -> None:
    if not (folder / "config.json").exists():
        raise ConfigError(f"run={folder.name}: no such run in {folder.parent}/")


def find(folder: Path) -> Submission | None:
    """None for a run that was never submitted: a simulation, a pretraining."""
    try:
        return options.build(Submission, dict(json.loads((folder / SUBMISSION).read_text())), "submission")
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, ConfigError) as error:
        raise DataError(f"{folder.name}/{SUBMISSION}: damaged: {error}") from None


def stop(folder: Path) -> str:
    """End a submitted run where it stands; gives a line that says where that is."""
    check_exists(folder)
    submission = find(folder)
    if submission is None:
        if not chronicle.at_work(folder):
            raise ConfigError(f"{folder.name}: nobody works on it, so there is nothing to stop")
        other = chronicle.worker(folder)
        where = "another process" if other is None else f"process {other.pid} on {other.host}"
        raise ConfigError(f"{folder.name}: runs in {where}, not on a SuperLink: end it there with Ctrl-C")
    before = chronicle.read_outcome(folder)
    if before is not None and not chronicle.at_work(folder):
        return f"{folder.name}: has ended already: {before.state} {before.message}".rstrip()
    save(folder, dataclasses.replace(submission, stop=True))  # first: nobody resubmits what is being stopped
    submission.link.stop(submission.flower_run)
    end = time.monotonic() + STOP_SECONDS
    while chronicle.at_work(folder):
        if time.monotonic() > end:
            raise RunFailed(f"{folder.name}: stopped at the SuperLink, but its ServerApp has not ended yet")
        time.sleep(0.1)
    return f"{folder.name}: {settled(folder).message or 'finished before it could be stopped'}"


def settled(folder: Path) -> chronicle.Outcome:
    """How a run that was stopped has ended: its own word if it gave one before that, else `stopped`."""
    found = chronicle.read_outcome(folder)
    if found is None:
        message = f"stopped {reached(folder)}; `lacuna resume {folder.name}` goes on"
        kind, code = RunFailed.__name__, RunFailed.exit_code
        found = chronicle.Outcome(state="stopped", kind=kind, message=message, code=code, at=time.time())
        chronicle.write_outcome(folder, found)
    return found


def reached(folder: Path) -> str:
    """How far a run has come: `after translate round 2 of 6`."""
    done = facts.read(folder / "rounds.jsonl")
    return f"after {done[-1].phase} round {done[-1].round + 1} of {done[-1].of}" if done else "before its first round"


def link_to(address: str, folder: Path) -> tuple[SuperLink, Federation]:
    """The SuperLink, and the federation whose word a run needs."""
    with opened(folder) as found:
        return SuperLink(address=address, authorities=found.authorities.decode("ascii")), found
