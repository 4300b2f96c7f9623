"""What may be seen outside: the final model folder that export, evaluation and the report read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.base.checkpoint import save_tensors
from shared.base.files import write_json
from shared.base.options import plain
from shared.base.owners import digest
from shared.base.vocabulary import Weights
from shared.plan.config import Config


def release(folder: Path, config: Config, weights: Weights, provenance: Mapping[str, Any]) -> Path:
    """Write `folder`/weights.safetensors and model.json: the averaged weights, and what they are."""
    save_tensors(folder / "weights.safetensors", weights)
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
    write_json(folder / "model.json", model, sort_keys=True)
    return folder
