"""The rounds that benchmarks/privacy.py measures: plain, private and by Opacus, on the same networks and images."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from client.privacy.budget import Budget
from client.privacy.private import Charge, Engine, train_private
from shared.base.owners import named
from shared.base.records import Batch, Losses, Owners
from shared.base.vocabulary import SHARED
from shared.data.slices import Pool
from shared.methods import Method
from shared.plan.config import load
from shared.plan.training import PhaseTraining, optimizer_of, train
from shared.trust.privacy import PrivacyPlan, Query

METHODS = ("amm_diff", "any2all", "mmdm", "unet3d")
SUBJECTS, ROWS_EACH = 16, 4  # made up; images of each
NOISE, CLIP, LR = 1.0, 0.1, 1e-4

Round: TypeAlias = Callable[[int], None]  # so many steps


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Who is drawn in a step; without subjects it is plain training."""

    name: str
    subjects: int = 0
    slices: int = 1
    draws: int = 1
    ledger: bool = False
    opacus: str = ""
    goal: bool = False


def variants(case: "Case") -> tuple[Variant, ...]:
    n = case.images
    each = 2 if case.solid else 4
    few = n // each
    others = (
        ()
        if case.solid
        else (
            Variant(name=f"{few} subjects x {each} images", subjects=few, slices=each, goal=True),
            Variant(name=f"{n} subjects x 1", subjects=n),
        )
    )
    return (
        Variant(name="plain"),
        Variant(name=f"{few} subjects x {each} draws", subjects=few, draws=each, goal=True),
        *others,
        Variant(name=f"{few} x {each} draws, ledger", subjects=few, draws=each, ledger=True),
        Variant(name="Opacus hooks", opacus="hooks"),
        Variant(name="Opacus ghost", opacus="ghost"),
    )


# --- what is trained -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    method: Method
    phase: str
    shape: tuple[int, ...]  # of one image: modalities, slices if there are any, height, width
    images: int  # in a step
    build: Callable[[], nn.Module]

    @property
    def solid(self) -> bool:
        return self.name == "unet3d"

    def net(self, device: torch.device) -> nn.Module:
        """Past the start, where what is zeroed would give no gradient."""
        net = self.build()
        g = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for p in net.parameters():
                p.add_(0.02 * torch.randn(p.shape, generator=g))
        return net.to(device)


def case_of(name: str, size: str, scale: int = 1) -> Case:
    if name == "unet3d":
        method = cast(Method, Volumes())  # has what training asks for
        return Case(name=name, method=method, phase="noise", shape=(4, 32, 32, 32), images=4, build=unet3d)
    config = load([f"method={name}", f"size={size}"])
    method = config.build_method()
    slab = (method.slab,) if method.slab > 1 else ()
    shape = (len(method.modalities), *slab, scale * config.grid.height, scale * config.grid.width)
    phase = method.phases[-1].name
    return Case(name=name, method=method, phase=phase, shape=shape, images=16, build=lambda: method.build(0))


class Volumes:
    """The least that trains a 3D network: it predicts the noise."""

    modalities = ("T1", "T1CE", "T2", "FLAIR")
    slab = 1

    def owners(self, net: nn.Module, phase: str) -> Owners:
        return {name: SHARED for name, _ in net.named_parameters()}

    def loss(self, net: nn.Module, batch: Batch, phase: str, generator: torch.Generator) -> Losses:
        x0 = 2 * batch.images_BMHW - 1
        t_B = torch.randint(1000, (len(x0),), generator=generator, device=x0.device)
        eps = torch.randn(x0.shape, generator=generator, device=x0.device)
        alpha_B = (1 - t_B / 1000)[:, None, None, None, None]
        guess = net(alpha_B.sqrt() * x0 + (1 - alpha_B).sqrt() * eps, t_B)
        return Losses(
            loss_B=(guess - eps).square().mean((1, 2, 3, 4)), gave={SHARED: torch.ones(len(x0), dtype=torch.bool)}
        )


def unet3d() -> nn.Module:
    """1.8 million weights."""
    from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net: nn.Module = DiffusionModelUNet(
            spatial_dims=3,
            in_channels=4,
            out_channels=4,
            channels=(16, 32, 64),
            num_res_blocks=1,
            attention_levels=(False, False, True),
            num_head_channels=32,
            norm_num_groups=16,
        )
        return net


class Made(Pool):
    """Subjects in memory: noise in a round head."""

    def __init__(self, shape: tuple[int, ...], subjects: int) -> None:
        self._subjects = subjects
        g = torch.Generator().manual_seed(0)
        y, x = torch.meshgrid(torch.linspace(-1, 1, shape[-2]), torch.linspace(-1, 1, shape[-1]), indexing="ij")
        head = (y.square() + x.square() < 0.8).float()
        self._images = (0.1 + 0.9 * torch.rand(subjects, ROWS_EACH, *shape, generator=g)) * head

    @property
    def units(self) -> int:
        return self._subjects

    def unit(self, unit: int, count: int, generator: torch.Generator) -> Batch:
        rows = torch.randperm(ROWS_EACH, generator=generator)[:count]
        return self._batch(torch.full_like(rows, unit), rows)

    def draw(self, size: int, generator: torch.Generator) -> Batch:
        units = torch.randint(self._subjects, (size,), generator=generator)
        return self._batch(units, torch.randint(ROWS_EACH, (size,), generator=generator))

    def _batch(self, units: Tensor, rows: Tensor) -> Batch:
        exists_BM = torch.ones(len(rows), self._images.shape[2], dtype=torch.bool)
        return Batch(
            images_BMHW=self._images[units, rows],
            exists_BM=exists_BM,
            shown_BM=exists_BM.clone(),
            subject_B=units,
            clinical=({},) * len(rows),
        )


