"""The coordinator's own look at the model, on its own cohort: PSNR of each hidden target, and a mosaic of one slice.

Never a site's images. The picture and the numbers use the one-evaluation sampler `mean`, so they cost seconds; of a
method that can't take it (parameterisation=eps) they are one sample of `multistep`, which is no mean: some dB lower.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from server.journal.facts import RoundFacts
from shared.base.disk.tensors import load
from shared.base.files import writing
from shared.base.records import Batch
from shared.base.vocabulary import Modality, Weights
from shared.clinical.attach import attach_own
from shared.data.cohort import Cohort, cache_folder
from shared.data.slices import Slices
from shared.diffusion.samplers import Sampler
from shared.methods import Method, ReadsChart
from shared.methods.threads import threads
from shared.plan.config import Config
from shared.plan.training import ALL_THREADS, find_device

BATCH = 16
MEAN, SAMPLE = Sampler(kind="mean"), Sampler(kind="multistep", steps=8)


class Validator:
    def __init__(
        self,
        method: Method,
        batch: Batch,
        judged_BM2: torch.Tensor,  # gain and offset to the scale that each image is judged on
        device: torch.device,
        mosaics: Path,
        seed: int,
    ) -> None:
        self._method, self._batch, self._judged_BM2 = method, batch, judged_BM2
        self._device, self._mosaics = device, mosaics
        self._net = method.build(seed).to(device)
        attach_own(self._net, method)

    @staticmethod
    def find(config: Config, folder: Path) -> "Validator | None":
        """None where the coordinator has no complete subject of its own, or wants no validation."""
        if config.world is None or not config.validation.every:
            return None
        bids = Path(config.world) / "coordinator"
        method = config.build_method()
        if not (cache_folder(bids, config.grid) / "cohort.json").exists():
            return None
        cohort = Cohort.open(cache_folder(bids, config.grid))
        slices = Slices(cohort, method.modalities, split=None, slab=method.slab)
        if len(slices) == 0:
            return None
        every = max(1, len(slices) // config.validation.slices)
        batch = slices.batch(range(every // 2, len(slices), every))
        device = find_device(config.device)
        places = {slices.number(i): slices.judged(i) for i in range(len(slices.subjects))}
        judged_BM2 = torch.stack([places[number] for number in batch.subject_B.tolist()])
        return Validator(method, batch, judged_BM2, device, folder / "mosaics", config.seed)

    def validate(self, weights: Weights, step: int) -> dict[str, float | None]:
        """`psnr/<target>` in the brain, each target from all the others; writes mosaics/<step>.png."""
        load(self._net, weights)
        self._net.eval()
        with threads(ALL_THREADS):
            filled = {m: self._fill(self._method.modalities.index(m)) for m in self._method.targets}
        self._draw(filled, step)
        return {f"psnr/{m}": self._psnr(made, self._method.modalities.index(m)) for m, made in filled.items()}

    def _fill(self, target: int) -> torch.Tensor:
        """The target's slices from every other modality that is there."""
        shown_BM = self._batch.exists_BM.clone()
        shown_BM[:, target] = False
        usable_B = shown_BM.any(dim=1)
        out = torch.full_like(self._middle[:, target], torch.nan)
        generator = torch.Generator(device=self._device).manual_seed(0)
        for rows in torch.split(torch.nonzero(usable_B).flatten(), BATCH):
            images, shown = self._batch.images_BMHW[rows].to(self._device), shown_BM[rows].to(self._device)
            made = self._synthesize(images, shown, rows.tolist(), generator, target)
            out[rows] = middle(made)[:, target].float().cpu()
        return out

    def _synthesize(
        self, images: torch.Tensor, shown: torch.Tensor, rows: list[int], generator: torch.Generator, target: int
    ) -> torch.Tensor:
        sampler = MEAN if MEAN.kind in self._method.samplers else SAMPLE
        if not isinstance(self._method, ReadsChart):
            return self._method.synthesize(self._net, images, shown, sampler, generator)
        return self._method.synthesize(
            self._net,
            images,
            shown,
            sampler,
            generator,
            clinical=[self._batch.clinical[row] for row in rows],
            wanted=[self._method.modalities[target]],
        )

    @property
    def _middle(self) -> torch.Tensor:
        return middle(self._batch.images_BMHW)

    def _psnr(self, made_BHW: torch.Tensor, target: int) -> float | None:
        from shared.model import metrics

        brain_BHW = (self._middle > 0).any(dim=1)
        values = []
        for b, line_2 in enumerate(self._judged_BM2[:, target]):
            if self._batch.exists_BM[b, target] and brain_BHW[b].any() and not made_BHW[b].isnan().any():
                made, true = (metrics.as_judged(x, line_2) for x in (made_BHW[b], self._middle[b, target]))
                values.append(metrics.psnr(made, true, brain_BHW[b]))
        return float(np.mean(values)) if values else None

    def _draw(self, filled: dict[Modality, torch.Tensor], step: int) -> None:
        from shared.base import pictures  # draws with libraries that a run without validation need not load

        b = len(self._middle) // 2
        truth = [self._middle[b, self._method.modalities.index(m)].numpy()[::-1] for m in filled]
        made = [values[b].nan_to_num().numpy()[::-1] for values in filled.values()]
        picture = pictures.mosaic(
            [truth, made], ["truth", "filled in"], list(filled), "each modality from all the others"
        )
        with writing(self._mosaics / f"{step:06d}.png") as file:
            picture.save(file, format="PNG")


def middle(images: torch.Tensor) -> torch.Tensor:
    """The slice in the middle of each slab; slices as they are (BMHW)."""
    return images[:, :, images.shape[2] // 2] if images.ndim == 5 else images


def worse(
    validation: Mapping[str, float | None] | None, history: Sequence[RoundFacts], gate: float | None
) -> str | None:
    """How a round made the model so much worse than its best that it is not taken; None where it did not."""
    now = _mean_psnr(validation)
    if gate is None or now is None:
        return None
    past = [score for one in history if (score := _mean_psnr(one.validation)) is not None]
    if not past or now >= max(past) - gate:
        return None
    return f"{now:.2f} dB on the coordinator's own cohort, {max(past):.2f} before; validation.gate={gate:g}"


def _mean_psnr(validation: Mapping[str, float | None] | None) -> float | None:
    """Over the targets."""
    found = [value for name, value in (validation or {}).items() if name.startswith("psnr/") and value is not None]
    return sum(found) / len(found) if found else None
