"""The server's average: warm-up, per owner group, and off."""

import torch

from server.rounds import ema
from shared.base.records import Cut, Owners
from shared.base.vocabulary import SHARED

OWNERS: Owners = {"w": SHARED, "head": Cut(dim=0, owners=("to:T1", "to:T2"))}
OLD = {"w": torch.zeros(2), "head": torch.zeros(2, 2)}
NEW = {"w": torch.ones(2), "head": torch.ones(2, 2)}


def test_a_group_that_nobody_trained_keeps_its_average_and_its_warm_up() -> None:
    after, seen = ema.follow(OLD, NEW, OWNERS, frozenset({SHARED, "to:T1"}), {}, decay=0.999, steps=10)
    assert not after["head"][1].any()
    assert seen == {SHARED: 1, "to:T1": 1}
    after, seen = ema.follow(after, NEW, OWNERS, frozenset({SHARED, "to:T1", "to:T2"}), seen, decay=0.999, steps=10)
    assert seen["to:T2"] == 1
    assert torch.allclose(after["head"][1], torch.full((2,), 0.9))  # its first round: 1 - 1/10


def test_the_initial_weights_fade_with_the_warm_up() -> None:
    average, seen = OLD, {}
    for _ in range(20):
        average, seen = ema.follow(average, NEW, OWNERS, frozenset({SHARED}), seen, decay=0.9999, steps=1)
    assert average["w"].min() > 0.99


def test_many_local_steps_decay_like_as_many_single_ones() -> None:
    seen = {SHARED: 10**6}
    after, _ = ema.follow(OLD, NEW, OWNERS, frozenset({SHARED}), seen, decay=0.999, steps=100)
    assert torch.allclose(after["w"], torch.full((2,), 1 - 0.999**100))


def test_decay_zero_is_the_weights_themselves_uncopied() -> None:
    after, _ = ema.follow(OLD, NEW, OWNERS, frozenset({SHARED}), {}, decay=0.0, steps=1)
    assert after["w"] is NEW["w"]
