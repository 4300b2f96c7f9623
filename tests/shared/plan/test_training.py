"""The local loop, and FedSGD over it: one federated step is the pooled step, slice by slice (10.7)."""

import dataclasses

import pytest
import torch
from support.model.methods import batch_of as images_of
from support.model.methods import make
from support.rounds.probe import Probe
from torch import nn

from server.rounds.aggregation import Fold
from shared.base.errors import ConfigError, DataError, RunFailed
from shared.base.owners import keep_local
from shared.base.randomness import generator
from shared.base.records import Batch, Update
from shared.base.vocabulary import LOCAL, SHARED, target
from shared.data.slices import read_ahead
from shared.plan import training
from shared.plan.training import Draw, PhaseTraining, Trained, train

METHOD = Probe()
STEP = PhaseTraining(rounds=1, steps=1, batch=4, lr=0.1, optimizer="sgd", clip=0.0, ema=0.0)


def batch_of(pattern: tuple[int, int, int], n: int, seed: int) -> Batch:
    g = torch.Generator().manual_seed(seed)
    exists = torch.tensor([pattern] * n, dtype=torch.bool)
    images = torch.where(exists[:, :, None, None], torch.rand(n, 3, 5, 4, generator=g), torch.nan)
    return Batch(images_BMHW=images, exists_BM=exists, shown_BM=exists, subject_B=torch.arange(n))


def run(net: nn.Module, batch: Batch, options: PhaseTraining = STEP, **changes: object) -> Trained:
    owners = METHOD.owners(net, "fit")
    arguments: dict[str, object] = {
        "phase": "fit",
        "options": options,
        "owners": owners,
        "round": 0,
        "seed": (0, "a"),
        **changes,
    }
    return train(METHOD, net, lambda size, generator: batch, **arguments)  # type: ignore[arg-type]


def cat(batches: list[Batch]) -> Batch:
    return Batch(
        images_BMHW=torch.cat([b.images_BMHW for b in batches]),
        exists_BM=torch.cat([b.exists_BM for b in batches]),
        shown_BM=torch.cat([b.shown_BM for b in batches]),
        subject_B=torch.cat([b.subject_B for b in batches]),
    )


PATTERNS = [((1, 1, 0), 3), ((1, 0, 1), 5), ((0, 1, 1), 2)]


@pytest.mark.parametrize("estimator", ["delta", "masked"])
def test_fedsgd_with_masked_losses_is_the_pooled_step(estimator: str) -> None:
    """`delta` is the pooled step itself; `masked` is it times N/N_own on each slice."""
    batches = [batch_of(pattern, n, seed) for seed, (pattern, n) in enumerate(PATTERNS)]
    start = METHOD.build(0)
    weights = {k: v.clone() for k, v in start.state_dict().items()}
    owners = METHOD.owners(start, "fit")
    total = sum(n for _, n in PATTERNS)
    pooled = run(METHOD.build(0), cat(batches)).delta
    fold = Fold(owners, weights, bits=44, estimator=estimator)  # type: ignore[arg-type]
    for i, batch in enumerate(batches):
        trained = run(METHOD.build(0), batch)
        fold.add(Update(site=f"s{i}", run="", phase="", round=0, schema="", delta=trained.delta, counts=trained.counts))
    mean = fold.mean(min_holders=1)
    own = [sum(n for pattern, n in PATTERNS if pattern[m]) for m in range(3)]
    for name in owners:
        expected = pooled[name].clone()
        if estimator == "masked" and name == "stem.weight":
            expected *= torch.tensor([total / n for n in own])[None, :]
        if estimator == "masked" and name.startswith("head."):
            expected *= torch.tensor([total / n for n in own]).reshape(-1, *[1] * (expected.dim() - 1))
        assert torch.allclose(mean.delta[name], expected, rtol=1e-4, atol=1e-8), name


def test_a_site_alone_gives_its_own_delta_back() -> None:
    net = METHOD.build(0)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    trained = run(net, batch_of((1, 1, 1), 4, 0), PhaseTraining(rounds=1, steps=5, batch=4, lr=0.01))
    for name, delta in trained.delta.items():
        assert torch.equal(before[name] + delta, before[name] + (net.state_dict()[name] - before[name]))


def test_slices_without_gradient_are_not_sent_though_weight_decay_moved_them() -> None:
    net = METHOD.build(0)
    before = net.state_dict()["head.weight"].clone()
    options = PhaseTraining(rounds=1, steps=3, batch=4, lr=0.01, weight_decay=0.1)
    trained = run(net, batch_of((1, 1, 0), 4, 0), options)
    assert not torch.equal(net.state_dict()["head.weight"][2], before[2])  # AdamW moved it
    assert trained.delta["head.weight"].shape == (2, 6)
    assert trained.counts[target("FLAIR")] == 0
    assert trained.counts[SHARED] == 12


