"""A run whose coordinator sees sums alone ends at the bits of one that sees every update, whoever drops out of it."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from flwr.app import Message
from support.rounds.federation import weights_digest
from support.rounds.five import SITES, make_five, part, plain, secure
from support.rounds.spoilt import failed, start

from client.site.ledger import Ledger
from server.journal import facts
from server.rounds.place import Place
from server.rounds.rounds import Rounds
from shared.base.errors import ConfigError, RunFailed
from shared.base.owners import digest
from shared.plan.config import Config, Validation

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("probe")]
Gone = Mapping[str, set[int]]  # by site, in which of the run's two rounds it gives nothing: of sums, of training


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_five(tmp_path_factory.mktemp("five"))


def run(folder: Path, wanted: Config, gone: Gone | None = None, *, at: str = "update") -> str:
    """On a grid on which these sites' answers to one kind of question are lost, in these rounds."""

    def spoil(site: str, reply: Message) -> Message:
        done = len(facts.read(folder / "rounds.jsonl")) if gone else 0
        return failed(reply) if gone and part(reply) == at and done in gone.get(site, set()) else reply

    start(folder, wanted, spoil=spoil)
    return weights_digest(folder)


@pytest.fixture(scope="module")
def open_runs(five: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Gone], str]:
    """What an open run comes to in which the same sites drop out; each worked out once."""
    known: dict[str, str] = {}

    def find(gone: Gone) -> str:
        key = repr(sorted((site, sorted(rounds)) for site, rounds in gone.items()))
        if key not in known:
            known[key] = run(tmp_path_factory.mktemp("open") / "run", plain(five), gone)
        return known[key]

    return find


@pytest.mark.parametrize("at", ["dealt", "update"])
@pytest.mark.parametrize(
    "gone",
    [{}, {"e": {0, 1}}, {"a": {1}}, {"d": {0}, "b": {1}}],
    ids=["nobody", "one always", "a holder of all", "two in turn"],
)
def test_the_bits_are_those_of_the_open_run(
    gone: Gone, at: str, five: Path, tmp_path: Path, open_runs: Callable[[Gone], str]
) -> None:
    assert run(tmp_path / "run", secure(five), gone, at=at) == open_runs(gone)


@pytest.mark.parametrize("site", ["d", "e"])
def test_who_is_gone_when_sums_are_asked_for_is_in_them(
    site: str, five: Path, tmp_path: Path, open_runs: Callable[[Gone], str]
) -> None:
    """Its update came; its secrets come from the others' shares."""
    assert run(tmp_path / "run", secure(five), {site: {0, 1}}, at="shares") == open_runs({})


def test_two_thirds_must_come(five: Path, tmp_path: Path) -> None:
    """An open run goes on with three of five; of these no sum is seen, and nothing is changed."""
    folder = tmp_path / "run"
    with pytest.raises(RunFailed, match=r"fit round 0: 3 updates admitted, quorum=4 .*nothing was changed"):
        run(folder, secure(five), {"d": {1}, "e": {1}})
    asked = [entry["fields"] for site in SITES for entry in Ledger(folder / "sites" / site / "ledger.jsonl").entries()]
    assert sum("shares.site" in fields for fields in asked) == 5  # of the phase of sums, which all were in
    assert [one.phase for one in facts.read(folder / "rounds.jsonl")] == ["level"]


def test_a_group_of_which_too_few_came_stays_as_it_was(five: Path, tmp_path: Path) -> None:
    """FLAIR has three holders: without one of them nobody sees the sum of two, and all else is learnt."""
    folder = tmp_path / "run"
    run(folder, secure(five, min_sites=3), {"a": {1}})
    last = facts.read(folder / "rounds.jsonl")[-1]
    assert last.holders == {"shared": 4, "from:T1": 4, "to:T1": 4, "from:T2": 3, "to:T2": 3}
    assert last.counts["to:T2"] == 3 * last.counts["shared"] / 4


def test_in_words_of_32_bits_a_run_ends_where_the_open_one_of_such_words_does(five: Path, tmp_path: Path) -> None:
    limits = dataclasses.replace(plain(five).federation.limits, entry=1.0)
    narrow = {"word": 32, "limits": limits}
    assert run(tmp_path / "run", secure(five, **narrow)) == run(tmp_path / "open", plain(five, **narrow))
    sent = [facts.read(tmp_path / name / "rounds.jsonl")[-1].bytes_up for name in ("run", "open")]
    assert sent[0] < 2 * sent[1]  # a few keys beside it


@pytest.mark.parametrize("estimator", ["delta"])
@pytest.mark.parametrize("strategy", ["fedavgm", "fedadam"])
def test_estimators_and_strategies_of_the_mean_work_on_sums(
    estimator: str, strategy: str, five: Path, tmp_path: Path
) -> None:
    made = {"estimator": estimator, "strategy": strategy}
    assert run(tmp_path / "run", secure(five, **made)) == run(tmp_path / "open", plain(five, **made))


