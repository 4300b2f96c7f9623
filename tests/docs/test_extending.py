"""docs/extending.md as it stands: its diffs are applied to a copy of the house, where the new rows keep their laws."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # left out of `make fast`

HOUSE = Path(__file__).resolve().parents[2]
PAGE = HOUSE / "docs" / "extending.md"
COPIED = ("client", "configs", "server", "shared", "tests", "pyproject.toml")
LAWS = (
    "tests/shared/methods/test_methods.py",
    "tests/shared/plan/test_config.py",
    "tests/shared/data/test_modalities.py",
    "tests/shared/data/test_intensities.py",
    "tests/server/rounds/test_strategies.py",
    "tests/shared/diffusion/test_samplers.py",
)
ROWS = ("regression", "PD", "fednesterov", "plms")  # by which the laws of a new row are called
BESIDES = ("stems", "contract_names", "a_row_says", "the_table_and")


def diffs() -> list[str]:
    return re.findall(r"^```diff\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy with all that the page adds."""
    copy = tmp_path_factory.mktemp("extended")
    for name in COPIED:
        if (HOUSE / name).is_dir():
            shutil.copytree(HOUSE / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(HOUSE / name, copy / name)
    for diff in diffs():
        done = subprocess.run(["git", "apply", "-"], input=diff, cwd=copy, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{done.stderr}\n{diff[:400]}"
    return copy


def test_the_page_adds_one_of_each(house: Path) -> None:
    assert len(diffs()) == 4
    added = {str(path.relative_to(house)) for path in house.rglob("*") if path.is_file()}
    added -= {str(path.relative_to(HOUSE)) for name in COPIED for path in (HOUSE / name, *(HOUSE / name).rglob("*"))}
    assert added == {
        "shared/methods/baselines/regression.py",
        "configs/method/regression.yaml",
        "server/rounds/strategies/nesterov.py",
        "configs/strategy/fednesterov.yaml",
        "configs/sampler/plms.yaml",
    }


@pytest.mark.slow
def test_the_new_rows_keep_their_laws(house: Path) -> None:
    chosen = " or ".join((*ROWS, *BESIDES))
    words = [sys.executable, "-m", "pytest", "-n", "0", "-vv", "-p", "no:cacheprovider", "-k", chosen, *LAWS]
    environment = {**os.environ, "PYTHONPATH": str(house), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(words, cwd=house, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:]
    for row in ROWS:
        assert re.search(rf"{row}\S* PASSED", done.stdout), f"no law of {row} was asked"