def test_personal_layers_are_trained_and_stay() -> None:
    net = METHOD.build(0)
    before = net.state_dict()["body.weight"].clone()
    owners = keep_local(METHOD.owners(net, "fit"), ["body.*"])
    trained = run(net, batch_of((1, 1, 1), 4, 0), owners=owners)
    assert not torch.equal(net.state_dict()["body.weight"], before)
    assert not any(name.startswith("body.") for name in trained.delta)
    assert LOCAL not in trained.counts


def test_the_same_seed_gives_the_same_bits_and_frozen_stays_frozen() -> None:
    batch = batch_of((1, 1, 1), 4, 0)
    options = PhaseTraining(rounds=2, steps=4, batch=4, lr=0.01, decay="cosine")
    deltas = [run(METHOD.build(0), batch, options).delta for _ in range(2)]
    assert all(torch.equal(deltas[0][k], deltas[1][k]) for k in deltas[0])
    assert "level.mean_M" not in deltas[0]


def test_prox_holds_the_weights_back() -> None:
    batch = batch_of((1, 1, 1), 4, 0)

    def moved(prox: float) -> float:
        options = PhaseTraining(rounds=1, steps=20, batch=4, lr=0.05, optimizer="sgd", clip=0.0, prox=prox)
        return sum(float(d.norm()) for d in run(METHOD.build(0), batch, options).delta.values())

    assert moved(10.0) < moved(0.1) < moved(0.0)


def test_what_is_watched_is_told_of_the_network_as_it_came_too() -> None:
    """AMM-Diff's encoder at a rate that spoils it: the first step's features are the untrained network's."""
    method = make("amm_diff", anchor="none")
    batch, net = images_of(method, [[1, 1, 1, 1]] * 2), method.build(0)
    keys = {"options": dataclasses.replace(STEP, steps=4, optimizer="adamw"), "owners": method.owners(net, "pretext")}
    made = train(method, net, lambda n, g: batch, phase="pretext", round=0, seed=(0, "x"), **keys)
    with torch.no_grad():
        noise = generator("cpu", 0, "x", "pretext", 0, 0, "noise")
        untrained = method.loss(method.build(0), batch, "pretext", noise).watch["feature_std"]
    assert made.watch["feature_std_before"] == pytest.approx(untrained, rel=1e-5)
    assert abs(made.watch["feature_std"] - untrained) > 0.05 * untrained


def test_a_loss_that_is_not_finite_stops_the_site_by_name() -> None:
    batch = batch_of((1, 1, 1), 4, 0)
    images = torch.full_like(batch.images_BMHW, 1e30)
    broken = Batch(images_BMHW=images, exists_BM=batch.exists_BM, shown_BM=batch.shown_BM, subject_B=batch.subject_B)
    with pytest.raises(RunFailed, match=r"step fit 0\.0: the loss is inf"):
        run(METHOD.build(0), broken)


@pytest.mark.parametrize(("key", "value"), [("steps", 0), ("lr", 0.0), ("ema", 1.0), ("prox", -1.0)])
def test_options_are_checked_when_made(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=key):
        PhaseTraining(**{"rounds": 1, "steps": 1, "batch": 1, "lr": 0.1, key: value})


def test_cosine_decay_ends_at_a_twentieth() -> None:
    options = PhaseTraining(rounds=10, steps=1, batch=1, lr=1.0, decay="cosine")
    rates = [options.lr_at(r) for r in range(10)]
    assert rates[0] == 1.0
    assert rates[-1] == pytest.approx(0.05)
    assert rates == sorted(rates, reverse=True)


# --- reading ahead, as on CUDA --------------------------------------------------------------------------------------


def drawn(size: int, generator: torch.Generator) -> Batch:
    return batch_of((1, 1, 0), size, int(torch.randint(1000, (), generator=generator)))


def trained(draw: Draw = drawn) -> Trained:
    net = METHOD.build(0)
    options = PhaseTraining(rounds=1, steps=5, batch=4, lr=0.1)
    return train(METHOD, net, draw, phase="fit", options=options, owners=METHOD.owners(net, "fit"), round=0, seed=(0,))


def test_batches_that_are_read_ahead_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    one = trained()
    monkeypatch.setattr(training, "prefetch", lambda batches, device: read_ahead(batches, 2))
    other = trained()
    assert one.loss == other.loss
    assert all(torch.equal(one.delta[name], other.delta[name]) for name in one.delta)


def test_what_the_reader_can_not_read_ends_the_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "prefetch", lambda batches, device: read_ahead(batches, 2))
    draws = iter(range(99))

    def third_fails(size: int, generator: torch.Generator) -> Batch:
        if next(draws) == 2:
            raise DataError("a slice can't be read")
        return drawn(size, generator)

    with pytest.raises(DataError, match="a slice can't be read"):
        trained(third_fails)
