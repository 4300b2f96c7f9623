"""The sampler `mean`, of every method that takes it: the mean of many samples, read where training has been."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from support.model.methods import SIDE, M, batch_of, depth, make, prepared
from torch import Tensor, nn

from server.rounds.validation import Validator
from shared.base.errors import ConfigError
from shared.base.options import plain
from shared.clinical import chart_of
from shared.diffusion.bridge import bridge
from shared.diffusion.gaussian import SCHEDULES, Schedule
from shared.diffusion.samplers import BRIDGES, Sampler, draw
from shared.methods import METHODS, Method
from shared.methods.aca_diff import AcaDiff
from shared.methods.baselines.ddpm import Ddpm
from shared.methods.nets.aca import AcaNet
from shared.plan import config

pytestmark = pytest.mark.slow  # left out of `make fast`

MU, SD = 0.3, 0.1  # of x_0 at every place, whatever is shown
NOISED = [name for name in METHODS if "parameterisation" in METHODS[name].__dataclass_fields__]
BRIDGED = ["mmdm", "bbdm"]
SHOWN = torch.tensor([[True, True, False, False]])  # FLAIR is a target of all


def denoisers(net: nn.Module) -> list[nn.Module]:
    """What a method asks for x_0: (its noisy image, ..., its time)."""
    if isinstance(net, AcaNet):
        return list(net.generators.values())
    return [net]


@contextmanager
def instead(net: nn.Module, answer: Callable[..., Tensor]) -> Iterator[None]:
    """Another network in the place of its denoisers."""
    parts = denoisers(net)
    for part in parts:
        part.forward = answer  # type: ignore[method-assign, assignment]
    yield
    for part in parts:
        del part.forward


def time_in(args: tuple[Any, ...]) -> Tensor:
    return next(a for a in args if isinstance(a, Tensor) and a.dtype == torch.long)


@pytest.mark.parametrize("name", NOISED)
def test_what_mean_shows_a_network_is_what_training_showed_it_at_that_time(name: str) -> None:
    """Two times make half of the samples stand at the last one."""
    method = make(name, times=2)
    net = prepared(method).eval()
    seen: dict[str, list[Tensor]] = {"loss": [], "mean": []}

    def noting(where: str) -> list[Any]:
        def note(module: nn.Module, args: tuple[Any, ...]) -> None:
            x, t = args[0], time_in(args)
            rows = t == 1 if t.ndim == 1 else (t == 1).flatten()
            seen[where].append((x if t.ndim == 1 else x.flatten(0, 1))[rows].flatten())

        return [part.register_forward_pre_hook(note) for part in denoisers(net)]

    batch = batch_of(method, [[1] * M] * 8)
    for where in seen:
        hooks = noting(where)
        if where == "loss":
            method.loss(net, batch, method.phases[-1].name, torch.Generator().manual_seed(0))
        else:
            shown = SHOWN.expand(8, -1)
            method.synthesize(net, batch.images_BMHW, shown, Sampler(kind="mean"), torch.Generator().manual_seed(0))
        for hook in hooks:
            hook.remove()
    trained, shown_by_mean = torch.cat(seen["loss"]), torch.cat(seen["mean"])
    assert len(trained)
    assert len(shown_by_mean)
    low, high = trained.min().item() - 0.05, trained.max().item() + 0.05
    assert low <= shown_by_mean.min().item()
    assert shown_by_mean.max().item() <= high
    assert abs(trained.std().item() - shown_by_mean.std().item()) < 0.1, "zeros where training had noise"


@pytest.mark.parametrize("name", NOISED)
def test_the_mean_of_many_samples_of_an_exact_posterior_is_what_mean_says(name: str) -> None:
    method = make(name)
    net = prepared(method).eval()
    with instead(net, exact_v(schedule_of(method))):
        mean = sampled(method, net, Sampler(kind="mean"), 0)
        samples = torch.stack([sampled(method, net, Sampler(kind="multistep", steps=40), seed) for seed in range(32)])
    agree(samples, mean, SD)


@pytest.mark.parametrize("name", BRIDGED)
def test_the_mean_of_many_bridges_is_what_mean_says(name: str) -> None:
    method = make(name)
    net = prepared(method).eval()
    over = bridge(1000)

    def of(x: Tensor, y: Tensor, t_B: Tensor) -> Tensor:
        m = over.m_T[t_B].reshape(-1, *[1] * (x.ndim - 1)).float()
        noise = 2 * m * (1 - m)  # x_t - m y = (1 - m) x_0 + sqrt(noise) eps
        weight = (1 - m) * SD**2 / ((1 - m) ** 2 * SD**2 + noise)
        return MU + weight * (x - m * y - (1 - m) * MU)

    if name == "mmdm":
        net.estimate = lambda x, y, shown, t, **_: (x, of(x, y, t)[:, 0])  # type: ignore[assignment]
    else:
        net.objective = lambda x, y, t: x - of(x, y, t)  # type: ignore[assignment]
    mean = sampled(method, net, Sampler(kind="mean"), 0)
    samples = torch.stack([sampled(method, net, Sampler(kind="bridge", steps=40, eta=1.0), seed) for seed in range(32)])
    agree(samples, mean, samples.std(0).mean().item())  # forty steps of a bridge end a little narrow


def agree(samples: Tensor, mean: Tensor, spread: float) -> None:
    """By place within 6 standard errors; over all places, where noise goes out, within a twentieth of the sd."""
    assert samples.std(0).mean().item() == pytest.approx(spread, rel=0.15)
    assert spread > SD / 2, "samples are no samples"
    assert (samples.mean(0) - mean).abs().max().item() < 6 * SD / math.sqrt(len(samples))
    assert abs((samples.mean(0) - mean).mean().item()) < 0.05 * SD
    assert mean.mean().item() == pytest.approx(MU, abs=0.02)


def sampled(method: Method, net: nn.Module, sampler: Sampler, seed: int) -> Tensor:
    """x_0 of FLAIR; of a method of latents, those."""
    g = torch.Generator().manual_seed(seed)
    if isinstance(method, AcaDiff):
        assert isinstance(net, AcaNet)
        z = torch.randn(1, net.latent, 4, 8, 8, generator=g)
        sources = torch.zeros(1, M - 1, *z.shape[1:])
        denoise = method.denoiser(net, "FLAIR", sources, SHOWN[:, : M - 1], [chart_of({}, ())])
        return draw(denoise, schedule_of(method), z, sampler, g)
    images = batch_of(method, [[1] * M]).images_BMHW
    with torch.no_grad():
        made = method.synthesize(net, images, SHOWN, sampler, g)
    return 2 * made[:, -1] - 1


def schedule_of(method: Method) -> Schedule:
    return SCHEDULES["linear" if isinstance(method, Ddpm) else plain(method)["schedule"]](1000)


def exact_v(over: Schedule) -> Callable[..., Tensor]:
    """The posterior mean of x_0 ~ N(MU, SD^2), said as v, by a network that hears alpha x_t."""

    def answer(heard: Tensor, *args: Any, **_: Any) -> Tensor:
        t = time_in(args)
        shape = (*t.shape, *[1] * (heard.ndim - t.ndim))
        abar = over.abar_T[t.clamp(min=0)].reshape(shape)
        alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
        x_t = heard.double() / alpha
        x0 = MU + alpha * SD**2 / (alpha**2 * SD**2 + sigma**2) * (x_t - alpha * MU)
        return ((alpha * x_t - x0) / sigma).float()

    return answer


@pytest.mark.parametrize("name", NOISED)
def test_with_eps_there_is_no_mean(name: str) -> None:
    """Its error would be divided by alpha of the last time."""
    method = make(name, parameterisation="eps")
    net = prepared(method).eval()
    with pytest.raises(ConfigError, match="sampler=mean: this method, as it is set, takes ancestral, ddim, multistep"):
        method.synthesize(
            net, batch_of(method, [[1] * M]).images_BMHW, SHOWN, Sampler(kind="mean"), torch.Generator().manual_seed(0)
        )
    with pytest.raises(ConfigError, match=f"sampler=mean: method {name}, as it is set, takes ancestral"):
        config.load([f"method={name}", "method.parameterisation=eps", "size=tiny"])
    assert config.load([f"method={name}", "method.parameterisation=eps", "size=tiny", "sampler=multistep"])


@pytest.mark.parametrize(("parameterisation", "evaluations"), [("v", 1), ("eps", 8)])
def test_a_validation_of_eps_draws_a_sample(parameterisation: str, evaluations: int, tmp_path: Path) -> None:
    method = make("ddpm", parameterisation=parameterisation)
    net = method.build(0)
    calls: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        forward = type(net).forward
        patch.setattr(type(net), "forward", lambda *args: (calls.append(1), forward(*args))[1])
        judged_BM2 = torch.tensor([[[1.0, 0.0]] * M])
        validator = Validator(method, batch_of(method, [[1] * M]), judged_BM2, torch.device("cpu"), tmp_path, 0)
        assert validator.validate(net.state_dict(), 0)["psnr/FLAIR"] is not None
    assert len(calls) == evaluations


def test_bridges_and_noise_are_all_there_is() -> None:
    """A method that takes `mean` and is in neither list above has no law here."""
    takes = {name for name in METHODS if "mean" in make(name).samplers}
    assert takes == {*NOISED, *BRIDGED, "pix2pix"}, "pix2pix is one evaluation anyway"
    assert set(BRIDGES) == {"bridge", "mean"}
    assert depth(make("ddpm")) == (3,)
    assert SIDE == 16
