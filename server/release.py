"""What may be seen outside: the final model folder that export, evaluation and the report read."""

import json
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from shared.checkpoint import write_text
from shared.config import Config
from shared.options import plain
from shared.owners import digest
from shared.vocabulary import Weights


def release(folder: Path, config: Config, weights: Weights, provenance: Mapping[str, Any]) -> Path:
    """`folder`/weights.safetensors and model.json: the averaged weights and what they are."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / ".weights.partial"
    save_file({name: value.contiguous() for name, value in weights.items()}, partial)
    partial.replace(folder / "weights.safetensors")
    model = {
        "method": config.method.name,
        "options": plain(config.method.options),
        "modalities": list(config.build_method().modalities),
        "grid": plain(config.grid),
        "sampler": plain(config.sampler),
        "schema": config.for_sites().schema,
        "weights": digest(weights),
        "provenance": dict(provenance),
    }
    write_text(folder / "model.json", json.dumps(model, indent=1, sort_keys=True) + "\n")
    return folder


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
