"""A coordinator that is killed at each step of a hidden round goes on to the same bits, and asks for no other sum."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.app import Message
from support.rounds.federation import weights_digest
from support.rounds.five import SITES, make_five, part, secure
from support.rounds.spoilt import failed, start

from client.privacy.budget import Budget
from client.site.ledger import Ledger
from server.journal import facts
from server.rounds.place import Place
from server.rounds.rounds import Rounds
from server.rounds.secure import circles
from shared.base.errors import DataError, RunFailed
from shared.trust.privacy import Privacy

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("probe")]


class Killed(BaseException):
    """As no code of ours catches it."""


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_five(tmp_path_factory.mktemp("five"))


@pytest.fixture(scope="module")
def whole(five: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], str]:
    """What the run comes to when nobody is killed; e's update is lost in the round of training."""
    known: list[str] = []

    def find() -> str:
        if not known:
            folder = tmp_path_factory.mktemp("whole") / "run"
            start(folder, secure(five), spoil=without_e(folder))
            known.append(weights_digest(folder))
        return known[0]

    return find


def without_e(folder: Path, kill: Callable[[str, str], bool] = lambda site, kind: False) -> Callable[..., Message]:
    def spoil(site: str, reply: Message) -> Message:
        training = len(facts.read(folder / "rounds.jsonl")) == 1
        if training and kill(site, part(reply)):
            raise Killed
        return failed(reply) if training and (site, part(reply)) == ("e", "update") else reply

    return spoil


@pytest.mark.parametrize(("site", "kind"), [("a", "dealt"), ("c", "dealt"), ("a", "update"), ("d", "update")])
def test_before_a_sum_is_asked_for_the_round_is_done_anew(
    site: str, kind: str, five: Path, tmp_path: Path, whole: Callable[[], str]
) -> None:
    """Sites deal the same in the same circle, and hide the same: nothing is seen twice."""
    folder = tmp_path / "run"
    with pytest.raises(Killed):
        start(folder, secure(five), spoil=without_e(folder, lambda *at: at == (site, kind)))
    assert not (folder / circles.FILE).exists()
    start(folder, secure(five), spoil=without_e(folder))
    assert weights_digest(folder) == whole()


@pytest.mark.parametrize("site", ["a", "d"])
def test_after_it_the_very_same_sum_is_asked_for_again(
    site: str, five: Path, tmp_path: Path, whole: Callable[[], str]
) -> None:
    """The updates lie there, and no site works again; e, which would answer by now, stays out of the sum."""
    folder = tmp_path / "run"
    with pytest.raises(Killed):
        start(folder, secure(five), spoil=without_e(folder, lambda *at: at == (site, "shares")))
    assert (folder / circles.FILE).exists()
    trained = [updates(folder, site) for site in SITES]
    start(folder, secure(five))
    assert weights_digest(folder) == whole()
    assert [updates(folder, site) for site in SITES] == trained
    assert not (folder / circles.FILE).exists()


