"""Somebody left, and it is as if they had not: their images come back, a note is forged, a recalled bundle is used."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from support.cohort.worlds import prepare_here, write_cohort
from support.flower.federations import NOW, enter, make
from support.model.models import AMM_TINY, release
from support.rounds.federation import config
from support.rounds.relay import relay
from typer.testing import CliRunner

from client.cli.cli import app as lacuna_site
from client.cli.options import Signer
from client.site import withdrawn as own
from server.cli.cli import app as lacuna
from server.federation import leaving, provision, rotation
from server.federation.federation import SIGNING_KEY, SIGNING_PUBLIC
from server.journal import facts
from shared.base.chain import Chain
from shared.base.errors import ConfigError, DataError
from shared.base.files import canonical
from shared.model import bundle
from shared.trust.keys import new_site_key, parse_site_key
from shared.trust.leaving import RECALLED, Note, Recall, Recalled, Since, write_note, write_recalled

pytestmark = pytest.mark.slow  # left out of `make fast`

GONE = "sub-northsecret001"


# --- a person -------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> Path:
    for i, site in enumerate(("north", "south")):
        prepare_here(write_cohort(tmp_path / "world" / "sites" / site, site, [("T1", "T2")] * 6, seed=i))
    return tmp_path / "world"


def trained_on(run: Path) -> set[str]:
    entries = Chain(run / "sites" / "north" / own.TRAINED).entries()
    return {name for entry in entries for name in entry["people"]}


@pytest.mark.usefixtures("probe")
@pytest.mark.parametrize("how", ["a cache from a backup", "the decision taken back"])
def test_who_left_is_not_trained_on_whatever_comes_back(how: str, small: Path, tmp_path: Path) -> None:
    north, state = small / "sites" / "north", tmp_path / "run" / "sites" / "north"
    shutil.copytree(north / "derivatives", tmp_path / "backup")
    state.mkdir(parents=True)
    words = ["withdraw", GONE, "--state", str(state), "--cohort", str(north), "--why", "asked for it"]
    assert CliRunner().invoke(lacuna_site, words).exit_code == 0
    if how == "the decision taken back":
        words = ["review", str(north), "--accept", GONE, "--why", "looked again"]
        assert CliRunner().invoke(lacuna_site, words).exit_code == 0
        prepare_here(north)
    else:
        (north / "decisions.json").unlink()
        shutil.rmtree(north / "derivatives")
        shutil.copytree(tmp_path / "backup", north / "derivatives")
    relay(tmp_path / "run", config(small, rounds=1, targets=("T1",)))
    assert len(trained_on(tmp_path / "run")) == 5
    assert GONE not in trained_on(tmp_path / "run")


@pytest.mark.usefixtures("probe")
def test_a_round_that_was_under_way_when_somebody_left_is_given_up(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from client.round import work

    honest, state = work.train, tmp_path / "run" / "sites" / "north"

    def leaving_meanwhile(*arguments: Any, **options: Any) -> Any:
        done = honest(*arguments, **options)
        if options["seed"][1] == "north" and options["round"] == 1:
            own.withdraw(state, GONE, "asked for it")
        return done

    monkeypatch.setattr(work, "train", leaving_meanwhile)
    relay(tmp_path / "run", config(small, targets=("T1",), min_sites=1))
    first, second, third = (f for f in facts.read(tmp_path / "run" / "rounds.jsonl") if f.phase == "fit")
    assert (first.sites["north"].status, third.sites["north"].status) == ("ok", "ok")
    assert second.sites["north"].status == "refused"
    assert second.sites["north"].reason.endswith("has left meanwhile: it is given up")
    (part,) = own.parts_of(state, GONE)
    assert part.phases["fit"] == (0, 0, 1)


def test_a_note_names_nobody(small: Path, tmp_path: Path) -> None:
    """Run, phase, round, site and time; not who, not how many, not why."""
    part = own.Part(run="r", first=Since(phase="fit", round=3), phases={"fit": (3, 9, 7)}, summed=True, known=True)
    federation, state = make(tmp_path / "federation"), tmp_path / "north"
    enter(federation, state, "north")
    number, at = own.withdraw(state, GONE, "a very private reason")
    path = own.note(state, "north", number, at, [part])
    record = json.loads(path.read_bytes())
    assert set(record.pop("signature")) <= set("0123456789abcdef")
    assert record == {"schema": 1, "site": "north", "at": int(at), "runs": {"r": {"phase": "fit", "round": 3}}}
    assert leaving.read_site_note(federation, path).runs == {"r": Since(phase="fit", round=3)}


KEY = parse_site_key(new_site_key(), "key")
NOTE = Note(site="north", at=1, runs={"r": Since(phase="fit", round=1)})


def edited(content: bytes, **changes: Any) -> bytes:
    return canonical({**json.loads(content), **changes})


NOTES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "another round": (
        lambda c: edited(c, runs={"r": {"phase": "fit", "round": 0}}),
        "the key of north did not sign it",
    ),
    "another site's name": (lambda c: edited(c, site="south"), "the key of south did not sign it"),
    "a stranger's": (lambda c: write_note(NOTE, KEY), "the key of north did not sign it"),
    "of nobody": (lambda c: edited(c, site="west"), "is of site west, which was never admitted"),
    "a run that is a path": (lambda c: edited(c, runs={"../r": {"phase": "fit", "round": 0}}), "must match"),
    "a round out of all bounds": (lambda c: edited(c, runs={"r": {"phase": "fit", "round": 2**64}}), "round="),
    "no signature": (lambda c: edited(c, signature=None), "signature: must be hex digits"),
    "more than it may say": (lambda c: edited(c, subject=GONE), "unknown key"),
    "other bytes for the same": (lambda c: c.replace(b": ", b":  ", 1), "is not written as Lacuna writes it"),
    "no end": (lambda c: c[:-9], "can't be read"),
    "nothing": (lambda c: b"", "can't be read"),
}


@pytest.mark.parametrize("name", NOTES)
def test_a_note_that_its_site_did_not_sign_marks_nothing(name: str, tmp_path: Path) -> None:
    change, says = NOTES[name]
    federation = make(tmp_path / "federation")
    for site in ("north", "south"):
        enter(federation, tmp_path / site, site)
    number, at = own.withdraw(tmp_path / "north", GONE, "asked")
    part = own.Part(run="r", first=Since(phase="fit", round=1), phases={}, summed=False, known=True)
    path = own.note(tmp_path / "north", "north", number, at, [part])
    path.write_bytes(change(path.read_bytes()))
    (tmp_path / "runs" / "r").mkdir(parents=True)
    (tmp_path / "runs" / "r" / "rounds.jsonl").touch()
    words = ["--federation", str(federation), "--runs", str(tmp_path / "runs")]
    done = CliRunner().invoke(lacuna, ["federation", "withdrawn", str(path), *words])
    assert isinstance(done.exception, DataError)
    assert says in str(done.exception)
    assert [p.name for p in (tmp_path / "runs").rglob("*") if p.is_file()] == ["rounds.jsonl"]


# --- a bundle -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def unexported() -> Iterator[None]:
    """Bundles without the exported denoiser, which takes a minute to make and is never read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle, "export_denoiser", lambda model, folder: {})
        yield


