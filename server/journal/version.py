"""Which code a run was made with."""

import subprocess
from importlib.metadata import version
from pathlib import Path


def code_version() -> str:
    """The package version, and the commit where the code is a checkout and git is there: in an image neither is."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return version("lacuna")
    return f"{version('lacuna')}+{described.stdout.strip()}" if described.returncode == 0 else version("lacuna")
