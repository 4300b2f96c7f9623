"""LDM by concatenation: ACADiff without what is new in it (docs/methods/baselines.md).

The same autoencoders and the same U-Net; the sources' latents stand side by side, 0 where there is none, with their
presence maps. No fusion, no text, no consistency.
"""

from dataclasses import dataclass

from shared.methods.aca_diff import AcaDiff
from shared.methods.nets.generator import Fused


@dataclass(frozen=True, slots=True, kw_only=True)
class Ldm(AcaDiff):
    text: str = "none"
    fusion: Fused = "concat"
    consistency: float = 0.0
