"""Is this site fit to take part? Every line says what was found and, where it is not well, what to do.

No line names a subject; of the data only counts are told.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from client.node import gate, reach
from client.node.reach import Check, Status
from client.node.status import status
from client.site import enrol, settings
from shared.base.errors import ConfigError, DataError, LacunaError, RunFailed
from shared.base.files import read_bounded, read_secret
from shared.base.names import Address
from shared.base.options import plain
from shared.trust import kit, manifest
from shared.trust.keys import is_encrypted, parse_site_key, read_public_key, site_line
from shared.trust.kit import Head
from shared.trust.manifest import Manifest

DISK_WARN, DISK_FAIL = 10e9, 1e9  # bytes free on the state's disk
MEMORY_WARN, MEMORY_FAIL = 8e9, 3e9  # bytes; node, executor and worker idle take 0.6 GB, and the model three times over
CGROUPS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
CACHES = "derivatives/lacuna"
CODES = {
    "data": DataError,
    "disk": DataError,
    "name": RunFailed,
    "tcp": RunFailed,
    "tls": RunFailed,
    "health": RunFailed,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """What the site's state says of it, as far as it is whole."""

    kit: Head | None
    agreed: Manifest | None


def examine(
    state: Path,
    cohorts: Sequence[Path] | None = None,
    *,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    offline: bool = False,
) -> list[Check]:
    """Everything that can be looked at; nothing is changed. `offline`: without the network."""
    checks: list[Check] = list(_state(state))
    wishes, said = _settings(state)
    checks += said
    joined, said = _kit(state)
    checks += said
    if joined.kit is not None:
        checks += [*_key(state, joined.kit), *_expiry(state, now())]
    if joined.agreed is not None and joined.kit is not None:
        checks += _versions(joined.agreed, joined.kit)
    given = list(cohorts) if cohorts else [Path(folder) for folder in wishes.cohorts]
    checks += _data(given, joined.agreed)
    checks += [*_disk(state), _memory(_available_memory()), *_gpu(wishes)]
    if joined.kit is not None and not offline:
        checks += _network(state, now)
    return [*checks, _node(state)]


def error_of(checks: Sequence[Check]) -> LacunaError | None:
    """The first that fails, as the error that gives the exit code."""
    failed = reach.first_failure(list(checks))
    if failed is None:
        return None
    number = sum(check.status == "fail" for check in checks)
    kind = CODES.get(failed.name, ConfigError)
    return kind(f"doctor: {number} of {len(checks)} checks failed, first {failed.line()}")


# --- the site's own files -------------------------------------------------------------------------------------------


def _state(state: Path) -> Iterator[Check]:
    if not state.is_dir():
        yield _fail("state", f"{state} is no folder", f"`lacuna-site init {state} --site NAME` makes it")
        return
    mode = state.stat().st_mode & 0o777
    if not os.access(state, os.W_OK | os.X_OK):
        yield _fail("state", f"{state} can't be written by uid {os.getuid()}", "run as its owner")
    elif mode & 0o077:
        yield _warn("state", f"{state} has mode {mode:04o}, which lets others in", f"chmod 700 {state}")
    else:
        yield _ok("state", f"{state} is the site's own")


def _settings(state: Path) -> tuple[settings.Settings, list[Check]]:
    try:
        found = settings.load(state)
    except LacunaError as error:
        return settings.Settings(), [_fail("settings", str(error), f"mend {state / settings.SETTINGS}")]
    there = (state / settings.SETTINGS).exists()
    return found, [
        _ok("settings", f"{settings.SETTINGS} can be read" if there else f"no {settings.SETTINGS}: defaults")
    ]


