"""AMM-Diff: any shown modalities in, all modalities out (Kebaili et al.; docs/methods/amm_diff.md).

Phase `pretext` teaches the encoder (IFFN) to see the complete subject in a patch-masked one; phase `translate` trains
encoder and diffusion U-Net end to end, reconstructing every existing modality from a random shown subset. With
an `anchor` a phase of sums comes first, which the sites pool exactly: what is hidden, as a mixture of tissues (or a
linear regression) tells it. The network then sees that and predicts around it; of the mixture it also moves the shares
of the tissues, by what it sees around a pixel.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.base.errors import ConfigError, DataError
from shared.base.options import require
from shared.base.randomness import Noise, normal
from shared.base.records import Batch, Cut, Losses, Owners, Phase
from shared.base.vocabulary import SHARED, Owner, source, target
from shared.data.missing import random_shown
from shared.diffusion.gaussian import SCHEDULES, Schedule
from shared.diffusion.samplers import Guess, Kind, Sampler, draw, from_noise
from shared.methods.anchors.mixture import CELLS as TISSUES
from shared.methods.anchors.mixture import COMPONENTS, ITERATIONS, Mixture, Told
from shared.methods.anchors.ridge import CELLS as PAIRS
from shared.methods.anchors.ridge import PatchRidge
from shared.methods.contract import Method, Network
from shared.methods.nets.iffn import IFFN, IffnShape, PlainEncoder, Predictor
from shared.methods.nets.precision import autocast
from shared.methods.nets.spectral import brain, spectral
from shared.methods.nets.unet import UNet, UNetShape

SIZES: Mapping[str, tuple[IffnShape, UNetShape]] = {
    "tiny": (
        IffnShape(width=8, out=8, depth=(0, 1, 1, 1), levels=4),
        UNetShape(base=16, mult=(1, 2), blocks=1, attention=1, patch=2),
    ),
    "small": (
        IffnShape(width=16, out=16, depth=(0, 1, 1, 1), levels=8),
        UNetShape(base=32, mult=(1, 2, 2), blocks=1, attention=1, patch=2),
    ),
    "paper": (IffnShape(width=64, out=32), UNetShape(base=128, mult=(1, 1, 2, 3, 4), blocks=2, attention=2)),
}
SPREAD = 5.0  # what brings the mixture's standard deviations to about 1
LEAST_ERROR = 0.05  # of an anchor, on the scale of [-1, 1]: also of what is shown
ENCODERS: Mapping[str, type[IFFN] | type[PlainEncoder]] = {"iffn": IFFN, "unet": PlainEncoder}


@dataclass(frozen=True, slots=True, kw_only=True)
class AmmDiff(Method):
    encoder: Literal["iffn", "unet"] = "iffn"
    pretext: bool = True
    anchor: Literal["none", "ridge", "mixture"] = "none"
    parameterisation: Literal["eps", "v"] = "v"  # eps is the paper's
    schedule: Literal["linear", "cosine"] = "linear"
    times: int = 1000
    noisiest: float = 0.0  # share of samples at the last time, which the sampler `mean` reads; the others are uniform
    outside: float = 1.0  # weight of pixels outside the brain
    shown: float = 1.0  # weight of modalities that are shown
    mask_patch: int = 16  # pretext: side of the masked patches, in pixels
    mask_ratio: float = 0.6  # pretext: part of the patches that are masked, in each modality for itself
    drop: float = 0.3  # pretext: chance to lose whole modalities besides
    ridge_patch: int = 3
    ridge_strength: float = 0.1
    ridge_error: float = 0.2  # the anchor's usual error, on the scale of [-1, 1]
    components: int = COMPONENTS  # kinds of tissue in the mixture
    iterations: int = ITERATIONS  # rounds in which it is fitted
    checkpoint: bool = False  # less memory, more time

    def __post_init__(self) -> None:
        Method.__post_init__(self)
        require(len(self.modalities) >= 2, "modalities", self.modalities, "at least two")
        require(self.times >= 2, "times", self.times, "2 or more")
        for key in ("noisiest", "outside", "shown", "mask_ratio", "drop"):
            require(0 <= getattr(self, key) <= 1, key, getattr(self, key), "in [0, 1]")
        require(self.mask_patch >= 1, "mask_patch", self.mask_patch, "1 or more")
        require(self.ridge_patch % 2 == 1, "ridge_patch", self.ridge_patch, "odd")
        require(self.ridge_strength > 0, "ridge_strength", self.ridge_strength, "above 0")
        require(self.ridge_error > 0, "ridge_error", self.ridge_error, "above 0")
        require(self.components >= 1, "components", self.components, "1 or more")
        require(self.iterations >= 1, "iterations", self.iterations, "1 or more")

    @property
    def samplers(self) -> tuple[Kind, ...]:
        return from_noise(self.parameterisation)

    @property
    def phases(self) -> tuple[Phase, ...]:
        rounds = 1 + self.iterations if self.anchor == "mixture" else 1  # the first finds where to begin
        cells = TISSUES if self.anchor == "mixture" else PAIRS
        anchor = [Phase(name="anchor", kind="sums", rounds=rounds, cells=cells)] if self.anchor != "none" else []
        pretext = [Phase(name="pretext", collapse=("feature_std", 0.1))] if self.pretext else []
        return (*anchor, *pretext, Phase(name="translate"))

    def network(self) -> "AmmDiffNet":
        return AmmDiffNet(self)

    # --- who owns what -------------------------------------------------------------------------------------------

    def owners(self, net: nn.Module, phase: str) -> Owners:
        """Input slices belong to what they see, output rows and the inputs about a target to the target."""
        assert isinstance(net, AmmDiffNet)
        trained = {"anchor": (), "pretext": ("encoder.", "predictor."), "translate": ("encoder.", "unet.")}[phase]
        owners: dict[str, Owner | Cut] = {
            name: SHARED for name, _ in net.named_parameters() if name.startswith(tuple(trained))
        }
        if phase == "anchor":
            return owners
        for name, seen in net.encoder.sources(self.modalities).items():
            if self.anchor == "none" or name == IFFN.EDGES:  # an anchor fills the images in: they are there for all
                owners[f"encoder.{name}"] = Cut(dim=1, owners=tuple(map(source, seen)))
        if phase == "translate":
            area = net.unet.shape.patch**2  # space to depth keeps a channel's pixels together
            targets = [target(m) for m in self.modalities]
            if self.anchor == "none":  # an anchor is there for every sample, and stands in for what has no truth
                stem = [owner for owner in (*targets, *targets) for _ in range(area)]
                owners["unet.stem.weight"] = Cut(dim=1, owners=(*stem, *[SHARED] * net.map_channels))
            rows = tuple(owner for owner in (*targets, *[SHARED] * net.tissues) for _ in range(area))
            owners["unet.out.weight"] = Cut(dim=0, owners=rows)
            owners["unet.out.bias"] = Cut(dim=0, owners=rows)
        return owners

    # --- training ------------------------------------------------------------------------------------------------

    def loss(self, net: nn.Module, batch: Batch, phase: str, generator: torch.Generator) -> Losses:
        assert isinstance(net, AmmDiffNet)
        _check_size(batch.images_BMHW, net)
        if phase == "pretext":
            return self._pretext(net, batch, generator)
        return self._translate(net, batch, generator)

    def _pretext(self, net: "AmmDiffNet", batch: Batch, generator: torch.Generator) -> Losses:
        """1 - cos(predictor(map of the masked), map of the complete), position by position; the second is fixed."""
        assert net.predictor is not None
        complete_BM = batch.shown_BM
        images_BMHW = _shown(batch.images_BMHW, complete_BM)
        edges_BMHW = spectral(images_BMHW, complete_BM)  # masked below, not made anew: a patch's border is no edge
        kept_BM = torch.where(
            (_uniform((len(complete_BM), 1), complete_BM.device, generator) < self.drop),
            random_shown(complete_BM, generator, proper=True),
            complete_BM,
        )
        open_BMHW = self._open_patches(images_BMHW, generator)
        edges_open_BMHW = kept_BM[:, :, None, None] & open_BMHW
        with autocast(images_BMHW.device, self.precision):
            seen = torch.where(open_BMHW, net.filled(_shown(images_BMHW, kept_BM), kept_BM), 0.0)
            guess_BCHW = net.predictor(
                net.encoder(seen, torch.where(edges_open_BMHW, edges_BMHW, 0.0), kept_BM)
            ).float()
            with torch.no_grad():
                fixed_BCHW = net.encoder(net.filled(images_BMHW, complete_BM), edges_BMHW, complete_BM).float()
        spread = fixed_BCHW.std(dim=(0, 2, 3)).mean()  # goes to 0 when all maps become one: the trivial solution
        return Losses(
            loss_B=1 - F.cosine_similarity(guess_BCHW, fixed_BCHW, dim=1).mean(dim=(1, 2)),
            gave=self._gave(complete_BM.any(1), kept_BM),
            watch={"feature_std": spread.item()},
        )

    def _open_patches(self, images_BMHW: Tensor, generator: torch.Generator) -> Tensor:
        """Draw which patches stay visible (True): as many in every image."""
        B, M, H, W = images_BMHW.shape
        rows, columns = -(-H // self.mask_patch), -(-W // self.mask_patch)
        noise = _uniform((B, M, rows * columns), images_BMHW.device, generator)
        masked = min(round(self.mask_ratio * rows * columns), rows * columns - 1)  # one patch at least is left
        open_ = noise.argsort(-1).argsort(-1) >= masked
        grid = open_.reshape(B, M, rows, columns)
        for axis in (2, 3):
            grid = grid.repeat_interleave(self.mask_patch, dim=axis)
        return grid[:, :, :H, :W]

    def _translate(self, net: "AmmDiffNet", batch: Batch, generator: torch.Generator) -> Losses:
        """Mean over the existing modalities and pixels of the network's squared error, for every sample alone."""
        device, exists_BM = batch.images_BMHW.device, batch.exists_BM
        shown_BM = random_shown(batch.shown_BM, generator, proper=self.anchor != "none")
        x0 = 2 * _shown(batch.images_BMHW, exists_BM) - 1
        with autocast(device, self.precision):
            condition = net.condition(batch.images_BMHW, shown_BM)
        if condition.anchor is not None:  # stands in for what has no truth, as it does at the start of a synthesis
            x0 = torch.where(exists_BM[:, :, None, None], x0, condition.anchor)
        t_B = self._times(len(x0), device, generator)
        eps = torch.randn(x0.shape, generator=generator, device=device)
        x_t = self._schedule.noised(x0, t_B, eps)
        with autocast(device, self.precision):
            raw, told = self._raw(net, x_t, t_B, condition, exists_BM)
        wanted = self._wanted(x_t, t_B, x0, eps, told)
        weight_BM = torch.where(shown_BM, self.shown, 1.0) * exists_BM
        error = torch.where(weight_BM[:, :, None, None] > 0, (raw - wanted).square(), 0.0)
        weight = torch.where(brain(batch.images_BMHW, exists_BM), 1.0, self.outside) * weight_BM[:, :, None, None]
        return Losses(
            loss_B=(error * weight).sum(dim=(1, 2, 3)) / weight.sum(dim=(1, 2, 3)).clamp(min=1e-6),
            gave={
                **self._gave((weight_BM > 0).any(1), shown_BM),
                **{target(m): weight_BM[:, i] > 0 for i, m in enumerate(self.modalities)},
            },
        )

    def _times(self, n: int, device: torch.device, generator: torch.Generator) -> Tensor:
        t_B = torch.randint(self.times, (n,), generator=generator, device=device)
        last = _uniform((n,), device, generator) < self.noisiest
        return torch.where(last, self.times - 1, t_B)

    def _gave(self, any_B: Tensor, shown_BM: Tensor) -> dict[Owner, Tensor]:
        return {SHARED: any_B, **{source(m): shown_BM[:, i] for i, m in enumerate(self.modalities)}}

    # --- what the network's output means -------------------------------------------------------------------------

    @property
    def _schedule(self) -> Schedule:
        return SCHEDULES[self.schedule](self.times)

    def _prior(self, x_t: Tensor, t_B: Tensor, told: "Condition") -> tuple[Tensor, Tensor]:
        """Mean and sd of x0 given x_t before the network has looked: x0 ~ N(0, 1), or N(anchor, error^2).

        The network speaks in that sd, or where the mixture tells `error` pixel by pixel, in what it would be for the
        usual error: an error of x0 is then as bad wherever it is.
        """
        mean, sd = self._schedule.given(x_t, t_B, 0.0 if told.anchor is None else told.anchor, told.error)
        return mean, sd if told.mixture is None else sd * (self.ridge_error / told.error)

    def _raw(
        self, net: "AmmDiffNet", x_t: Tensor, t_B: Tensor, condition: "Condition", exists_BM: Tensor
    ) -> tuple[Tensor, "Condition"]:
        """What the network says, and the condition once it had its say in the anchor.

        `eps` hears x_t itself; `v` hears the prior's mean, in which noise fades as it stops telling anything.
        """
        M = len(self.modalities)
        heard = x_t if self.parameterisation == "eps" else self._prior(x_t, t_B, condition)[0]
        out: Tensor = net(heard, t_B, condition.map, exists_BM, condition.told).float()
        if net.tissues == 0 or condition.mixture is None:
            return out, condition
        moved = 2 * condition.mixture.weighed(out[:, M:]) - 1
        return out[:, :M], dataclasses.replace(condition, anchor=moved)

    def _wanted(self, x_t: Tensor, t_B: Tensor, x0: Tensor, eps: Tensor, told: "Condition") -> Tensor:
        """eps; or what is left of x0, in the prior's sd. With x0 ~ N(0, 1) that is v: (alpha x_t - x0) / sigma."""
        if self.parameterisation == "eps":
            return eps
        mean, sd = self._prior(x_t, t_B, told)
        return (mean - x0) / sd

    def _guess(self, x_t: Tensor, t_B: Tensor, raw: Tensor, told: "Condition") -> Guess:
        if self.parameterisation == "eps":
            return Guess(self._schedule.x0_from_eps(x_t, t_B, raw), raw)
        mean, sd = self._prior(x_t, t_B, told)
        x0 = mean - sd * raw
        return Guess(x0, self._schedule.eps_from_x0(x_t, t_B, x0))

    # --- sums and synthesis --------------------------------------------------------------------------------------

    def sums(self, net: nn.Module, batch: Batch, phase: str) -> Mapping[str, Tensor]:
        assert isinstance(net, AmmDiffNet)
        assert net.anchor is not None
        return net.anchor.sums(batch)

    def settle(self, net: nn.Module, phase: str, sums: Mapping[str, Tensor]) -> None:
        assert isinstance(net, AmmDiffNet)
        assert net.anchor is not None
        net.anchor.settle(sums)

    @torch.no_grad()
    def synthesize(
        self, net: nn.Module, images_BMHW: Tensor, shown_BM: Tensor, sampler: Sampler, generator: Noise
    ) -> Tensor:
        """Make all modalities, the shown ones too; nothing shown is ever pasted in."""
        assert isinstance(net, AmmDiffNet)
        _check_size(images_BMHW, net)
        if not bool(shown_BM.any(1).all()):
            raise DataError("nothing to synthesize from: an image with no shown modality")
        everything_BM = torch.ones_like(shown_BM)
        with autocast(images_BMHW.device, self.precision):
            condition = net.condition(images_BMHW, shown_BM)

        def denoise(x_t: Tensor, t: int) -> Guess:
            t_B = torch.full((len(x_t),), t, device=x_t.device)
            with autocast(x_t.device, self.precision):
                raw, told = self._raw(net, x_t, t_B, condition, everything_BM)
            return self._guess(x_t, t_B, raw, told)

        noise = normal(images_BMHW.float(), generator)
        x0 = draw(denoise, self._schedule, noise, sampler, generator, self.samplers)
        return (x0.clamp(-1, 1) + 1) / 2