@pytest.fixture(scope="module")
def recalled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A federation, a bundle of its own, and the list that takes it back."""
    folder = tmp_path_factory.mktemp("recalled")
    make(folder / "federation")
    final = release(folder / "final", "amm_diff", AMM_TINY)
    bundle.export(final, folder / "bundle", key=folder / "federation" / SIGNING_KEY)
    shutil.copytree(folder / "federation", folder / "before")
    words = ["recall", str(folder / "bundle"), "--federation", str(folder / "federation"), "--why", "north left"]
    done = CliRunner().invoke(lacuna, ["federation", *words])
    assert done.stdout == f"send this to the sites: {folder / 'federation' / RECALLED}\n", done.exception
    return folder


def trust(tmp_path: Path, recalled: Path, content: bytes | None = None) -> Signer:
    """A site with the federation's key, and beside it the list."""
    shutil.copy(recalled / "federation" / SIGNING_PUBLIC, tmp_path / "signing.pub")
    (tmp_path / RECALLED).write_bytes((recalled / "federation" / RECALLED).read_bytes() if content is None else content)
    return Signer(trust=tmp_path / "signing.pub")


def test_a_recalled_bundle_is_refused_in_one_line_and_another_is_not(recalled: Path, tmp_path: Path) -> None:
    site = trust(tmp_path, recalled)
    words = ["synthesize", "--bundle", str(recalled / "bundle"), "--trust", str(site.trust), "--subject", "x"]
    done = CliRunner().invoke(lacuna_site, [*words, "--out", str(tmp_path / "out")])
    assert isinstance(done.exception, DataError)
    assert str(done.exception).startswith(f"bundle {recalled / 'bundle'}: was recalled at ")
    assert str(done.exception).endswith(": north left; use a newer one")
    assert not (tmp_path / "out").exists()
    other = release(tmp_path / "final", "amm_diff", AMM_TINY, seed=1)
    bundle.export(other, tmp_path / "bundle", key=recalled / "federation" / SIGNING_KEY)
    assert site.load(tmp_path / "bundle").trusted