def _kit(state: Path) -> tuple[Joined, list[Check]]:
    if not (state / enrol.SITE).exists():
        remedy = f"`lacuna-site init {state} --site NAME`, and send the request to the coordinator"
        return Joined(kit=None, agreed=None), [_fail("kit", "no site was made here", remedy)]
    if not (state / enrol.HEAD).exists():
        remedy = f"`lacuna-site join KIT --state {state}` with the coordinator's kit"
        return Joined(kit=None, agreed=None), [_fail("kit", "none is joined", remedy)]
    folder = state / enrol.FEDERATION
    try:
        head = enrol.installed(state)
        content = read_bounded(folder / manifest.MANIFEST, "manifest")
        signature = read_bounded(folder / manifest.SIGNATURE, "manifest")
        agreed = manifest.verify(content, signature, read_public_key(folder / kit.SIGNING), str(folder))
    except LacunaError as error:
        return Joined(kit=None, agreed=None), [_fail("kit", str(error), "join the kit again, or ask for a new one")]
    found = f"site {head.site} of {head.federation}, revision {head.revision}, manifest {head.manifest[:12]}"
    return Joined(kit=head, agreed=agreed), [_ok("kit", found)]


def _key(state: Path, head: Head) -> Iterator[Check]:
    path = state / enrol.KEY
    try:
        content = read_secret(path, "site key")
        if is_encrypted(content):  # its public half tells as much, without a passphrase
            own = read_bounded(state / enrol.PUBLIC, "site key").decode("ascii", "replace").strip()
        else:
            own = site_line(parse_site_key(content, f"site key {path}").public_key())
    except LacunaError as error:
        remedy = f"chmod 600 {path}, and ask who could read it; `lacuna-site init --again` makes another"
        yield _fail("key", str(error), remedy)
        return
    if own != head.public_key:
        yield _fail("key", "is not the one that the kit was made for", "send the coordinator the request again")
    else:
        yield _ok("key", "is the site's own, mode 0600, and the kit is for it")


def _expiry(state: Path, now: datetime) -> Iterator[Check]:
    try:
        lifetimes = enrol.lifetimes(state).values()
    except LacunaError as error:
        yield _fail("certificates", str(error), "join the kit again, or ask for a new one")
        return
    for one in lifetimes:
        warning = one.warning(now)
        if warning is not None:
            over = not one.begins <= now < one.ends
            yield Check(name="certificates", status="fail" if over else "warn", found=warning)
        else:
            yield _ok("certificates", f"the CA's holds for {(one.ends - now).days} days")


def _versions(agreed: Manifest, head: Head) -> Iterator[Check]:
    from shared.data.intensities import rules_version

    for name, own, theirs in (
        ("intensity rules", rules_version(agreed.modalities), agreed.intensities.version),
        ("lacuna", version("lacuna"), agreed.lacuna),
        ("flwr", version("flwr"), head.versions.flwr),
    ):
        if own == theirs:
            yield _ok("version", f"{name} {own}, as the federation's")
        else:
            yield _fail("version", f"{name} {own}; the federation runs {theirs}", "install the same")


# --- its data and its machine ---------------------------------------------------------------------------------------


def _data(cohorts: Sequence[Path], agreed: Manifest | None) -> Iterator[Check]:
    if not cohorts:
        yield _fail("data", "no cohort is named", "[site] cohorts = [...] in STATE/site.toml, or --cohort")
    for folder in cohorts:
        if not folder.is_dir():
            yield _fail("data", f"{folder} is no folder", "see that its disk is mounted")
            continue
        caches = sorted(path.parent for path in (folder / CACHES).glob("*/cohort.json"))
        if not caches:
            yield _fail("data", f"{folder} is not prepared", f"`lacuna-site prepare {folder}`")
        for cache in caches:
            yield _cohort(folder, cache, agreed)