# --- rounds ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Bench:
    case: Case
    device: torch.device
    disk: Path  # of the ledger

    def round(self, variant: Variant) -> Round:
        if variant.opacus:
            return self._opacus(variant)
        net = self.case.net(self.device)
        owners = self.case.method.owners(net, self.case.phase)
        return self._private(variant, net, owners) if variant.subjects else self._plain(net, owners)

    def _plain(self, net: nn.Module, owners: Owners) -> Round:
        case, pool = self.case, Made(self.case.shape, SUBJECTS)

        def run(steps: int) -> None:
            options = options_of(steps, case.images)
            train(
                case.method,
                net,
                pool.draw,
                phase=case.phase,
                options=options,
                owners=owners,
                round=0,
                seed=(0,),
            )

        return run

    def _private(self, variant: Variant, net: nn.Module, owners: Owners) -> Round:
        case, pool = self.case, Made(self.case.shape, variant.subjects)
        plan = PrivacyPlan(
            epsilon=1e9,
            delta=1e-5,
            noise=NOISE,
            rate=1.0,
            clip=CLIP,
            draws=variant.draws,
            slices=variant.slices,
            rows=0,
            sums_noise=4.0,
            sums_clip=1.0,
            size=variant.subjects,
        )
        charge = self.ledger() if variant.ledger else in_memory()

        def run(steps: int) -> None:
            options = options_of(steps, case.images)
            train_private(
                case.method,
                net,
                pool,
                phase=case.phase,
                options=options,
                owners=owners,
                round=0,
                engine=Engine(plan=plan, charge=charge),
                shares=dict.fromkeys(named(owners), 1.0),
            )

        return run

    def ledger(self) -> Charge:
        budget = Budget.open(self.disk / f"privacy{time.monotonic_ns()}", epsilon=1e9, delta=1e-5, size=SUBJECTS)

        def charge(query: Query) -> None:
            budget.charge(query, 1, run="bench", phase=self.case.phase, round=0)

        return charge

    def _opacus(self, variant: Variant) -> Round:
        """Per image, as Opacus does it: this checks first that its norms are those of the images' own gradients."""
        from opacus.grad_sample import GradSampleHooks, GradSampleHooksFastGradientClipping
        from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
        from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping

        case, images = self.case, self.case.images
        net, pool = case.net(self.device).train(), Made(case.shape, SUBJECTS)
        owners = case.method.owners(net, case.phase)
        trainable: dict[str, nn.Parameter] = {name: p for name, p in net.named_parameters() if name in owners}
        for name, p in net.named_parameters():
            p.requires_grad_(name in owners)
        ghost = variant.opacus == "ghost"

        def losses(rows: int) -> Tensor:
            batch = pool.draw(rows, torch.Generator().manual_seed(0)).to(self.device)
            return case.method.loss(net, batch, case.phase, torch.Generator(self.device).manual_seed(0)).loss_B

        true = norms_one_by_one(losses(2), list(trainable.values()))
        hooks: Any = (
            GradSampleHooksFastGradientClipping(net, strict=False, max_grad_norm=CLIP)
            if ghost
            else GradSampleHooks(net, strict=False)
        )
        hooks.enable_hooks()
        losses(2).mean().backward()  # type: ignore[no-untyped-call]
        found = hooks.get_norm_sample() if ghost else norms_of_samples(list(trainable.values()))
        error = float(((found - true).abs() / true).max())
        if not error < 1e-3:
            raise ValueError(f"its norms of single images' gradients are wrong by {100 * error:.1f} %")
        plain = optimizer_of(options_of(1, images), trainable, 0, self.device)
        kind = DPOptimizerFastGradientClipping if ghost else DPOptimizer
        optimizer = kind(plain, noise_multiplier=NOISE, max_grad_norm=CLIP, expected_batch_size=images)
        optimizer.zero_grad(set_to_none=True)

        def run(steps: int) -> None:
            for _ in range(steps):
                loss_B = losses(images)
                if ghost:
                    DPTensorFastGradientClipping(hooks, optimizer, loss_B, "mean").backward()
                else:
                    loss_B.mean().backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

        return run


def options_of(steps: int, rows: int) -> PhaseTraining:
    return PhaseTraining(rounds=1, steps=steps, batch=rows, lr=LR)


def in_memory() -> Charge:
    spent: dict[Query, int] = {}

    def charge(query: Query) -> None:
        spent[query] = spent.get(query, 0) + 1

    return charge


def norms_one_by_one(loss_B: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    found = []
    for loss in loss_B:
        grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        found.append(torch.stack([g.norm() for g in grads if g is not None]).norm())
    return torch.stack(found)


def norms_of_samples(parameters: list[nn.Parameter]) -> Tensor:
    samples: list[Tensor] = [p.grad_sample for p in parameters]  # type: ignore[attr-defined]
    norm: Tensor = torch.stack([g.flatten(1).norm(dim=1) for g in samples]).norm(dim=0)
    return norm
