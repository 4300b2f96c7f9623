"""The BIDS validator's word on a cohort."""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest


def errors_in(cohort: Path) -> list[Any]:
    """Of a copy on the disk: Deno reads nothing below /dev, where tests write to memory."""
    program = Path(sys.executable).with_name("bids-validator-deno")
    if not program.exists():
        pytest.skip("bids-validator-deno is not installed")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as disk:
        copy = shutil.copytree(cohort, Path(disk) / "cohort")
        words = [program, copy, "--ignoreWarnings", "--format", "json"]
        said = subprocess.run(words, capture_output=True, text=True, check=False)
    issues = json.loads(said.stdout)["issues"]["issues"]
    return [issue for issue in issues if issue["severity"] == "error"]