@pytest.mark.parametrize("at", [1, 2], ids=["of sums", "of training"])
def test_killed_before_its_checkpoint_a_round_is_lifted_again(
    at: int, five: Path, tmp_path: Path, whole: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All is seen and worked out; what was hidden lies there until the round is on the disk."""
    folder, saves, save = tmp_path / "run", [], Rounds._save

    def killed(self: Rounds, place: Place) -> None:
        saves.append(place.round)
        if len(saves) == (1 if at == 1 else 3):  # the round of sums, its phase's end, the round of training
            raise Killed
        save(self, place)

    with monkeypatch.context() as patch:
        patch.setattr(Rounds, "_save", killed)
        with pytest.raises(Killed):
            start(folder, secure(five), spoil=without_e(folder))
    start(folder, secure(five), spoil=without_e(folder))
    assert weights_digest(folder) == whole()


def updates(folder: Path, site: str) -> int:
    entries = Ledger(folder / "sites" / site / "ledger.jsonl").entries()
    return sum("update.run" in entry["fields"] for entry in entries)


def test_a_round_whose_shares_do_not_come_ends_whole_and_is_gone_on_with(
    five: Path, tmp_path: Path, whole: Callable[[], str]
) -> None:
    """Two of five don't answer, and over two thirds of the secrets are needed."""
    folder = tmp_path / "run"
    honest = without_e(folder)

    def silent(site: str, reply: Message) -> Message:
        training = len(facts.read(folder / "rounds.jsonl")) == 1
        return failed(reply) if training and site in "de" and part(reply) == "shares" else honest(site, reply)

    with pytest.raises(RunFailed, match=r"fit round 0: too few sites let the sum be seen, of .*\*.*Resumed, the run"):
        start(folder, secure(five), spoil=silent)
    assert not (folder / "final").exists()
    start(folder, secure(five), spoil=honest)
    assert weights_digest(folder) == whole()


def test_another_set_is_not_seen_however_it_is_asked(five: Path, tmp_path: Path) -> None:
    """Who throws away what was asked, and does the round anew with other sites, is refused by those who answered."""
    folder = tmp_path / "run"
    with pytest.raises(Killed):
        start(folder, secure(five), spoil=without_e(folder, lambda *at: at == ("d", "shares")))
    (folder / circles.FILE).unlink()
    with pytest.raises(RunFailed, match=r"another sum of .* was seen already; two of one round would tell"):
        start(folder, secure(five))


@pytest.mark.parametrize("damage", ["{", '{"phase": "fit"}'])
def test_a_damaged_record_of_it_is_said(damage: str, five: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Killed):
        start(folder, secure(five), spoil=without_e(folder, lambda *at: at == ("a", "shares")))
    (folder / circles.FILE).write_text(damage)
    with pytest.raises(DataError, match=r"secure\.json: damaged: .*can't be asked for"):
        start(folder, secure(five))


def test_a_site_that_lost_its_disk_is_left_out_and_said(five: Path, tmp_path: Path) -> None:
    """Its box is another: what the others would seal to the old one it could not open."""
    folder = tmp_path / "run"
    lost: list[Path] = []

    def spoil(site: str, reply: Message) -> Message:
        if len(facts.read(folder / "rounds.jsonl")) == 1 and not lost:
            lost.extend((folder / "sites" / "e").glob("secure.db*"))
            for path in lost:
                path.unlink()
        return reply

    start(folder, secure(five), spoil=spoil)
    last = facts.read(folder / "rounds.jsonl")[-1]
    assert sorted(site for site, one in last.sites.items() if one.status == "ok") == ["a", "b", "c", "d"]
    assert last.sites["e"].reason == "e: has another box by now for run run; resumed, the run asks for it"


def test_with_other_sites_a_run_of_secure_rounds_can_be_resumed(five: Path, tmp_path: Path) -> None:
    """Between rounds, nothing is remembered of who was in them."""
    folder = tmp_path / "run"
    with pytest.raises(Killed):
        start(folder, secure(five), spoil=without_e(folder, lambda *at: at == ("a", "dealt")))
    start(folder, secure(five), policies={"e": {"methods": "amm_diff"}})
    last = facts.read(folder / "rounds.jsonl")[-1]
    assert "e" not in last.sites


def test_a_private_site_that_is_asked_again_pays_once(five: Path, tmp_path: Path) -> None:
    """Noise is drawn once: killed when three of five have answered, the run goes on with what they sent."""
    privacy = Privacy(mode="on", noise=3.0, rate=0.3, epsilon=50.0, sums_noise=20.0)
    wanted = dataclasses.replace(secure(five), privacy=privacy)
    folders = tmp_path / "whole" / "run", tmp_path / "killed" / "run"
    start(folders[0], wanted)
    with pytest.raises(Killed):
        start(folders[1], wanted, spoil=without_e(folders[1], lambda *at: at == ("c", "update")))
    start(folders[1], wanted)
    assert [one.status for one in facts.read(folders[1] / "rounds.jsonl")[-1].sites.values()] == ["ok"] * 5
    rows = [[Budget.look(f / "sites" / site / "privacy").sequence for site in SITES] for f in folders]
    assert rows[0] == rows[1]
