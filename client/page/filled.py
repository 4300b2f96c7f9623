"""What was filled in for a subject, as its sidecars tell it (client/inference/outputs.py wrote them)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.inference.outputs import Files
from shared.base.files import read_bounded
from shared.base.vocabulary import Modality
from shared.data.modalities import MODALITIES


@dataclass(frozen=True, slots=True, kw_only=True)
class Synthetic:
    """One volume that no scanner made."""

    modality: Modality
    mean: Path
    sd: Path | None
    sidecar: Mapping[str, Any]

    @property
    def unusual(self) -> str:
        """What the guard remarked of the images that it was made from."""
        guard = self.sidecar.get("Guard")
        return str(guard.get("Meaning") or "") if isinstance(guard, dict) else ""

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What a reader asks first."""
        said, bundle = self.sidecar, self.sidecar.get("Bundle", {})
        inputs = said.get("Inputs", {})
        sampler = said.get("Sampler", {})
        return [
            ("made from", ", ".join(map(str, inputs)) if isinstance(inputs, dict) else ""),
            (
                "model",
                f"{said.get('Model', '')}, run {bundle.get('Run') or '?'}, bundle {str(bundle.get('SHA256'))[:12]}",
            ),
            (
                "sampler",
                f"{sampler.get('kind', '?')}, samples: {said.get('Samples', '?')}, seed {said.get('Seed', '?')}",
            ),
            ("uncertainty", str(said.get("Uncertainty") or "none: one answer has no spread")),
            ("privacy", str(said.get("Privacy", ""))),
        ]


def found(out: Path, subject: str, modalities: Sequence[Modality] = tuple(MODALITIES)) -> dict[Modality, Synthetic]:
    """Every synthetic volume of a subject whose sidecar is there."""
    made: dict[Modality, Synthetic] = {}
    if not (out / subject).is_dir():
        return made
    for modality in modalities:
        files = Files(out, subject, modality)
        if not files.sidecar.is_file() or not files.mean.is_file():
            continue
        try:
            sidecar = json.loads(read_bounded(files.sidecar, "sidecar"))
        except ValueError:
            continue  # half of another program's; what we write is whole
        if isinstance(sidecar, dict):
            sd = files.sd if files.sd.is_file() else None
            made[modality] = Synthetic(modality=modality, mean=files.mean, sd=sd, sidecar=sidecar)
    return made
