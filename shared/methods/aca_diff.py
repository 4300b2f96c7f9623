"""ACADiff: one generator for each modality, in the latents of volumes, that reads the chart (docs/methods/aca_diff.md).

Its volumes are registered brains, so what it sees of one is how it differs from the mean of all at each place, inside
the brain and 0 outside; and what it makes of one is how it differs from what a linear regression says of it. In
training mean and regression are those of all other subjects. `template` pools the mean and `relate` the covariances.
Then three kinds of federation in one run. `autoencode` teaches every modality a 3D autoencoder of both, among the sites
that hold it; then they are frozen. `standardise` pools the means and squares of both kinds of latents, so that all
sites agree on their scales. `generate_X` teaches the generator of modality X: a U-Net over
X's noisy latent and the fused latents of what is shown, which attends to clinical tokens that are made at the site. A
generator's fusion has a path for every source alone and one for several together; a site trains those that its
subjects take.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from shared.base.errors import ConfigError, DataError
from shared.base.options import require
from shared.base.randomness import Noise, normal
from shared.base.records import Batch, Losses, Owners, Phase
from shared.base.vocabulary import CHART, SHARED, TOGETHER, Modality, Owner, alone, beside, source
from shared.clinical import FIELDS, WIDTH, Chart, chart_of
from shared.data.bids import Clinical
from shared.data.missing import randomly_less
from shared.diffusion.gaussian import SCHEDULES, Schedule
from shared.diffusion.samplers import Denoiser, Guess, Kind, Sampler, draw, from_noise
from shared.methods.contract import ReadsChart
from shared.methods.nets.aca import SCALE_CELLS, SUBJECTS, AcaNet, only
from shared.methods.nets.anchor import MEAN_CELLS, RELATION_CELLS, LeftOut
from shared.methods.nets.autoencoder import AutoencoderShape
from shared.methods.nets.generator import TEXTS, Fused, Heard
from shared.methods.nets.precision import autocast_volumes
from shared.methods.nets.volumetric import VolumeShape

SIZES: Mapping[str, tuple[AutoencoderShape, VolumeShape]] = {
    "tiny": (AutoencoderShape(channels=(4, 4), blocks=1, latent=4), VolumeShape(base=8, mult=(1, 2), blocks=1)),
    "small": (  # voxels of 4 mm hold more of a brain than those of 1 mm: they are halved once, not three times
        AutoencoderShape(channels=(16,), blocks=1, latent=4, patch=2),
        VolumeShape(base=16, mult=(1, 2), blocks=1, patch=2),
    ),
    "paper": (
        AutoencoderShape(channels=(64, 128, 128, 128), blocks=2, latent=8),
        VolumeShape(base=128, mult=(1, 2, 4), blocks=2),
    ),
}
TEMPLATE, RELATE, AUTOENCODE, STANDARDISE, GENERATE = "template", "relate", "autoencode", "standardise", "generate_"
LATENT_LIMIT = 6.0  # of an estimate, in standard deviations: the first steps of a cosine chain divide by almost nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class AcaDiff(ReadsChart):
    modalities: tuple[Modality, ...] = ("T1", "FDG", "AV45")
    depth: int = 160  # slices of the volume that it sees; a subject of fewer is filled up with blank ones
    height: int = 180  # those of the run's grid
    width: int = 160
    # who turns the chart into tokens: builtin | hf_dir | openai_compatible | label_embedding | none
    text: str = "builtin"
    text_width: int = WIDTH  # numbers in a provider's token
    text_fingerprint: str = ""  # of the encoder that all sites must have; the coordinator's says which
    fields: tuple[str, ...] = FIELDS  # of the chart that may be read
    use_diagnosis: bool = True  # false: a classifier of the diagnosis may be trained on what is made
    anchor: Literal["half", "mean", "linear"] = "linear"  # what a volume is told from: one half everywhere, the mean
    # volume, or for what is made a regression on what is shown
    cube: int = 8  # voxels along the edges of the cubes in which covariances are pooled
    fusion: Fused = "adaptive"  # concat: the sources' latents as they are, side by side
    parameterisation: Literal["eps", "v"] = "v"  # eps is the paper's
    schedule: Literal["linear", "cosine"] = "cosine"
    times: int = 1000
    kl: float = 1e-6  # weight of the autoencoders' divergence beside the mean absolute error
    consistency: float = 0.1  # weight of the estimate's own error
    cons_weighting: Literal["minsnr", "paper"] = "minsnr"  # paper: unclipped, 4e8 at the last time
    drop: float = 0.5  # share of samples that are shown a random part of their sources
    drop_chart: float = 0.1  # share of samples that hear no text at all
    drop_field: float = 0.1  # chance of each field of the chart, in the others
    checkpoint: bool = False  # less memory, a third more time

    def __post_init__(self) -> None:
        ReadsChart.__post_init__(self)
        require(len(self.modalities) >= 2, "modalities", self.modalities, "at least two")
        require(self.depth >= 2, "depth", self.depth, "2 or more")
        for key in ("height", "width"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "1 or more")
        require(self.text in TEXTS, "text", self.text, f"one of {', '.join(TEXTS)}")
        require(self.text_width >= 4, "text_width", self.text_width, "4 or more")
        require(set(self.fields) <= set(FIELDS), "fields", self.fields, f"some of {', '.join(FIELDS)}")
        require(self.cube >= 1, "cube", self.cube, "1 or more")
        require(self.times >= 2, "times", self.times, "2 or more")
        for key in ("kl", "consistency"):
            require(getattr(self, key) >= 0, key, getattr(self, key), "0 or more")
        for key in ("drop", "drop_chart", "drop_field"):
            require(0 <= getattr(self, key) <= 1, key, getattr(self, key), "in [0, 1]")
        fits = self.cons_weighting != "paper" or self.parameterisation == "eps"
        require(fits, "parameterisation", self.parameterisation, "eps with cons_weighting=paper")

    @property
    def samplers(self) -> tuple[Kind, ...]:
        return from_noise(self.parameterisation)

    @property
    def slab(self) -> int:
        """It sees the whole volume at once."""
        return self.depth

    @property
    def reads(self) -> tuple[str, ...]:
        if self.text == "none":
            return ()
        return tuple(name for name in self.fields if self.use_diagnosis or name != "diagnosis")

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (
            *((Phase(name=TEMPLATE, kind="sums", cells=MEAN_CELLS | SUBJECTS),) if self.anchor != "half" else ()),
            *((Phase(name=RELATE, kind="sums", cells=RELATION_CELLS | SUBJECTS),) if self.anchor == "linear" else ()),
            Phase(name=AUTOENCODE),
            Phase(name=STANDARDISE, kind="sums", cells=SUBJECTS | SCALE_CELLS),
            *(Phase(name=GENERATE + m) for m in self.modalities),
        )

    def sources(self, made: Modality) -> tuple[Modality, ...]:
        return tuple(m for m in self.modalities if m != made)

    def lacks(self, held: Collection[Modality], phase: str) -> str | None:
        made = _target_of(phase)
        if made is None or not held:
            return ReadsChart.lacks(self, held, phase)
        if made not in held:
            return f"{made}, which is what is taught"
        return None if len(set(held) & set(self.modalities)) > 1 else f"a source beside {made}"

    def network(self) -> AcaNet:
        coder, unet = SIZES[self.size]
        return AcaNet(
            self.modalities,
            (self.depth, self.height, self.width),
            dataclasses.replace(coder, checkpoint=self.checkpoint),
            dataclasses.replace(unet, checkpoint=self.checkpoint),
            cube=self.cube,
            fusion=self.fusion,
            text=self.text,
            text_width=self.text_width,
        )

    def owners(self, net: nn.Module, phase: str) -> Owners:
        """An autoencoder is its modality's. Of a generator the paths are those of the sources that take them."""
        assert isinstance(net, AcaNet)
        if phase == AUTOENCODE:
            return {
                f"autoencoders.{m}.{name}": source(m)
                for m in self.modalities
                for name, _ in net.autoencoders[m].named_parameters()
            }
        made = _target_of(phase)
        if made is None:
            return {}
        generator = net.generator(made)
        owners = {name: generator.owner(name) for name, _ in generator.named_parameters()}
        return {f"generators.{made}.{name}": owner for name, owner in owners.items()}

    # --- training ------------------------------------------------------------------------------------------------

    def loss(self, net: nn.Module, batch: Batch, phase: str, generator: torch.Generator) -> Losses:
        assert isinstance(net, AcaNet)
        made = _target_of(phase)
        if made is None:
            return self._autoencode(net, batch, generator)
        return self._generate(net, batch, made, generator)

    def _autoencode(self, net: AcaNet, batch: Batch, generator: torch.Generator) -> Losses:
        """Mean absolute error and divergence of each volume that exists; a subject's volumes are added.

        A coder is taught both that it will code, each in half of the samples: what a modality tells, its difference
        from the mean, and what is made of it, its difference from what others tell.
        """
        left = self._left_out(net, batch)
        loss_B = torch.zeros(len(batch), device=batch.images_BMHW.device)
        for m, modality in enumerate(self.modalities):
            shown_BM = randomly_less(batch.exists_BM & ~only(m, batch.exists_BM), self.drop, generator)
            made_B1 = torch.rand((len(batch), 1), generator=generator, device=loss_B.device) < 0.5
            rows = batch.exists_BM[:, m].nonzero().flatten()
            x = net.padded(net.untold(left, m, shown_BM & made_B1)[rows, m][:, None])
            eps = torch.randn((len(batch), *net.latent_shape(x)), generator=generator, device=x.device)[rows]
            if not len(rows):
                continue
            with autocast_volumes(x.device, self.precision):
                again, mean, sd = net.coder(modality)(x, eps)
            mean, sd = mean.float(), sd.float()
            divergence = 0.5 * (mean**2 + sd**2 - 2 * sd.clamp(min=1e-8).log() - 1)
            total = (again.float() - x).abs().sum(dim=(1, 2, 3, 4)) + self.kl * divergence.sum(dim=(1, 2, 3, 4))
            # both are sums: a mean error beside a summed divergence would be all divergence
            loss_B = loss_B.index_add(0, rows, total / x[0].numel())
        return Losses(loss_B=loss_B, gave={source(m): batch.exists_BM[:, i] for i, m in enumerate(self.modalities)})

    def _generate(self, net: AcaNet, batch: Batch, made: Modality, generator: torch.Generator) -> Losses:
        """Squared error of the noise, or of v, and of the estimate that it makes; per sample, over latent voxels."""
        sources, exists_BM, device = self.sources(made), batch.exists_BM, batch.images_BMHW.device
        can_B = exists_BM[:, self.modalities.index(made)]
        exists_BS = torch.stack([exists_BM[:, self.modalities.index(m)] for m in sources], dim=1)
        shown_BS = randomly_less(exists_BS, self.drop, generator) & can_B[:, None]
        given_B = shown_BS.any(1)
        t_B = torch.randint(self.times, (len(batch),), generator=generator, device=device)

        k, at = self.modalities.index(made), [self.modalities.index(m) for m in sources]
        shown_BM = torch.zeros_like(exists_BM)
        shown_BM[:, at] = shown_BS
        left = self._left_out(net, batch)
        z_BSCDHW = net.latents(left.differences_BMDHW, shown_BM, self.precision, net.seen)[:, at]
        z0 = net.latents(net.untold(left, k, shown_BM), only(k, exists_BM), self.precision, net.made)[:, k]
        eps = torch.randn(z0.shape, generator=generator, device=device)
        charts = [chart_of(record, self.reads) for record in batch.clinical or [{}] * len(batch)]
        heard = self._heard(net, charts, made, shown_BS, generator)

        z_t = self._schedule.noised(z0, t_B, eps)
        with autocast_volumes(device, self.precision):
            raw = net.generator(made)(self._faded(z_t, t_B), z_BSCDHW, shown_BS, t_B, heard).float()
        alpha, sigma = self._schedule.scales(t_B, z_t)
        if self.parameterisation == "eps":
            error, estimate = (raw - eps).square(), ((z_t - sigma * raw) / alpha - z0).square()
        else:
            error = (raw - self._schedule.v_of(t_B, z0, eps)).square()
            estimate = (self._schedule.x0_from_v(z_t, t_B, raw) - z0).square()
        snr = (alpha / sigma).square()
        weight = snr.clamp(max=1.0) if self.cons_weighting == "minsnr" else torch.ones_like(snr)
        per_sample_B = (error + self.consistency * weight * estimate).mean(dim=(1, 2, 3, 4))
        many_B = shown_BS.sum(1) > 1
        gave: dict[Owner, Tensor] = {SHARED: given_B}
        for s, m in enumerate(sources):
            gave[source(m)] = shown_BS[:, s]
            if self.fusion == "adaptive":
                gave[alone(m)] = shown_BS[:, s] & ~many_B
                gave[beside(m)] = shown_BS[:, s] & many_B
        if self.fusion == "adaptive" and len(sources) > 1:
            gave[TOGETHER] = many_B
        if heard is not None:
            gave[CHART] = heard.held_BL.any(1) & given_B
        return Losses(loss_B=torch.where(given_B, per_sample_B, 0.0), gave=gave)

    def _heard(
        self,
        net: AcaNet,
        charts: Sequence[Chart],
        made: Modality,
        shown_BS: Tensor,
        generator: torch.Generator | None,
    ) -> Heard | None:
        """The prompts of a batch as tokens; with a generator, some of it goes unheard. None where there is no text."""
        if self.text == "none":
            return None
        sources, device = self.sources(made), shown_BS.device
        available = [tuple(m for m, shown in zip(sources, row, strict=True) if shown) for row in shown_BS.tolist()]
        tokens_BLD, held_BL = net.encoder.encode(charts, [made] * len(charts), available)
        held_BL = held_BL.to(device)
        if generator is not None:
            deaf_B = torch.rand(len(charts), generator=generator, device=device) < self.drop_chart
            kept_BL = torch.rand(held_BL.shape, generator=generator, device=device) >= self.drop_field
            kept_BL[:, : -len(FIELDS)] = True  # target and what is available are always known
            held_BL = held_BL & kept_BL & ~deaf_B[:, None]
        return Heard(tokens_BLD=tokens_BLD.to(device), held_BL=held_BL)

    def sums(self, net: nn.Module, batch: Batch, phase: str) -> Mapping[str, Tensor]:
        """Of each modality its subjects; and what volumes are told from, or how wide their latents are."""
        assert isinstance(net, AcaNet)
        subjects = {"subjects": batch.exists_BM.double().sum(0)}
        self._fits(batch.images_BMHW)
        if phase == TEMPLATE:
            return subjects | net.anchor.mean_sums(batch.images_BMHW, batch.exists_BM)
        if phase == RELATE:
            return subjects | net.anchor.relation_sums(batch.images_BMHW, batch.exists_BM)
        return subjects | net.scale_sums(self._left_out(net, batch), batch.exists_BM, self.precision)

    def settle(self, net: nn.Module, phase: str, sums: Mapping[str, Tensor]) -> None:
        """Write the agreed constants."""
        assert isinstance(net, AcaNet)
        if phase == TEMPLATE:
            net.anchor.settle_mean(sums, sums["subjects"] >= 0.5)  # sums may be noised
        elif phase == RELATE:
            net.anchor.settle_relation(sums)
        else:
            net.settle_scales(sums)

    # --- inference -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def synthesize(
        self,
        net: nn.Module,
        images_BMHW: Tensor,
        shown_BM: Tensor,
        sampler: Sampler,
        generator: Noise,
        *,
        clinical: Sequence[Clinical] = (),
        wanted: Collection[Modality] | None = None,
    ) -> Tensor:
        """Make what is not shown; the rest comes back as it is. `clinical`: one record for each volume, or none at all.

        `wanted`: what else is made, by default all; with the same noise whatever else is asked for.
        """
        assert isinstance(net, AcaNet)
        if not bool(shown_BM.any(1).all()):
            raise DataError("nothing to synthesize from: a subject with no shown modality")
        images = torch.where(shown_BM[:, :, None, None, None], images_BMHW.float(), 0.0)
        self._fits(images)
        volumes_BMDHW, brain_BDHW = net.anchor.differences(images, shown_BM)
        z_BMCDHW = net.latents(volumes_BMDHW, shown_BM, self.precision, net.seen)
        noise = {m: normal(z_BMCDHW[:, 0], generator) for m in self.modalities}
        alone = len(images) == 1 and images.device.type == "cpu"  # where convolutions of one volume are slow
        charts = [chart_of(record, self.reads) for record in clinical or [{}] * len(images)]
        for k, made in enumerate(self.modalities):
            rows = (~shown_BM[:, k]).nonzero().flatten()
            if not len(rows) or (wanted is not None and made not in wanted):
                continue
            at = [self.modalities.index(m) for m in self.sources(made)]
            denoise = self.denoiser(
                net,
                made,
                z_BMCDHW[rows][:, at],
                shown_BM[rows][:, at],
                [charts[i] for i in rows.tolist()],
                guidance=sampler.guidance,
            )
            own = generator if isinstance(generator, torch.Generator) else [generator[i] for i in rows.tolist()]
            unclipped = dataclasses.replace(sampler, clip=False)  # latents have limits of their own
            z0 = draw(denoise, self._schedule, noise[made][rows], unclipped, own, self.samplers)
            with autocast_volumes(images.device, self.precision):
                z = net.made.off(z0, k)
                volume = net.coder(made).decode(z.repeat(2, 1, 1, 1, 1) if alone else z)[: len(rows)].float()
            told_BDHW = net.anchor.expected(k, volumes_BMDHW[rows], shown_BM[rows])
            told_BDHW = told_BDHW + net.cropped(volume, images.shape[2:])[:, 0]
            made_BDHW = net.anchor.mean_MDHW[k] + told_BDHW / 2
            images[rows, k] = torch.where(brain_BDHW[rows], made_BDHW.clamp(0, 1), 0.0)
        return images

    def denoiser(
        self,
        net: nn.Module,
        made: Modality,
        z_BSCDHW: Tensor,
        shown_BS: Tensor,
        charts: Sequence[Chart],
        *,
        guidance: float = 1.0,
    ) -> Denoiser:
        """The generator that knows its sources and the chart; guided away from what it would say without the chart."""
        assert isinstance(net, AcaNet)
        generator = net.generator(made)
        heard = self._heard(net, charts, made, shown_BS, None)
        deaf = None if heard is None else Heard(tokens_BLD=heard.tokens_BLD, held_BL=torch.zeros_like(heard.held_BL))

        def said(z_BCDHW: Tensor, t_B: Tensor, text: Heard | None) -> Tensor:
            if len(z_BCDHW) > 1 or z_BCDHW.device.type != "cpu":
                out: Tensor = generator(z_BCDHW, z_BSCDHW, shown_BS, t_B, text)
            else:
                twice = [torch.cat([x, x]) for x in (z_BCDHW, z_BSCDHW, shown_BS, t_B)]  # a CPU is slow with one
                both = None if text is None else Heard(*(torch.cat([x, x]) for x in text))
                out = generator(*twice, both)[:1]
            return out.float()

        def denoise(z_BCDHW: Tensor, t: int) -> Guess:
            t_B = torch.full((len(z_BCDHW),), t, dtype=torch.long, device=z_BCDHW.device)
            seen_BCDHW = self._faded(z_BCDHW.float(), t_B)
            with autocast_volumes(z_BCDHW.device, self.precision):
                raw = said(seen_BCDHW, t_B, heard)
                if guidance != 1 and heard is not None:
                    without = said(seen_BCDHW, t_B, deaf)
                    raw = without + guidance * (raw - without)
            of = self._schedule.x0_from_eps if self.parameterisation == "eps" else self._schedule.x0_from_v
            x0 = of(z_BCDHW, t_B, raw).clamp(-LATENT_LIMIT, LATENT_LIMIT)
            return Guess(x0, self._schedule.eps_from_x0(z_BCDHW, t_B, x0))

        return denoise

    # --- both ----------------------------------------------------------------------------------------------------

    def _left_out(self, net: AcaNet, batch: Batch) -> LeftOut:
        """Subjects that are trained on, told from all the others."""
        self._fits(batch.images_BMHW)
        return net.anchor.left_out(batch.images_BMHW, batch.exists_BM)

    def _fits(self, images_BMDHW: Tensor) -> None:
        shape = (self.depth, self.height, self.width)
        if images_BMDHW.shape[2:] != shape:
            raise ConfigError(f"method.depth, height, width={shape}: was given {tuple(images_BMDHW.shape[2:])}")

    def _faded(self, z_t: Tensor, t_B: Tensor) -> Tensor:
        return z_t if self.parameterisation == "eps" else self._schedule.heard(z_t, t_B)

    @property
    def _schedule(self) -> Schedule:
        return SCHEDULES[self.schedule](self.times)


def _target_of(phase: str) -> Modality | None:
    return phase.removeprefix(GENERATE) if phase.startswith(GENERATE) else None
