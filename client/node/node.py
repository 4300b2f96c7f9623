"""One site's node, kept alive: Flower's SuperNode and its executor, started, watched, restarted and ended whole.

    STATE/node/health.json    what this supervisor sees, every few seconds
    STATE/node/contact.json   what the node itself last did (client/node/supernode.py)
    STATE/node/site.log       every line of both, with its time; older ones in site.log.1 ...
    STATE/flwr                FLWR_HOME

The kit is read anew at each start, so a new one is in use from the next. Two children: `node` speaks with the server,
`executor` starts one worker for each message; what they leave behind is ended before either is started again.
"""

import json
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path

from client.node import family, gate, reach
from client.node import log as node_log
from client.node.child import LOGGER, Child
from client.node.status import CONTACT, FOLDER, HEALTH, SILENT, read_record
from client.site import enrol
from client.site.keys import opened
from client.site.settings import Settings
from shared.base.disk import locks
from shared.base.errors import ConfigError, RunFailed
from shared.base.files import (
    canonical,
    parse_canonical,
    private_folder,
    read_bounded,
    read_secret,
    write_bytes,
    write_text,
)
from shared.base.names import Address
from shared.trust import kit

HELD = 61.0  # seconds for which Flower may hold the key of a node that vanished: it refuses it with code 305 till then
PORT = 9094  # of the node's own loopback interface; another, where it is taken
TICK, BEAT, LOOK = 0.5, 2.0, 15.0  # seconds between looks at the children, health records, looks at the network
LEAVE = 8.0  # seconds for node and executor to end by themselves
STEADY = 120.0  # seconds of contact after which what went wrong before is forgotten
LOG = node_log.LOG
_log = logging.getLogger(LOGGER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who this site is and whom it calls, as its kit has it."""

    site: str
    address: Address
    authorities: Path
    key: Path

    @staticmethod
    def read(state: Path) -> "Identity":
        if not (state / enrol.SITE).exists():
            raise ConfigError(
                f"{state}: no site was made here; `lacuna-site init {state} --site NAME` comes first, then `join`"
            )
        if not (state / enrol.HEAD).exists():
            raise ConfigError(f"{state}: has no kit yet; `lacuna-site join KIT --state {state}` comes first")
        record = parse_canonical(read_bounded(state / enrol.SITE, "site"), str(state / enrol.SITE))
        addresses = state / enrol.FEDERATION / kit.ADDRESSES
        read_secret(state / enrol.KEY, "site key")
        return Identity(
            site=str(record["site"]),
            address=kit.read_address(read_bounded(addresses, "addresses"), str(addresses.parent)),
            authorities=state / enrol.FEDERATION / kit.AUTHORITIES,
            key=state / enrol.KEY,
        )


def run(state: Path, settings: Settings, *, give_up: float | None = None) -> None:
    """Until SIGTERM or SIGINT. ConfigError for what only a hand here can mend; all else is tried again and again,
    or, with `give_up`, for so many seconds without contact: then RunFailed."""
    state = state.resolve()
    if not settings.cohorts:
        raise ConfigError(f"cohorts: none; name them in {state}/site.toml, [site] cohorts = [...], or with --cohort")
    for cohort in settings.cohorts:
        if not Path(cohort).is_dir():
            raise ConfigError(f"cohort={cohort}: is no folder")
    Identity.read(state)
    with _alone(state):
        _Supervisor(state, settings, give_up).run()


def _stops() -> list[signal.Signals]:
    """The signals that end the node: a hang-up is one too, unless whoever started us wants it ignored."""
    hangup = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGTERM, signal.SIGINT, *hangup]


class _Supervisor:
    def __init__(self, state: Path, settings: Settings, give_up: float | None) -> None:
        self._state, self._settings, self._give_up = state, settings, give_up
        self._stop = threading.Event()
        self._why: str | None = None
        self._gate: str | None = None  # what this container's gate passes, where it has one
        self._restarts = 0
        self._beaten = self._looked = 0.0
        self._looking: threading.Thread | None = None
        self._contact = time.monotonic()  # the last, or our start

    def run(self) -> None:
        family.adopt_orphans()
        before = {number: signal.signal(number, lambda *_: self._stop.set()) for number in _stops()}
        _open_log(self._state / LOG)
        misses = 0
        try:
            while not self._stop.is_set():
                identity = Identity.read(self._state)
                self._gate = str(identity.address) if gate.stands() else None
                self._say(f"site {identity.site} calls {identity.address}{' by its gate' if self._gate else ''}")
                with opened(identity.key) as key:
                    ending = self._attend(identity, key)
                if self._stop.is_set():
                    break
                misses = 1 if ending.steady else misses + 1
                pause = ending.pause(misses)
                self._restarts += 1
                self._blame(f"{ending.why}; trying again in {pause:.0f} s")
                self._wait(identity, pause)
            self._beat("ended", why="was asked to stop", force=True)
            self._say("stopped")
        except BaseException as error:
            self._beat("ended", why=f"{type(error).__name__}: {error}", force=True)
            raise
        finally:
            family.end(lambda: family.below(os.getpid()), 1.0)
            family.bury(())
            for number, handler in before.items():
                signal.signal(number, handler)
            _close_log()

    def _attend(self, identity: Identity, key: Path) -> "_Ending":
        """Start the node once and stay with it until nothing of it is left."""
        port, folder = _free_port(), self._state / FOLDER
        secret = folder / "executor.secret"
        _write_secret(secret)
        _write_node_config(folder / "node.toml", identity.site, self._settings, self._state)
        shutil.rmtree(self._state / "flwr" / "apps", ignore_errors=True)  # bundles of earlier runs
        (self._state / CONTACT).unlink(missing_ok=True)
        node = Child("node", self._state, _node_flags(identity, key, port, folder), key)
        executor: Child | None = None
        falls, fell, began, connected = 0, 0.0, time.monotonic(), False
        try:
            while not self._stop.wait(TICK) and node.code() is None:
                connected |= self._hear(node, connected)
                if self._watch(identity, connected):
                    family.bury([node.pid] if executor is None else [node.pid, executor.pid])
                if executor is not None and executor.code() is not None:
                    falls, fell = falls + 1, time.monotonic()
                    self._say(f"the executor ended ({executor.ended()}); what it left is ended, and it starts again")
                    executor = None
                    family.end(lambda: family.below(os.getpid()) - {node.pid}, 1.0)
                if executor is None and time.monotonic() >= fell + min(30, falls * 2) and _answers(port):
                    flags = ["--runtime-api-address", f"127.0.0.1:{port}", "--insecure"]
                    flags += ["--superexec-auth-secret-file", str(secret)]
                    executor = Child("executor", self._state, flags, key)
        finally:
            children = [child for child in (node, executor) if child is not None]
            for child in children:
                child.ask()  # once: a second SIGTERM would cut the leave short that the node takes of the server
            end = time.monotonic() + LEAVE
            while any(child.code() is None for child in children) and time.monotonic() < end:
                time.sleep(0.05)
            family.end(lambda: family.below(os.getpid()), 1.0)
            for child in children:
                child.close()
        return _Ending.of(node, identity, connected, time.monotonic() - began)

    def _hear(self, node: Child, connected: bool) -> bool:
        contact = read_record(self._state / CONTACT)
        if contact is None or contact.get("pid") != node.pid:
            return False
        if not connected:
            self._say("connected: the server takes this site's key")
        if contact.get("doing") == "work" or time.time() - float(contact.get("time", 0)) < SILENT:
            self._contact, self._why = time.monotonic(), None
        return True

    def _watch(self, identity: Identity, connected: bool) -> bool:
        """Say how the node is, and look for the reason of a silence; True when it was time to write its health."""
        beat = self._beat("connected" if connected else "starting", why=self._why)
        silent = time.monotonic() - self._contact
        if self._give_up is not None and silent >= self._give_up:
            raise RunFailed(f"site {identity.site}: no contact in {silent:.0f} s: {self._why or 'no reason found'}")
        if silent >= LOOK / 3 and time.monotonic() >= self._looked + LOOK:
            self._looked = time.monotonic()
            if self._looking is None or not self._looking.is_alive():
                self._looking = threading.Thread(target=self._look, args=(identity,), daemon=True)
                self._looking.start()
        return beat

    def _look(self, identity: Identity) -> None:
        failure = network_failure(identity)
        if failure is not None:
            self._blame(failure)

    def _wait(self, identity: Identity, pause: float) -> None:
        end = time.monotonic() + pause
        while time.monotonic() < end and not self._stop.wait(TICK):
            self._beat("waiting", why=self._why)
            if self._give_up is not None and time.monotonic() - self._contact >= self._give_up:
                raise RunFailed(f"site {identity.site}: no contact in {self._give_up:.0f} s: {self._why}")

    def _blame(self, why: str) -> None:
        """Says why the node does not work, once and not at each look."""
        if why != self._why:
            self._why = why
            self._say(why)

    def _say(self, text: str) -> None:
        _log.info("lacuna: %s", text)

    def _beat(self, doing: str, *, why: str | None, force: bool = False) -> bool:
        if not force and time.monotonic() < self._beaten + BEAT:
            return False
        self._beaten = time.monotonic()
        record = {"doing": doing, "pid": os.getpid(), "restarts": self._restarts, "time": time.time(), "why": why}
        record["gate"] = self._gate
        path = self._state / HEALTH
        with suppress(OSError):  # a full disk must not end the node
            write_bytes(path, canonical(record), durable=False)
        return True


# --- how a node ended, and what follows -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ending:
    why: str
    first: float  # seconds before the next start; doubled at each miss in a row
    most: float
    steady: bool  # it had worked for a while

    @staticmethod
    def of(node: Child, identity: Identity, connected: bool, lived: float) -> "_Ending":
        said, code = node.last_words(), node.code()
        steady = connected and lived >= STEADY
        if "[code: 2004]" in said:
            why = (
                f"the server does not take the key of site {identity.site}: it is not registered or was revoked (the "
                "coordinator: `lacuna federation list`, then `sync`), or the site came back within a minute"
            )
            return _Ending(why=why, first=HELD, most=600.0, steady=steady)
        failure = network_failure(identity)
        if failure is not None:
            return _Ending(why=failure, first=10.0, most=300.0, steady=steady)
        if code is not None and code < 0:
            why = f"the node was killed ({node.ended()}); the server may hold its key for a minute"
            return _Ending(why=why, first=HELD, most=HELD, steady=steady)
        if code == 0:
            why = (
                f"the server turned site {identity.site} away: its key was revoked, or unregistered (the coordinator: "
                "`lacuna federation list`)"
            )
            return _Ending(why=why, first=HELD, most=600.0, steady=steady)
        why = f"the node ended ({node.ended()}): {said or 'without a word'}"
        return _Ending(why=why, first=5.0, most=300.0, steady=steady)

    def pause(self, misses: int) -> float:
        return float(min(self.most, self.first * 2 ** min(misses - 1, 10)))


def network_failure(identity: Identity) -> str | None:
    """Find the first thing between here and the server that does not work, in one line; None if all does."""
    try:
        authorities = read_bounded(identity.authorities, "the federation's CA")
        failed = reach.first_failure(reach.look(identity.address, authorities))
    except Exception as error:  # damaged files of the kit; a look must not end the supervisor
        return f"{type(error).__name__}: {error}"
    return None if failed is None else failed.line()


# --- what the children are given ---


def _node_flags(identity: Identity, key: Path, port: int, folder: Path) -> list[str]:
    return [
        "--superlink",
        str(gate.reached(identity.address)),
        "--root-certificates",
        str(identity.authorities),
        "--auth-supernode-private-key",
        str(key),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--isolation",
        "process",
        "--superexec-auth-secret-file",
        str(folder / "executor.secret"),
        "--node-config",
        str(folder / "node.toml"),
    ]


def _write_node_config(path: Path, site: str, settings: Settings, state: Path) -> None:
    """Write what `client/site/site.py` reads; it stays in the node's memory. A JSON string is a TOML string too."""
    values = {
        "site": site,
        "cohort": os.pathsep.join(settings.cohorts),
        "state": str(state),
        "device": settings.device,
    }
    text = "".join(f"{key} = {json.dumps(value, ensure_ascii=True)}\n" for key, value in values.items())
    write_text(path, text, durable=False)


def _write_secret(path: Path) -> None:
    """Write what node and executor share, so that nobody else on this machine is given the site's tasks."""
    write_bytes(path, secrets.token_bytes(32), mode=0o600, durable=False)


def _free_port() -> int:
    for wanted in (PORT, 0):
        with suppress(OSError), socket.create_server(("127.0.0.1", wanted)) as listener:
            return int(listener.getsockname()[1])
    raise RunFailed("no free port on 127.0.0.1")


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


# --- one at a time, and its log -------------------------------------------------------------------------------------


@contextmanager
def _alone(state: Path) -> Iterator[None]:
    """Hold the state for this supervisor; ConfigError when another works with it, in a container or beside it."""
    private_folder(state / FOLDER)
    busy = ConfigError(f"state={state}: a node runs with it already (`lacuna-site status`)")
    with locks.held(state / FOLDER / "lock", busy=busy):
        yield


def _open_log(path: Path) -> None:
    form = logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    form.converter = time.gmtime
    for handler in (RotatingFileHandler(path, maxBytes=10_000_000, backupCount=4), logging.StreamHandler(sys.stdout)):
        handler.setFormatter(form)
        _log.addHandler(handler)
    _log.setLevel(logging.INFO)
    _log.propagate = False


def _close_log() -> None:
    for handler in list(_log.handlers):
        handler.close()
        _log.removeHandler(handler)
