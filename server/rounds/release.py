"""What may be seen outside: the final model folder that export, evaluation and the report read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from shared.base.checkpoint import write_text
from shared.base.options import plain
from shared.base.owners import digest
from shared.base.vocabulary import Weights
from shared.plan.config import Config


def release(folder: Path, config: Config, weights: Weights, provenance: Mapping[str, Any]) -> Path:
    """Write `folder`/weights.safetensors and model.json: the averaged weights, and what they are."""
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
