"""The same run on other engines: Flower's own simulation, central pretraining, and torchrun over processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.cohort.worlds import write_world
from support.rounds.federation import weights_digest

from server.cli import cli

pytestmark = pytest.mark.slow  # left out of `make fast`

SITES = {"north": [("T1", "T2")] * 2, "east": [("T1", "FLAIR")] * 2, "south": [("T2", "FLAIR")] * 2}
COMMON = ("size=tiny", "tracking=none", "method.modalities=[T1,T2,FLAIR]")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("engines") / "world", SITES, edge=32)


def lacuna(*arguments: str) -> None:
    """In this process; it ends by an error where it would there."""
    cli.app(list(arguments), standalone_mode=False)


def in_a_process(*arguments: str, launcher: tuple[str, ...] = (sys.executable,)) -> None:
    done = subprocess.run(
        [*launcher, "-m", "server.cli", *arguments], env=ENVIRONMENT, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_flowers_own_simulation_gives_the_same_bits(tmp_path: Path) -> None:
    """The messages are the same, so the weights are, whichever process a site ran in, in whatever order it answered.

    In the second the coordinator sees sums alone: that changes nothing either.
    """
    all_three = [("T1", "T2", "FLAIR"), ("T1", "FLAIR")]  # of what fewer than three sites hold no sum is seen
    world = write_world(tmp_path / "world", dict.fromkeys(SITES, all_three), edge=32)
    three = ("federation.min_sites=3", "federation.min_holders=3")
    for engine, simulate in (("local", lacuna), ("ray", in_a_process)):
        run = (f"run={engine}", f"runs={tmp_path}", f"world={world}")
        secure = f"federation.secure={engine == 'ray'}"
        simulate("simulate", *COMMON, *run, *three, f"federation.engine={engine}", secure)
    assert weights_digest(tmp_path / "local") == weights_digest(tmp_path / "ray")


@pytest.mark.slow
def test_pretraining_pools_the_cohorts_and_torchrun_keeps_its_processes_equal(world: Path, tmp_path: Path) -> None:
    lacuna("pretrain", *COMMON, "run=one", f"runs={tmp_path}", f"world={world}")
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    in_a_process("pretrain", *COMMON, "run=two", f"runs={tmp_path}", f"world={world}", launcher=launcher)
    for run in ("one", "two"):
        lacuna("pretrain", f"resume={run}", f"runs={tmp_path}")  # the same run again: nothing is done twice
        model = json.loads((tmp_path / run / "final" / "model.json").read_text())
        assert model["provenance"]["sites"] == 1
        history = [json.loads(line) for line in (tmp_path / run / "rounds.jsonl").read_text().splitlines()]
        assert [one["phase"] for one in history] == ["anchor"] * 3 + ["pretext", "translate", "translate"]
    counts = [
        json.loads((tmp_path / run / "rounds.jsonl").read_text().splitlines()[-1])["counts"] for run in ("one", "two")
    ]
    assert counts[0]["shared"] == counts[1]["shared"] == 12  # the batch is the site's, shared out among processes


WRONG = [
    (["simulate", "size=huge"], 2, "size/huge"),
    (["simulate", "method.encoder=vit"], 2, "method.encoder='vit': must be one of iffn, unet"),
    (["simulate", "training.translate.lr=-1"], 2, "training.translate.lr=-1.0: must be above 0"),
    (["simulate", "world=/nowhere"], 2, "world=/nowhere"),
    (["simulate", "strategy=best"], 2, "strategy/best"),
    (["phantom", "out", "--family", "teapot"], 2, "teapot"),
    (["phantom", "out", "--missing", "site-z=T1"], 2, "site-z=T1"),
    (["evaluate", "nothing"], 3, "nothing"),
    (["report", "nothing"], 3, "nothing"),
    (["export", "nothing", "--out", "b", "--key", "k"], 3, "nothing"),
]


@pytest.mark.parametrize(("arguments", "code", "says"), WRONG)
def test_a_wrong_command_ends_in_one_line_and_its_exit_code(
    arguments: list[str],
    code: int,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Any other error than an exit would be a traceback."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lacuna", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == code
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said
    assert not (tmp_path / "runs").exists()


def test_a_wrong_command_ends_its_process_so(tmp_path: Path) -> None:
    arguments, code, says = WRONG[0]
    done = subprocess.run(
        [sys.executable, "-m", "server.cli", *arguments],
        cwd=tmp_path,
        env={**ENVIRONMENT, "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, done.stderr[-2000:]
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()