def _cohort(folder: Path, cache: Path, agreed: Manifest | None) -> Check:
    from shared.data.cohort import Cohort

    try:
        cohort = Cohort.open(cache)
    except LacunaError as error:
        return _fail("data", f"{folder}: {error}", f"`lacuna-site prepare {folder}`")
    training = sum(cohort.patterns("train").values())
    found = f"{folder.name}, {cache.name}: {len(cohort.subjects)} subjects, {training} to train on; has " + ", ".join(
        f"{name} {sum(name in subject.modalities for subject in cohort.subjects)}" for name in cohort.modalities
    )
    if not training:
        return _warn("data", found, "without subjects to train on the site takes no part")
    if agreed is not None and not set(cohort.modalities) & set(agreed.modalities):
        return _fail("data", found, f"none is among the federation's {', '.join(agreed.modalities)}")
    if agreed is not None and agreed.grid is not None and plain(cohort.grid) != plain(agreed.grid):
        return _warn("data", found, f"the federation's grid is another, {agreed.grid}: prepare for that too")
    return _ok("data", found)


def _disk(state: Path) -> Iterator[Check]:
    if state.is_dir():
        free = shutil.disk_usage(state).free
        yield _room("disk", free, DISK_WARN, DISK_FAIL, f"free on the disk of {state}", "make room, or move the state")


def _memory(free: float) -> Check:
    remedy = "end other programs, or give the container more (LACUNA_MEMORY, [site] memory)"
    return _room("memory", free, MEMORY_WARN, MEMORY_FAIL, "of memory for this site", remedy)


def _available_memory() -> float:
    """What the machine has left, or this container may still use."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    found = [1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    for most, used in CGROUPS:
        try:
            limit = (Path("/sys/fs/cgroup") / most).read_text().strip()
            found.append(float(limit) - float((Path("/sys/fs/cgroup") / used).read_text()))
        except (OSError, ValueError):  # no such group, or no limit
            continue
    return min(found)


def _gpu(wishes: settings.Settings) -> Iterator[Check]:
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            yield _ok("gpu", f"{properties.name}, {properties.total_memory / 1e9:.0f} GB, CUDA {torch.version.cuda}")
    elif wishes.device == "cuda":
        remedy = 'install NVIDIA\'s driver (in a container its toolkit too), or [site] device = "cpu"'
        yield _fail("gpu", f"none that torch {torch.__version__} can use, and device is cuda", remedy)
    elif wishes.device == "cpu":
        yield _ok("gpu", "not asked for: device is cpu")
    else:
        remedy = "the site trains on the CPU, slowly; with a GPU in it, see to the driver and a CUDA build of torch"
        yield _warn("gpu", f"none that torch {torch.__version__} can use", remedy)


# --- the way to the server, and the node ----------------------------------------------------------------------------


def _network(state: Path, now: Callable[[], datetime]) -> list[Check]:
    folder = state / enrol.FEDERATION
    try:
        address = kit.read_address(read_bounded(folder / kit.ADDRESSES, "addresses"), str(folder))
        way = reach.look(address, read_bounded(folder / kit.AUTHORITIES, "the federation's CA"), now=now)
        return [*_gate(address), *way]
    except LacunaError as error:
        return [_fail("kit", str(error), "join the kit again, or ask for a new one")]


def _gate(address: Address) -> Iterator[Check]:
    if gate.stands() and gate.is_alone():
        yield _ok("gate", f"this container reaches {address} alone, and what pacs names")
    elif gate.stands():
        remedy = "start it by `lacuna-site up`, or by the kit's compose.yaml as it is"
        yield _warn("gate", "this container has a way out beside its gate", remedy)


def _node(state: Path) -> Check:
    found = status(state)
    if found.healthy or not found.running:
        return _ok("node", found.said)
    return _warn("node", found.said, "`lacuna-site logs` has the rest")


def _room(name: str, free: float, warn: float, fail: float, of: str, remedy: str) -> Check:
    found = f"{free / 1e9:.1f} GB {of}"
    if free >= warn:
        return _ok(name, found)
    word: Status = "fail" if free < fail else "warn"
    return Check(name=name, status=word, found=found, remedy=remedy)


def _ok(name: str, found: str) -> Check:
    return Check(name=name, status="ok", found=found)


def _warn(name: str, found: str, remedy: str) -> Check:
    return Check(name=name, status="warn", found=found, remedy=remedy)


def _fail(name: str, found: str, remedy: str) -> Check:
    return Check(name=name, status="fail", found=found, remedy=remedy)
