"""Low-rank additions: nothing at the start, linear in what is trained, merged exactly."""

import pytest
import torch
from torch import nn

from shared.base.vocabulary import LOCAL, SHARED, source
from shared.plan import lora


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 5)
    )


def images() -> torch.Tensor:
    return torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(1))


def with_ups(net: nn.Module, seed: int) -> nn.Module:
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in net.named_parameters():
            if name.endswith(lora._UP):
                value.copy_(torch.randn(value.shape, generator=noise))
    return net


@pytest.mark.parametrize("rank", [1, 3])
def test_an_addition_changes_nothing_before_it_is_trained(rank: int) -> None:
    plain, adapted = network(), lora.adapt(network(), rank, 7)
    assert torch.equal(plain(images()), adapted(images()))
    assert lora.adapt(network(), 0, 7).state_dict().keys() == plain.state_dict().keys()


def test_merged_weights_are_the_same_network_without_additions() -> None:
    adapted, plain = with_ups(lora.adapt(network(), 2, 7), 3), network()
    before = plain(images())
    plain.load_state_dict(lora.merged(adapted.state_dict()))
    torch.testing.assert_close(plain(images()), adapted(images()), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(plain(images()), before, atol=1e-2)


def test_the_mean_of_two_sites_additions_is_the_addition_of_their_mean() -> None:
    one, two = (with_ups(lora.adapt(network(), 2, 7), seed).state_dict() for seed in (3, 4))
    mean = {name: (one[name] + two[name]) / 2 for name in one}
    merged = lora.merged(mean)
    for name, value in merged.items():
        expected = (lora.merged(one)[name] + lora.merged(two)[name]) / 2
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


def test_every_site_draws_the_same_fixed_factor() -> None:
    downs = [{n: v for n, v in lora.adapt(network(), 2, s).named_buffers() if n.endswith("down")} for s in (7, 7, 8)]
    assert all(torch.equal(downs[0][name], downs[1][name]) for name in downs[0])
    assert not any(torch.equal(downs[0][name], downs[2][name]) for name in downs[0])


def test_weights_go_into_a_network_with_additions_and_come_out_again() -> None:
    torch.manual_seed(5)
    other = {name: torch.randn_like(value) for name, value in network().state_dict().items()}
    adapted = lora.adapt(network(), 2, 7)
    adapted.load_state_dict(lora.split(other, adapted.state_dict()))
    assert all(torch.equal(value, other[name]) for name, value in lora.merged(adapted.state_dict()).items())


def test_what_is_too_small_for_a_rank_has_no_addition() -> None:
    names = {
        name.split(".")[0] for name, _ in lora.adapt(network(), 5, 7).named_parameters() if name.endswith(lora._UP)
    }
    assert names == {"0", "2"}  # the last layer has five rows


def test_who_owns_what() -> None:
    """Shared weights give way to their additions; others are trained only where they are named."""
    plain = network()
    every = {name: SHARED for name, _ in plain.named_parameters()} | {"0.weight": source("T1"), "4.bias": LOCAL}
    adapted = lora.adapt(network(), 2, 7)
    up = "parametrizations.weight.0.up"
    assert lora.owners(adapted, every, {}) == {f"2.{up}": SHARED, f"4.{up}": SHARED}
    whole = {"0.weight": source("T1"), "2.weight": SHARED, "4.bias": LOCAL}
    assert lora.owners(adapted, every, whole) == {
        "0.parametrizations.weight.original": source("T1"),
        "2.parametrizations.weight.original": SHARED,
        f"4.{up}": SHARED,
        "4.bias": LOCAL,
    }
