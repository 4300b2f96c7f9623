"""Released models with random weights, as a finished run leaves them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from shared.base.options import build
from shared.methods import METHODS
from shared.model import bundle

AMM_TINY = {
    "modalities": ["T1", "T2", "FLAIR"],
    "size": "tiny",
    "pretext": False,
    "precision": "fp32",
    "times": 50,
}


def release(
    folder: Path,
    method: str,
    options: Mapping[str, Any],
    *,
    seed: int = 0,
    edge: int = 16,
    sampler: Mapping[str, Any] | None = None,
) -> Path:
    """runs/RUN/final with every weight random: a fresh network would answer nothing, whatever it is shown."""
    made = build(METHODS[method], options, "options")
    net = made.build(seed)
    noise = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=noise)
    folder.mkdir(parents=True)
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, folder / "weights.safetensors")
    record = {
        "method": method,
        "options": dict(options),
        "modalities": list(made.modalities),
        "grid": {"spacing_mm": None, "height": edge, "width": edge},
        "sampler": dict(sampler or {"kind": "mean"}),
        "schema": "0" * 64,
        "weights": "0" * 64,
        "provenance": {"run": "test", "rounds": {"fit": 3}, "sites": 3, "code": "test"},
    }
    (folder / "model.json").write_text(json.dumps(record))
    return folder


ANY_TINY = {"modalities": ["T1", "T2", "FLAIR"], "size": "tiny", "precision": "fp32", "times": 50}


def signed(folder: Path, final: Path) -> tuple[Path, Path]:
    """A bundle of a released model and the public key that it is trusted by; without the exported denoiser, which
    takes a minute to make and is never read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle, "export_denoiser", lambda model, folder: {})
        bundle.make_signing_key(folder / "key")
        return bundle.export(final, folder / "bundle", key=folder / "key"), bundle.public_path(folder / "key")
