"""Learned variances against the closed form of what they settle at (docs/methods/mmdm.md, "NAWS")."""

import math
import random

import pytest
import torch
from torch import Tensor, nn

from shared.methods.nets.naws import Naws

SETTLED = {1e-3: 0.022612, 0.1: 0.25, 2.0: 1.618034}  # a fixed loss, and its best variance
FLOOR = torch.tensor(1e-4).item()  # as fp32 has it
NAMES = ("T1", "T2", "FLAIR", "fused")


def best(loss: float) -> float:
    """Of L / 2v + log(1 + v): 2 v^2 - L v - L = 0."""
    return (loss + math.sqrt(loss**2 + 8 * loss)) / 4


def trained(losses: dict[str, Tensor], delta: dict[str, Tensor]) -> Naws:
    """By the gradient's sign: what is far down gets there too."""
    naws = Naws(list(losses))
    optimiser = torch.optim.Rprop(naws.parameters(), lr=0.01)
    for _ in range(200):
        optimiser.zero_grad()
        sum(naws(losses, delta).values(), torch.zeros(())).mean().backward()
        optimiser.step()
    return naws


def test_every_variance_settles_at_the_closed_form() -> None:
    drawn = random.SystemRandom().uniform(0.01, 1)
    wanted = SETTLED | {drawn: best(drawn)}
    naws = trained({f"loss {i}": torch.tensor([loss]) for i, loss in enumerate(wanted)}, {})
    for i, (loss, value) in enumerate(wanted.items()):
        assert math.isclose(best(loss), value, rel_tol=1e-4)
        assert math.isclose(naws.variance(f"loss {i}").item(), value, rel_tol=1e-3), loss


def test_a_bridge_leaves_less_to_be_learned() -> None:
    """s + delta settles where s alone would; if delta is over that, s can only shrink, to its floor."""
    losses = {"within": torch.tensor([0.1]), "over": torch.tensor([0.1])}
    delta = {"within": torch.tensor([0.15]), "over": torch.tensor([0.5])}
    naws = trained(losses, delta)
    assert math.isclose(naws.variance("within").item(), 0.25 - 0.15, rel_tol=1e-3)
    assert FLOOR <= naws.variance("over").item() < 1.01e-4


def test_untrained_and_without_a_bridge_it_is_half_the_plain_sum_and_log_2_each() -> None:
    losses = {name: torch.rand(5) for name in NAMES}
    total = sum(Naws(NAMES)(losses, {}).values(), torch.zeros(5))
    plain = sum(losses.values(), torch.zeros(5))
    torch.testing.assert_close(total, plain / 2 + 4 * math.log(2))
    zero = dict.fromkeys(NAMES, torch.zeros(5))
    torch.testing.assert_close(sum(Naws(NAMES)(losses, zero).values(), torch.zeros(5)), total)


def test_delta_counts_per_sample_and_per_name() -> None:
    naws, loss, delta = Naws(["T1", "fused"]), torch.rand(4), torch.tensor([0.0, 0.002, 0.1, 0.5])
    with torch.no_grad():
        for i, p in enumerate(naws.parameters()):
            p.add_(0.02 * (i + 1))
    made = naws({"T1": loss, "fused": loss}, {"T1": delta})
    s = {name: naws.variance(name).item() for name in made}
    assert s["T1"] != s["fused"]
    for i in range(4):
        for name, extra in (("T1", delta[i].item()), ("fused", 0.0)):
            v = s[name] + extra
            assert math.isclose(made[name][i].item(), loss[i].item() / (2 * v) + math.log(1 + v), rel_tol=1e-5)


def test_networks_hear_most_of_the_ends_of_the_bridge() -> None:
    naws, loss = Naws(["T1"]), torch.rand(3, requires_grad=True)
    delta = torch.tensor([0.002, 0.5, 0.1])
    (g,) = torch.autograd.grad(naws({"T1": loss}, {"T1": delta})["T1"].sum(), loss)
    torch.testing.assert_close(g, 1 / (2 * (1 + delta)))


def test_variances_are_registered_and_move() -> None:
    net = nn.ModuleDict({"naws": Naws(NAMES)})
    assert {name for name, _ in net.named_parameters()} == {f"naws.rho.{name}" for name in NAMES}
    assert set(net.state_dict()) == {f"naws.rho.{name}" for name in NAMES}
    naws = net["naws"]
    assert isinstance(naws, Naws)
    before = {name: naws.variance(name).item() for name in NAMES}
    assert all(math.isclose(value, 1, rel_tol=1e-6) for value in before.values())
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-4)  # the networks' rate; the variances' is 1e-3
    sum(naws({name: torch.tensor([0.1]) for name in NAMES}, {}).values(), torch.zeros(1)).sum().backward()
    optimiser.step()
    for name in NAMES:
        assert math.isclose(math.log(before[name] / naws.variance(name).item()), 1e-3, rel_tol=0.01)


@pytest.mark.parametrize("absent", NAMES)
def test_what_is_absent_gets_no_gradient(absent: str) -> None:
    """Left out altogether, or left out of every sample: nothing, not little. Its loss may be anything."""
    naws = Naws(NAMES)
    losses = {name: torch.rand(3) for name in NAMES if name != absent}
    sum(naws(losses, {}).values(), torch.zeros(3)).mean().backward()
    assert naws.rho[absent].grad is None
    assert all(naws.rho[name].grad.abs() > 0 for name in losses)

    naws.zero_grad()
    weighed = naws({**losses, absent: torch.full((3,), 1e9)}, {absent: torch.tensor([0.0, 0.1, 0.5])})
    counts_B = torch.zeros(3, dtype=torch.bool)
    kept = [torch.where(counts_B, value, 0.0) if name == absent else value for name, value in weighed.items()]
    sum(kept, torch.zeros(3)).mean().backward()
    assert naws.rho[absent].grad == 0


def test_one_loss_moves_its_own_variance_alone() -> None:
    naws = Naws(NAMES)
    weighed = naws({name: torch.rand(3) for name in NAMES}, {name: torch.rand(3) for name in NAMES})
    grads = torch.autograd.grad(weighed["T2"].sum(), [naws.rho[name] for name in NAMES], allow_unused=True)
    assert [g is not None for g in grads] == [name == "T2" for name in NAMES]


def test_the_floor_holds() -> None:
    naws = trained({"T1": torch.zeros(1)}, {})  # nothing but log(1 + s): down for ever
    assert FLOOR <= naws.variance("T1").item() < 1.01e-4
    with torch.no_grad():
        naws.rho["T1"].fill_(-1e4)
    assert naws.variance("T1").item() >= FLOOR
    loss = torch.ones(2, requires_grad=True)
    value = naws({"T1": loss}, {})["T1"]
    value.sum().backward()
    torch.testing.assert_close(value, torch.full((2,), 1 / 2e-4 + math.log1p(1e-4)))
    assert naws.rho["T1"].grad.isfinite()


def test_autocast_does_not_touch_it() -> None:
    naws, losses = Naws(NAMES), {name: torch.rand(7) for name in NAMES}
    delta = {name: torch.rand(7) / 2 for name in NAMES}
    with torch.autocast("cpu", torch.bfloat16):
        fast = naws(losses, delta)
    for name, value in naws(losses, delta).items():
        assert fast[name].dtype == torch.float32
        assert torch.equal(fast[name], value)