def test_the_same_weights_in_another_bundle_are_recalled_too(recalled: Path, tmp_path: Path) -> None:
    """Exported anew with other figures it has another hash, and the same people in it."""
    made = bundle.export(
        recalled / "final", tmp_path / "bundle", key=recalled / "federation" / SIGNING_KEY, metrics={"psnr": 30.0}
    )
    assert (made / "bundle.json").read_bytes() != (recalled / "bundle" / "bundle.json").read_bytes()
    with pytest.raises(DataError, match="was recalled"):
        trust(tmp_path, recalled).load(made)


def stranger(content: bytes) -> bytes:
    return write_recalled(Recalled(federation="strokes"), Ed25519PrivateKey.generate())


LISTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "emptied": (
        lambda c: c.partition(b"\n")[0] + b"\n" + canonical({"federation": "strokes", "schema": 1, "weights": {}}),
        "the signature does not fit: it was changed",
    ),
    "a stranger's": (stranger, "not by the trusted key"),
    "cut short": (lambda c: c[:40], "its first line is no signature"),
    "cut at its end": (lambda c: c[:-20], "the signature does not fit"),
    "nothing": (lambda c: b"", "its first line is no signature"),
    "a book": (lambda c: c + b" " * 2**20, "is over 1048576 bytes"),
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_that_was_changed_opens_no_bundle(name: str, recalled: Path, tmp_path: Path) -> None:
    """Neither the recalled one nor any other: a damaged list is not taken for none."""
    change, says = LISTS[name]
    site = trust(tmp_path, recalled, change((recalled / "federation" / RECALLED).read_bytes()))
    with pytest.raises(DataError, match=says):
        site.load(recalled / "bundle")


def test_who_holds_no_key_of_the_federation_recalls_nothing(recalled: Path, tmp_path: Path) -> None:
    other = release(tmp_path / "final", "amm_diff", AMM_TINY, seed=1)
    bundle.make_signing_key(tmp_path / "own.key")
    made = bundle.export(other, tmp_path / "bundle", key=tmp_path / "own.key")
    shutil.copytree(recalled / "before", tmp_path / "federation")
    with pytest.raises(ConfigError, match="which is not this federation's"):
        leaving.recall(tmp_path / "federation", made, why="a stranger's", now=NOW)
    assert not (tmp_path / "federation" / RECALLED).exists()
    with pytest.raises(ConfigError, match="why="):
        Recall(why="two\nlines", at="now")


def test_the_list_outlives_the_key_that_signed_it(recalled: Path, tmp_path: Path) -> None:
    """A new signing key signs it anew, and takes bundles back that the old one signed."""
    federation = tmp_path / "federation"
    shutil.copytree(recalled / "federation", federation)
    rotation.rotate_signing(federation)
    shutil.copy(federation / SIGNING_PUBLIC, tmp_path / "signing.pub")
    shutil.copy(federation / RECALLED, tmp_path / RECALLED)
    made = bundle.export(recalled / "final", tmp_path / "bundle", key=federation / SIGNING_KEY)
    with pytest.raises(DataError, match="was recalled"):
        Signer(trust=tmp_path / "signing.pub").load(made)
    old = release(tmp_path / "older", "amm_diff", AMM_TINY, seed=2)
    signed_before = bundle.export(old, tmp_path / "old", key=recalled / "federation" / SIGNING_KEY)
    leaving.recall(federation, signed_before, why="south left", now=NOW)
    with leaving.opened(federation) as found:
        assert {one.why for one in leaving.listed(found).weights.values()} == {"north left", "south left"}


# --- a site ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("probe")
def test_a_site_that_is_revoked_with_its_data_marks_every_run_that_had_it(world: Path, tmp_path: Path) -> None:
    federation, runs = make(tmp_path / "federation"), tmp_path / "runs"
    for site in ("north", "south"):
        enter(federation, tmp_path / site, site)
    relay(runs / "both", config(world, rounds=1, sites=("north", "south")))
    relay(runs / "other", config(world, rounds=1, sites=("east", "south")))
    words = ["--federation", str(federation), "--runs", str(runs), "--withdraw", "--why", "left the study"]
    for again in (False, True):
        done = CliRunner().invoke(lacuna, ["federation", "revoke", "north", *words])
        assert done.exit_code == 0, done.exception
        assert ("north is revoked" in done.stdout) is not again
        assert "both has data of north, which was withdrawn, from level round 1 on (checkpoint 000002" in done.stdout
        assert "lacuna resume both --without north" in done.stdout
        assert "other" not in done.stdout
    assert not (runs / "other" / "withdrawn.json").exists()
    with pytest.raises(ConfigError, match="was revoked already"):
        provision.revoke(federation, "north", now=NOW)
