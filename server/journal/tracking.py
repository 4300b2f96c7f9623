"""MLflow as a mirror of the run folder: one run per federation, a nested run per phase. [mlflow's one door]

The folder is the truth (rounds.jsonl, inventory.json, mosaics/, final/); `sync` writes to MLflow what it lacks. So an
MLflow that is down costs a message and no training, a resumed run goes on in the same MLflow runs, and nothing is
logged twice: MLflow itself is asked which rounds it has. What is sent is listed here; telemetry is off.
"""

import json
import logging
import os
import re
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from server.journal import facts
from server.journal.facts import Coverage, RoundFacts
from server.journal.version import code_version
from shared.base.errors import ConfigError, DataError
from shared.base.files import make_folder, write_text
from shared.trust import claims

if TYPE_CHECKING:  # importing mlflow takes two seconds and 200 MB: only a run that is tracked pays
    from mlflow import MlflowClient

Ending = Literal["FINISHED", "FAILED", "KILLED"]

SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https")
ALIAS = "champion"  # the registry alias that moves to the newest finished model
MARK = "seconds"  # a round's last metric: where it is, the whole round is
RETRY_SECONDS = 60.0  # how long an MLflow that failed is left alone
LONGEST = 500  # characters of a parameter; config.json has all of it
LONGEST_NAME = 60
MOST_METRICS, MOST_PARAMS = 1000, 100  # MLflow's limits per request


class Tracker(Protocol):
    """What the round loop knows of tracking."""

    @property
    def run_id(self) -> str | None: ...

    def sync(self, latest: RoundFacts | None = None) -> None:
        """After a round (it is then on the disk), or after something else new in the run folder. Never raises."""

    def close(self, ending: Ending) -> None:
        """The last sync; a finished run's model goes to the registry. Never raises."""


class NullTracker:
    """`tracking.uri=none`: nothing is tracked and MLflow is not even imported."""

    run_id: str | None = None

    def sync(self, latest: RoundFacts | None = None) -> None:
        return

    def close(self, ending: Ending) -> None:
        return


def open(
    uri: str, *, experiment: str, model: str, folder: Path, config: Mapping[str, Any], note: Callable[[str], None]
) -> Tracker:
    """The tracker of the run in `folder`: of a new one, or of one to go on with. `note` hears of trouble, once."""
    if uri == "none":
        return NullTracker()
    if uri.split(":")[0].split("+")[0] not in SCHEMES:
        raise ConfigError(f"tracking.uri={without_passwords(uri)!r}: must be none or start with {', '.join(SCHEMES)}")
    tracker = MlflowTracker(
        uri=uri, experiment=experiment, model=model, folder=folder, config=without_passwords(config), note=note
    )
    tracker.sync()
    return tracker