def test_a_strategy_that_compares_sites_is_refused_by_name(five: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="strategy=median: needs each site's own update, which privacy=secure hides"):
        run(tmp_path / "run", secure(five, strategy="median"))


@pytest.mark.parametrize("key", ["min_sites", "min_holders"])
def test_of_two_nothing_is_hidden(key: str, five: Path) -> None:
    with pytest.raises(ConfigError, match=f"{key}=2: must be 3 or more with secure=true"):
        secure(five, **{key: 2})


def test_losses_are_told_of_all_together(five: Path, tmp_path: Path) -> None:
    run(tmp_path / "run", secure(five))
    run(tmp_path / "open", plain(five))
    for hidden, seen in zip(
        facts.read(tmp_path / "run" / "rounds.jsonl"), facts.read(tmp_path / "open" / "rounds.jsonl"), strict=True
    ):
        assert hidden.loss == pytest.approx(seen.loss, abs=1e-5)
        assert hidden.counts == seen.counts
        assert hidden.holders == seen.holders
        assert {one.loss for one in hidden.sites.values()} == {None}
        assert {one.samples for one in hidden.sites.values()} == {0}


def test_a_mean_beyond_what_any_site_may_send_changes_nothing(five: Path, tmp_path: Path) -> None:
    """One site's numbers are not of the scale that was agreed; which site's, nobody can tell."""

    def spoil(site: str, reply: Message) -> Message:
        if site == "b" and part(reply) == "update" and "fit" in str(reply.content.config_records["update"]["phase"]):
            from shared.plan import tensors

            sent = dict(tensors.unpack(reply.content.array_records["delta"]))
            sent["body.weight"] = sent["body.weight"] + 2**62
            reply.content["delta"] = tensors.pack(sent)
        return reply

    with pytest.raises(RunFailed, match=r"fit round 0: the mean of the updates has an entry of .* nobody can tell"):
        start(tmp_path / "run", secure(five), spoil=spoil)
    assert not (tmp_path / "run" / "final").exists()


def test_books_of_both_sides_agree(five: Path, tmp_path: Path) -> None:
    from client.site.ledger import compare, read_receipts
    from server.journal import receipts

    run(tmp_path / "run", secure(five), {"e": {1}})
    for site in SITES:
        found = receipts.read(tmp_path / "run", site)
        receipts.export(found, tmp_path / f"{site}.json", run="run", site=site)
        lines = list(
            compare(
                Ledger(tmp_path / "run" / "sites" / site / "ledger.jsonl").entries(),
                read_receipts(tmp_path / f"{site}.json"),
            )
        )
        lost = [line for line in lines if "never receipted" in line]
        assert lines == lost
        assert len(lost) == (1 if site == "e" else 0)  # what was lost on the way


def test_a_round_that_spoils_the_model_is_not_taken(
    five: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A liar whom nobody can name: the second round is undone, weights, average and all; the third begins anew."""
    scores, saved, save = iter([30.0, 26.9, 29.0]), [], Rounds._save

    def keep(self: Rounds, place: Place) -> None:
        every = {"weights": place.weights, "ema": place.ema, "state": place.state}
        saved.append({kind: digest(tensors) for kind, tensors in every.items()})
        save(self, place)

    monkeypatch.setattr(Rounds, "_save", keep)
    monkeypatch.setattr(Rounds, "_validate", lambda self, place, force: {"psnr/FLAIR": next(scores)})
    folder = tmp_path / "run"
    wanted = dataclasses.replace(secure(five, rounds=3, strategy="fedavgm"), validation=Validation(every=1, gate=3.0))
    start(folder, wanted)
    first, second, third = facts.read(folder / "rounds.jsonl")[1:]
    assert [one.refusals for one in (first, third)] == [(), ()]
    assert second.refusals == (
        "fit round 1: not taken: 26.90 dB on the coordinator's own cohort, 30.00 before; validation.gate=3",
    )
    one, other, last = saved[2:5]  # of the round of sums, its phase's end, then each round of training
    assert one == other != last


def test_a_step_down_in_few_bits_ends_at_the_same_bits_and_few_bits_up_are_refused(five: Path, tmp_path: Path) -> None:
    ways = {"open": plain, "hidden": secure}
    ends = {name: run(tmp_path / name / "run", made(five, rounds=2, down="int8")) for name, made in ways.items()}
    assert ends["open"] == ends["hidden"] != run(tmp_path / "whole" / "run", plain(five, rounds=2))
    with pytest.raises(ConfigError, match="up='int8': must be fp32 with secure=true"):
        secure(five, up="int8")
