"""MLflow mirrors the run folder: everything once, after any interruption, and nothing without it."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.journal import facts, tracking
from server.journal.facts import RoundFacts, SiteFacts
from shared.base.errors import ConfigError
from shared.base.options import plain
from shared.base.records import Inventory
from shared.trust.claims import Certificate, PrivacyRecord, not_claimed, short, statement

pytestmark = pytest.mark.slow  # left out of `make fast`

CONFIG = {
    "method": {"name": "amm_diff", "size": "tiny", "targets": ["T1", "FLAIR"], "note": "x" * 9000},
    "tracking": {"uri": "http://me:hunter2@example.org/mlflow"},
}
PNG = b"\x89PNG\r\n\x1a\n"


def one(phase: str, number: int, of: int = 2, **changed: Any) -> RoundFacts:
    sites = {
        "north": SiteFacts(status="ok", loss=0.5, samples=64, seconds=1.5, bytes_up=10, bytes_down=20),
        "../so:uth": SiteFacts(status="rejected", reason="delta norm 31 is over the limit 10"),
    }
    values = {
        "loss": 1.0 / (number + 1),
        "watch": {"spread": 0.3},
        "holders": {"shared": 1, "from:T1": 1},
        "counts": {"shared": 64, "from:T1": 32},
        "validation": {"psnr/FLAIR": 20.0 + number, "loss": float("nan")},
    }
    return RoundFacts(
        phase=phase, round=number, of=of, ended=1e9 + number, seconds=2.5, sites=sites, **values | changed
    )


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all tests here: making its tables is what costs time."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def client(uri: str) -> Any:
    with tracking._quiet():
        return tracking._client(uri)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / tmp_path.name
    found = facts.coverage(
        [Inventory(site="north", schema="s", subjects=12, patterns={("T1", "FLAIR"): 7, ("T1",): -5})], ["T1", "FLAIR"]
    )
    facts.save_coverage(folder / "inventory.json", found)
    (folder / "mosaics").mkdir()
    (folder / "mosaics" / "translate-0001.png").write_bytes(PNG)
    return folder


def opened(uri: str, folder: Path, note: Callable[[str], None] = pytest.fail) -> tracking.Tracker:
    return tracking.open(uri, experiment=folder.name, model=folder.name, folder=folder, config=CONFIG, note=note)


def play(tracker: tracking.Tracker, folder: Path, *rounds: RoundFacts) -> None:
    for each in rounds:
        facts.append(folder / "rounds.jsonl", each)
        tracker.sync(each)


def runs(client: Any, folder: Path) -> dict[str, Any]:
    """By name; a name that is there twice fails."""
    found = client.search_runs([client.get_experiment_by_name(folder.name).experiment_id])
    by_name = {run.info.run_name: run for run in found}
    assert len(by_name) == len(found)
    return by_name


def steps(client: Any, run: Any, metric: str) -> list[int]:
    return sorted(point.step for point in client.get_metric_history(run.info.run_id, metric))


def artifact(client: Any, run: Any, path: str, into: Path) -> Any:
    return json.loads(Path(client.download_artifacts(run.info.run_id, path, str(into))).read_text())


def finish(folder: Path) -> None:
    (folder / "final").mkdir()
    (folder / "final" / "model.json").write_text("{}")
    (folder / "final" / "weights.safetensors").write_bytes(b"weights")


def test_a_run_and_its_phases_are_all_in_mlflow(uri: str, client: Any, folder: Path, tmp_path: Path) -> None:
    tracker = opened(uri, folder)
    play(tracker, folder, one("pretext", 0, of=1), one("translate", 0), one("translate", 1))
    finish(folder)
    tracker.close("FINISHED")

    found = runs(client, folder)
    assert found.keys() == {folder.name, "pretext", "translate"}
    parent, phase = found[folder.name], found["translate"]
    assert tracker.run_id == parent.info.run_id
    assert phase.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert parent.data.params["method.size"] == "tiny"
    assert parent.data.params["method.targets"] == '["T1", "FLAIR"]'
    assert len(parent.data.params["method.note"]) == tracking.LONGEST
    assert artifact(client, parent, "config.json", tmp_path)["method"] == CONFIG["method"]
    assert "lacuna.code" in parent.data.tags

    assert phase.data.metrics["loss"] == 0.5
    assert phase.data.metrics["validation/psnr/FLAIR"] == 21
    assert "validation/loss" not in phase.data.metrics  # nan is not a number to plot
    assert phase.data.metrics["holders/from:T1"] == 1
    assert phase.data.metrics["samples/from:T1"] == 32
    assert phase.data.metrics["site/north/bytes_down"] == 20
    assert steps(client, phase, "loss") == [0, 1]
    assert steps(client, parent, "loss") == [0, 1, 2]
    (hostile,) = (
        name for name in phase.data.metrics if name.startswith("site/") and name.endswith("/ok") and "so" in name
    )
    assert ".." not in hostile
    assert phase.data.metrics[hostile] == 0

    assert ["T1", "FLAIR", 1, "7"] in artifact(client, parent, "coverage.json", tmp_path)["data"]
    assert ["north", "T1", "<5"] in artifact(client, parent, "inventory.json", tmp_path)["data"]
    assert len(artifact(client, parent, "refusals.json", tmp_path)["data"]) == 3
    assert [file.path for file in client.list_artifacts(parent.info.run_id, "mosaics")] == [
        "mosaics/translate-0001.png"
    ]

    assert parent.data.tags["lacuna.privacy"] == "no differential privacy"

    version = client.get_model_version_by_alias(folder.name, tracking.ALIAS)
    assert version.run_id == parent.info.run_id
    assert {file.path for file in client.list_artifacts(version.run_id, "model")} == {
        "model/model.json",
        "model/weights.safetensors",
    }


def test_tables_open_as_mlflow_tables(uri: str, client: Any, folder: Path) -> None:
    opened(uri, folder).close("FINISHED")
    parent = runs(client, folder)[folder.name]
    listed = json.loads(parent.data.tags["mlflow.loggedArtifacts"])
    assert listed == [{"path": name, "type": "table"} for name in ("coverage.json", "inventory.json")]


def test_a_resumed_run_goes_on_in_the_same_runs_and_logs_nothing_twice(uri: str, client: Any, folder: Path) -> None:
    first = opened(uri, folder)
    play(first, folder, one("pretext", 0, of=1), one("translate", 0))
    facts.append(folder / "rounds.jsonl", one("translate", 1, of=3))  # killed before MLflow heard of it
    again = opened(uri, folder)
    assert again.run_id == first.run_id
    play(again, folder, one("translate", 2, of=3))
    finish(folder)
    again.close("FINISHED")
    opened(uri, folder).close("FINISHED")  # a finished run, resumed

    found = runs(client, folder)
    assert found.keys() == {folder.name, "pretext", "translate"}
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    for metric in ("loss", "seconds", "site/north/samples"):
        assert steps(client, found["translate"], metric) == [0, 1, 2]
        assert steps(client, found["pretext"], metric) == [0]
    assert steps(client, found[folder.name], "loss") == [0, 1, 2, 3]
    assert len(client.search_model_versions(f"name = '{folder.name}'")) == 1


def test_a_failed_run_is_failed_and_its_complete_phase_is_not(uri: str, client: Any, folder: Path) -> None:
    tracker = opened(uri, folder)
    play(tracker, folder, one("pretext", 0, of=1), one("translate", 0))
    tracker.close("FAILED")
    status = {name: run.info.status for name, run in runs(client, folder).items()}
    assert status == {folder.name: "FAILED", "pretext": "FINISHED", "translate": "FAILED"}


def test_an_mlflow_that_is_down_costs_one_message_and_is_caught_up_with(uri: str, client: Any, folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        dead = f"http://someone:hunter2@127.0.0.1:{free.getsockname()[1]}"
    said: list[str] = []
    tracker = opened(dead, folder, said.append)
    play(tracker, folder, one("translate", 0), one("translate", 1, of=3))
    assert len(said) == 1
    assert "hunter2" not in said[0]
    assert tracker.run_id is None

    assert isinstance(tracker, tracking.MlflowTracker)
    tracker.uri, tracker._retry_at = uri, 0.0  # the server is back, and patience is over
    play(tracker, folder, one("translate", 2, of=3))
    assert "caught up" in said[1]
    tracker.close("FINISHED")
    assert len(said) == 2
    assert steps(client, runs(client, folder)["translate"], "loss") == [0, 1, 2]


def test_a_released_run_says_what_may_be_said_of_its_privacy(
    uri: str, client: Any, folder: Path, tmp_path: Path
) -> None:
    certificate = Certificate(
        site="north",
        epsilon=3.371,
        budget=7.5,
        delta=2e-5,
        noise=2.19,
        rate=0.125,
        clip=0.3,
        draws=4,
        slices=3,
        steps=207,
        size=240,
        ledger="ab12",
        sequence=214,
        head="f00d",
        others=6,
    )
    record = PrivacyRecord(private=(certificate,), not_private=("south",))
    tracker = opened(uri, folder)
    play(tracker, folder, one("translate", 0, of=1))
    assert "lacuna.privacy" not in runs(client, folder)[folder.name].data.tags
    finish(folder)
    model = {"provenance": {"private": True, "privacy": plain(record)}}
    (folder / "final" / "model.json").write_text(json.dumps(model))
    tracker.close("FINISHED")
    parent = runs(client, folder)[folder.name]
    assert parent.data.tags["lacuna.privacy"] == short(record)
    text = Path(client.download_artifacts(parent.info.run_id, "privacy.txt", str(tmp_path))).read_text()
    assert text.splitlines() == [*statement(record), "", *not_claimed()]


def test_a_statement_that_can_t_be_made_costs_a_message_and_no_run(uri: str, client: Any, folder: Path) -> None:
    said: list[str] = []
    tracker = opened(uri, folder, said.append)
    play(tracker, folder, one("translate", 0, of=1))
    finish(folder)
    (folder / "final" / "model.json").write_text('{"provenance": {"private": true}}')
    tracker.close("FINISHED")
    assert len(said) == 1
    assert "no statement of privacy" in said[0]
    parent = runs(client, folder)[folder.name]
    assert parent.info.status == "FINISHED"
    assert "lacuna.privacy" not in parent.data.tags


def test_passwords_in_urls_are_not_logged(uri: str, client: Any, folder: Path, tmp_path: Path) -> None:
    opened(uri, folder).close("FINISHED")
    parent = runs(client, folder)[folder.name]
    assert parent.data.params["tracking.uri"] == "http://…@example.org/mlflow"
    assert "hunter2" not in json.dumps(artifact(client, parent, "config.json", tmp_path))


def test_different_names_stay_different_keys() -> None:
    texts = ["a", "a/b", "a//b", "../a", "a:b", "a b", " a", "a;b", "ä", "x" * 61, "x" * 62]
    assert len({tracking._name(text) for text in texts}) == len(texts)


def test_an_unknown_kind_of_uri_is_a_config_error(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"tracking\.uri='ftp://…@host'"):
        opened("ftp://user:word@host", folder)


def _python(code: str) -> str:
    """The last line that a fresh Python prints, with nothing in its environment that hints at a test."""
    environment = {k: v for k, v in os.environ.items() if k not in ("CI", "PYTEST_CURRENT_TEST", "GITHUB_ACTIONS")}
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout.splitlines()[-1]


OPEN = "tracking.open({uri!r}, experiment='e', model='m', folder=Path({folder!r}), config={{'a': 1}}, note=print)"


def test_without_tracking_mlflow_is_not_imported(folder: Path) -> None:
    tracker = OPEN.format(uri="none", folder=str(folder))
    code = f"import sys; from pathlib import Path; from server.journal import tracking; t = {tracker}"
    code += "; t.close('FINISHED')"
    assert _python(f"{code}; print('mlflow' in sys.modules, t.run_id)") == "False None"


def test_mlflow_is_silent_and_asks_the_network_for_nothing(uri: str, folder: Path) -> None:
    tracker = OPEN.format(uri=uri, folder=str(folder))
    code = f"""
import sys, threading
from pathlib import Path
asked = []
def hook(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.gethostbyname"):
        asked.append(args)
sys.addaudithook(hook)
from server.journal import tracking
t = {tracker}
t.close("FINISHED")
print(asked, [thread.name for thread in threading.enumerate()])
"""
    assert _python(code) == "[] ['MainThread']"