@dataclass(kw_only=True)
class MlflowTracker:
    uri: str
    experiment: str
    model: str  # its name in the registry
    folder: Path
    config: Mapping[str, Any]
    note: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    run_id: str | None = None
    _client: "MlflowClient | None" = None
    _experiment: str = ""  # its id
    _phases: dict[str, str] = field(default_factory=dict)  # phase -> MLflow run id
    _complete: set[str] = field(default_factory=set)  # phases that had their last round
    _has: dict[str, set[int]] = field(default_factory=dict)  # MLflow run id -> the steps that it has
    _order: dict[tuple[str, int], int] = field(default_factory=dict)  # (phase, round) -> step of the whole run
    _troubles: dict[tuple[str, int], list[list[Any]]] = field(default_factory=dict)
    _sent: set[str] = field(default_factory=set)  # artifacts
    _behind: bool = True  # MLflow may lack more than the latest round
    _down: bool = False
    _retry_at: float = 0.0

    def sync(self, latest: RoundFacts | None = None) -> None:
        if self._down and self.clock() < self._retry_at:
            self._behind = True
        else:
            self._attempt(lambda: self._mirror(latest))

    def close(self, ending: Ending) -> None:
        self._attempt(lambda: self._finish(ending))
        if self._down:
            self.note(
                "tracking: MLflow still lacks a part of this run; resuming the run, even a finished one, sends it"
            )

    def _attempt(self, action: Callable[[], None]) -> None:
        with _quiet():
            from mlflow.exceptions import MlflowException
            from sqlalchemy.exc import SQLAlchemyError

            try:
                action()
            except (MlflowException, SQLAlchemyError, OSError) as error:
                if not self._down:
                    self.note(
                        f"tracking: MLflow at {without_passwords(self.uri)} did not take it; the run goes on, and what "
                        f"is missing is sent when MLflow answers again ({facts.words(without_passwords(str(error)))})"
                    )
                self._down = self._behind = True
                self._retry_at = self.clock() + RETRY_SECONDS
                return
        if self._down:
            self.note("tracking: MLflow answers again and has caught up")
        self._down = False

    def _mirror(self, latest: RoundFacts | None) -> None:
        client, run_id = self._connect()
        recent = [] if latest is None else [latest]
        for one in facts.read(self.folder / "rounds.jsonl") if self._behind else recent:
            step = self._order.setdefault((one.phase, one.round), len(self._order))
            self._log(client, self._phase(client, one), one.round, one.ended, measures(one))
            self._log(client, run_id, step, one.ended, summary(one))
            if one.round == one.of - 1 and one.phase not in self._complete:
                client.set_terminated(self._phases[one.phase], "FINISHED", end_time=round(one.ended * 1000))
                self._complete.add(one.phase)
            if rows := troubles(one):
                self._troubles[one.phase, one.round] = rows
                _table(client, run_id, "refusals.json", TROUBLES, [row for r in self._troubles.values() for row in r])
        self._mirror_files(client, run_id)
        self._behind = False

    def _mirror_files(self, client: "MlflowClient", run_id: str) -> None:
        inventory = self.folder / "inventory.json"
        if inventory.exists() and inventory.name not in self._sent:
            found = facts.load_coverage(inventory)
            _table(client, run_id, "coverage.json", *coverage_table(found))
            _table(client, run_id, "inventory.json", *inventory_table(found))
            self._sent.add(inventory.name)
        for picture in sorted(self.folder.glob("mosaics/*.png")):  # of the coordinator's own cohort
            if f"mosaics/{picture.name}" not in self._sent:
                client.log_artifact(run_id, str(picture), "mosaics")
                self._sent.add(f"mosaics/{picture.name}")

    def _finish(self, ending: Ending) -> None:
        self._mirror(None)
        client, run_id = self._connect()
        if ending == "FINISHED" and (self.folder / "final" / "model.json").exists():
            self._state_privacy(client, run_id)
            _register(client, run_id, self.folder / "final", self.model)
        for phase in self._phases.keys() - self._complete:
            client.set_terminated(self._phases[phase], ending)
        client.set_terminated(run_id, ending)

    def _state_privacy(self, client: "MlflowClient", run_id: str) -> None:
        """What may be said of the finished run, and what may not: a line as a tag, all of it as a text."""
        record = json.loads((self.folder / "final" / "model.json").read_text(encoding="utf-8"))
        try:
            said = claims.privacy_of(record.get("provenance", {}))
        except DataError as error:  # of another version; MLflow then says nothing
            self.note(f"tracking: no statement of privacy: {error}")
            return
        client.set_tag(run_id, "lacuna.privacy", said["short"])
        client.log_text(run_id, "\n".join([*said["statement"], "", *said["not_claimed"], ""]), "privacy.txt")

    def _connect(self) -> tuple["MlflowClient", str]:
        """MLflow and the run there: found by the key that the run folder keeps, else made."""
        if self._client is not None and self.run_id is not None:
            return self._client, self.run_id
        client = self._client = _client(self.uri)
        found = client.get_experiment_by_name(self.experiment)
        if found is None:
            local = not self.uri.startswith("http")  # a server knows itself where artifacts go
            place = (self.folder.parent / "mlartifacts").resolve().as_uri() if local else None
            self._experiment = client.create_experiment(self.experiment, artifact_location=place)
        else:
            self._experiment = found.experiment_id
        run_id = self._run(client, _key(self.folder), self.folder.name, {"lacuna.code": code_version()})
        known = client.get_run(run_id).data.params
        _params(client, run_id, {name: value for name, value in flat(self.config).items() if name not in known})
        client.log_text(run_id, json.dumps(self.config, indent=1), "config.json")
        self._sent |= {file.path for file in client.list_artifacts(run_id, "mosaics")}
        self.run_id = run_id
        return client, run_id

    def _phase(self, client: "MlflowClient", one: RoundFacts) -> str:
        if one.phase not in self._phases:
            tags = {"mlflow.parentRunId": str(self.run_id), "lacuna.phase": one.phase}
            self._phases[one.phase] = self._run(client, f"{_key(self.folder)}/{one.phase}", one.phase, tags)
        return self._phases[one.phase]

    def _run(self, client: "MlflowClient", key: str, name: str, tags: Mapping[str, str]) -> str:
        """The MLflow run with this key, running again; a new one if there is none."""
        found = client.search_runs([self._experiment], filter_string=f"tags.`lacuna.key` = '{key}'", max_results=1)
        if found:
            run_id: str = found[0].info.run_id
            client.update_run(run_id, status="RUNNING")
            self._has[run_id] = {metric.step for metric in client.get_metric_history(run_id, MARK)}
        else:
            run_id = client.create_run(self._experiment, run_name=name, tags={"lacuna.key": key, **tags}).info.run_id
            self._has[run_id] = set()
        return run_id

    def _log(self, client: "MlflowClient", run_id: str, step: int, ended: float, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        if step in self._has[run_id]:
            return
        metrics = [Metric(name, value, round(ended * 1000), step) for name, value in values.items()]
        for start in range(0, len(metrics), MOST_METRICS):
            client.log_batch(run_id, metrics=metrics[start : start + MOST_METRICS])
        self._has[run_id].add(step)


def measures(one: RoundFacts) -> dict[str, float]:
    """What a phase's MLflow run gets of a round; the mark comes last."""
    values: dict[str, float | None] = {
        "loss": one.loss,
        "quorum": float(one.quorum),
        "refusals": len(one.refusals),
        "bytes/up": one.bytes_up,
        "bytes/down": one.bytes_down,
        "sites/ok": sum(site.status == "ok" for site in one.sites.values()),
    }
    values |= {f"watch/{_name(name)}": value for name, value in one.watch.items()}
    values |= {f"validation/{_name(name)}": value for name, value in (one.validation or {}).items()}
    values |= {f"holders/{_name(owner)}": count for owner, count in one.holders.items()}
    values |= {f"samples/{_name(owner)}": count for owner, count in one.counts.items()}
    for name, site in one.sites.items():
        values |= {
            f"site/{_name(name)}/ok": float(site.status == "ok"),
            f"site/{_name(name)}/loss": site.loss,
            f"site/{_name(name)}/samples": site.samples,
            f"site/{_name(name)}/seconds": site.seconds,
            f"site/{_name(name)}/bytes_up": site.bytes_up,
            f"site/{_name(name)}/bytes_down": site.bytes_down,
            f"site/{_name(name)}/epsilon_spent": site.epsilon_spent,
        }
    return {name: float(value) for name, value in values.items() if value is not None} | {MARK: one.seconds}


def summary(one: RoundFacts) -> dict[str, float]:
    """What the federation's own MLflow run gets of a round: few enough to be read at a glance."""
    kept = ("loss", "refusals", "bytes/up", "bytes/down", "sites/ok", MARK)
    return {name: value for name, value in measures(one).items() if name in kept or name.startswith("validation/")}


TROUBLES = ("phase", "round", "site", "status", "reason")


def troubles(one: RoundFacts) -> list[list[Any]]:
    return [[one.phase, one.round, n, s.status, s.reason] for n, s in one.sites.items() if s.status != "ok"]


def coverage_table(found: Coverage) -> tuple[Sequence[str], list[list[Any]]]:
    rows = [
        [source, target, pair.sites, facts.subjects(pair)]
        for source, targets in found.pairs.items()
        for target, pair in targets.items()
    ]
    return ("source", "target", "sites", "subjects"), rows


def inventory_table(found: Coverage) -> tuple[Sequence[str], list[list[Any]]]:
    rows = [
        [site, pattern, facts.cell(count)]
        for site, holds in found.sites.items()
        for pattern, count in holds.patterns.items()
    ]
    return ("site", "present", "subjects"), rows


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted names and short texts, as MLflow's parameters must be."""
    params: dict[str, str] = {}
    for key, value in config.items():
        name = prefix + _name(str(key))
        if isinstance(value, Mapping):
            params |= flat(value, name + ".")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            params[name] = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    return params


def without_passwords(value: Any) -> Any:
    """The same text or config, its URLs without user and password: `http://…@host`."""
    if isinstance(value, str):
        return re.sub(r"://[^/@\s]+@", "://…@", value)
    if isinstance(value, Mapping):
        return {key: without_passwords(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_passwords(entry) for entry in value]
    return value


def _name(text: str) -> str:
    """`text` as MLflow allows it in a key; two texts never become one."""
    if len(text) <= LONGEST_NAME and re.fullmatch(r"[\w:-]+([ ./][\w:-]+)*", text, flags=re.ASCII):
        return text
    clean = re.sub(r"[^\w-]", "_", text, flags=re.ASCII)[:LONGEST_NAME]
    return f"{clean}-{blake2b(text.encode(), digest_size=3).hexdigest()}"


def _key(folder: Path) -> str:
    """What the run is found by in MLflow; kept in the folder, so that a folder made anew is a new run."""
    path = folder / "mlflow.json"
    if not path.exists():
        write_text(path, json.dumps({"key": uuid.uuid4().hex}) + "\n")
    key: str = json.loads(path.read_text(encoding="utf-8"))["key"]
    return key


def _client(uri: str) -> "MlflowClient":
    from mlflow import MlflowClient

    if uri.startswith("sqlite:///"):
        make_folder(Path(uri.removeprefix("sqlite:///")).parent)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _params(client: "MlflowClient", run_id: str, params: Mapping[str, str]) -> None:
    from mlflow.entities import Param

    entries = [Param(name, value) for name, value in params.items()]
    for start in range(0, len(entries), MOST_PARAMS):
        client.log_batch(run_id, params=entries[start : start + MOST_PARAMS])


def _table(
    client: "MlflowClient", run_id: str, file: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]
) -> None:
    """As `client.log_table`, but written anew instead of appended to, and without pandas."""
    client.log_text(run_id, json.dumps({"columns": columns, "data": rows}), file)
    entry = {"path": file, "type": "table"}
    listed = json.loads(client.get_run(run_id).data.tags.get("mlflow.loggedArtifacts", "[]"))
    if entry not in listed:
        client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps([*listed, entry]))


def _register(client: "MlflowClient", run_id: str, final: Path, model: str) -> None:
    """The finished model as a version in the registry: safetensors and JSON as they are, nothing pickled."""
    if not client.search_registered_models(f"name = '{model}'"):
        client.create_registered_model(model)
    versions = client.search_model_versions(f"name = '{model}' and run_id = '{run_id}'")
    if versions:
        version = versions[0]
    else:
        client.log_artifacts(run_id, str(final), "model")
        source = f"{client.get_run(run_id).info.artifact_uri}/model"
        version = client.create_model_version(model, source=source, run_id=run_id, tags={"lacuna.code": code_version()})
    client.set_registered_model_alias(model, ALIAS, version.version)


@contextmanager
def _quiet() -> Iterator[None]:
    """MLflow says nothing to the terminal and nothing to its makers, and a dead server is given up on soon."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["DO_NOT_TRACK"] = "true"
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