@dataclass(frozen=True, slots=True)
class Condition:
    """All that the denoiser is told about the shown images; made once per image."""

    map: Tensor  # the unified map
    anchor: Tensor | None = None  # on the scale of x_0, [-1, 1]
    error: Tensor | float = 1.0  # how far x_0 usually is from it, or from 0; the mixture tells it of every pixel
    told: Tensor | None = None  # all of the anchor that the network sees
    mixture: Told | None = None


class AmmDiffNet(Network):
    def __init__(self, options: AmmDiff) -> None:
        super().__init__()
        M = len(options.modalities)
        iffn, shape = SIZES[options.size]
        shape = dataclasses.replace(shape, checkpoint=options.checkpoint)
        self.encoder: IFFN | PlainEncoder = ENCODERS[options.encoder](M, iffn, patch=shape.patch)
        self.predictor = Predictor(iffn.out) if options.pretext else None
        self.error = options.ridge_error
        self.anchor: PatchRidge | Mixture | None = None
        self.tissues = 0  # kinds that the network has a say in
        beside = M  # channels beside x: which modalities have a truth, or what the anchor tells
        if options.anchor == "ridge":
            self.anchor = PatchRidge(M, patch=options.ridge_patch, strength=options.ridge_strength)
            beside = 2 * M
        elif options.anchor == "mixture":
            self.anchor = Mixture(M, options.components)
            self.tissues = options.components if options.parameterisation == "v" else 0
            beside = 3 * M + options.components
        self.map_channels, self.told_channels = iffn.out, beside if self.anchor is not None else 0
        self.unet = UNet(M + beside, M + self.tissues, shape, context=self.map_channels)
        self.multiple = max(self.encoder.multiple, shape.multiple)  # of the images' height and width

    def condition(self, images_BMHW: Tensor, shown_BM: Tensor) -> Condition:
        images_BMHW = _shown(images_BMHW, shown_BM)
        mixture = self.anchor.tell(images_BMHW, shown_BM) if isinstance(self.anchor, Mixture) else None
        filled_BMHW = self.filled(images_BMHW, shown_BM) if mixture is None else mixture.mean_BMHW
        map_BCHW = self.encoder(filled_BMHW, spectral(images_BMHW, shown_BM), shown_BM)
        if self.anchor is None:
            return Condition(map=map_BCHW)
        anchor = 2 * filled_BMHW - 1
        told = [anchor, shown_BM[:, :, None, None].to(anchor.dtype).expand_as(anchor)]
        error: Tensor | float = self.error
        if mixture is not None:
            told += [SPREAD * mixture.sd_BMHW, mixture.share_BKHW]
            error = (2 * mixture.sd_BMHW).clamp(min=LEAST_ERROR)
        return Condition(map=map_BCHW, anchor=anchor, error=error, told=torch.cat(told, 1), mixture=mixture)

    def filled(self, images_BMHW: Tensor, shown_BM: Tensor) -> Tensor:
        """What is hidden as the anchor tells it; without one, blank."""
        return images_BMHW if self.anchor is None else self.anchor(images_BMHW, shown_BM)

    def forward(
        self, x_BMHW: Tensor, t_B: Tensor, map_BCHW: Tensor, exists_BM: Tensor, told_BCHW: Tensor | None = None
    ) -> Tensor:
        """The denoiser: what is exported. Without an anchor, a modality that has no ground truth is blank."""
        if told_BCHW is None:
            exists_BM11 = exists_BM[:, :, None, None]
            x_BMHW = torch.where(exists_BM11, x_BMHW, 0.0)
            told_BCHW = exists_BM11.to(x_BMHW.dtype).expand_as(x_BMHW)
        out: Tensor = self.unet(torch.cat([x_BMHW, told_BCHW], dim=1), t_B, map_BCHW)
        return out

    def example(self, batch: int, height: int, width: int) -> tuple[Tensor, ...]:
        """Inputs that `forward` takes, for exporters."""
        patch = self.unet.shape.patch
        M = self.unet.out.out_channels // patch**2 - self.tissues
        inputs = (
            torch.zeros(batch, M, height, width),
            torch.zeros(batch, dtype=torch.long),
            torch.zeros(batch, self.map_channels, height // patch, width // patch),
            torch.ones(batch, M, dtype=torch.bool),
        )
        return inputs if self.anchor is None else (*inputs, torch.zeros(batch, self.told_channels, height, width))


def _shown(images_BMHW: Tensor, shown_BM: Tensor) -> Tensor:
    return torch.where(shown_BM[:, :, None, None], images_BMHW.float(), 0.0)


def _uniform(shape: tuple[int, ...] | torch.Size, device: torch.device, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=device)


def _check_size(images_BMHW: Tensor, net: AmmDiffNet) -> None:
    height, width = images_BMHW.shape[-2:]
    if height % net.multiple or width % net.multiple:
        raise ConfigError(f"grid={height}x{width}: this network needs multiples of {net.multiple}")
