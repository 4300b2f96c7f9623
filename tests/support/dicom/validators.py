"""What others' programs find wrong with a DICOM file."""

import shutil
import subprocess
from pathlib import Path

import pytest

# dciodvfy of before 2023 does not know the tag that says "synthetic data"; it says so once in each file, and no more
UNKNOWN = "Error - </(0008,001c)> - Attribute with an even group number is not a recognized standard attribute"


def errors_of(path: Path) -> list[str]:
    """What dciodvfy and dcmtk's dcmdump and dcmftest say against a file."""
    for program in ("dciodvfy", "dcmdump", "dcmftest"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is absent: apt install dicom3tools dcmtk")
    said = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, check=False).stderr
    bad = [line for line in said.splitlines() if line.startswith("Error") and line != UNKNOWN]
    dumped = subprocess.run(["dcmdump", "-q", str(path)], capture_output=True, text=True, check=False)
    tested = subprocess.run(["dcmftest", str(path)], capture_output=True, text=True, check=False)
    return [*bad, *dumped.stderr.splitlines(), *([tested.stdout] if not tested.stdout.startswith("yes") else [])]
