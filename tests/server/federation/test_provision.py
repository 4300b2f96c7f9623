"""The coordinator's folder: made whole or not at all, no site disturbs another, keys stay where they are."""

import base64
import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from support.flower.federations import NOW, enter, make, signer, site, tree

from client.site import enrol
from server.cli import cli
from server.federation import provision, rotation
from server.federation import view as federation_view
from server.federation.federation import load
from shared.base import files
from shared.base.errors import ConfigError, DataError
from shared.base.options import plain
from shared.data.intensities import RULES, rules_version
from shared.trust import manifest
from shared.trust.certificates import utc
from shared.trust.kit import read_kit
from shared.trust.manifest import Plane

# --- init


def test_a_new_federation_has_its_keys_for_its_owner_alone(federation: Path) -> None:
    modes = {path: mode for path, (mode, _) in tree(federation).items()}
    assert {path for path, mode in modes.items() if mode == 0o600} == {
        "ca/ca.key",
        "server/server.key",
        "signing/signing.key",
        "passwords/mlflow",
        "passwords/pgpass",
    }
    for folder in (federation, *(path for path in federation.rglob("*") if path.is_dir())):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_the_manifest_says_what_was_agreed_and_is_signed(federation: Path) -> None:
    loaded = load(federation)
    agreed = loaded.manifest
    assert (agreed.version, agreed.before, agreed.modalities, agreed.methods) == (1, "", ("T1", "FLAIR"), ("amm_diff",))
    assert agreed.intensities.version == rules_version(("T1", "FLAIR"))
    assert agreed.intensities.rules == {"T1": plain(RULES["T1"]), "FLAIR": plain(RULES["FLAIR"])}
    assert agreed.digest == files.sha256((federation / "federation.json").read_bytes())
    text = (federation / "federation.json").read_text()
    (federation / "federation.json").write_text(text.replace('"min_holders": 2', '"min_holders": 1'))
    with pytest.raises(DataError, match="does not fit"):
        load(federation)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"name": "a/b"}, "name='a/b': must match"),
        ({"name": "Server"}, "reserved"),
        ({"address": "localhost"}, "address='localhost': must be HOST:PORT"),
        ({"address": "localhost:0"}, "HOST:PORT"),
        ({"address": "two words:443"}, "host name or an IP address"),
        ({"address": "1.2.3.400:443"}, "host name or an IP address"),
        ({"address": "::1:443"}, "in brackets"),
        ({"names": ["-bad"]}, "name='-bad'"),
        ({"modalities": ["T9"]}, "modality='T9': must be one of"),
        ({"modalities": []}, "modalities=\\(\\): must be one or more"),
        ({"methods": ["gan"]}, "method='gan': must be one of"),
        ({"min_holders": 4}, "quorum=3: must be min_holders=4 or more"),
        ({"server_days": 900}, "server_days=900"),
        ({"server_days": 700, "ca_days": 600}, "outlive"),
    ],
)
def test_a_wrong_word_is_named_and_nothing_is_left(tmp_path: Path, wrong: dict[str, object], says: str) -> None:
    right = {"name": "strokes", "address": "localhost:443", "modalities": ["T1"], "methods": ["amm_diff"]}
    with pytest.raises(ConfigError, match=says):
        provision.init(tmp_path / "new", provision.NewFederation(**(right | wrong)), now=NOW)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_not_overwritten(federation: Path) -> None:
    before = tree(federation)
    with pytest.raises(ConfigError, match="something is there"):
        make(federation)
    assert tree(federation) == before
    with pytest.raises(ConfigError, match="no federation there"):
        provision.revoke(federation.parent, "north", now=NOW)


def test_the_same_words_lie_in_the_same_places(tmp_path: Path) -> None:
    one, two = make(tmp_path / "one"), make(tmp_path / "two")
    for folder in (one, two):
        enter(folder, tmp_path / f"{folder.name}-north", "north")
    assert tree(one).keys() == tree(two).keys()
    public = ("state.json", "federation.json")
    assert [tree(one)[path] for path in public] == [tree(two)[path] for path in public]


# --- sites come and go


def test_admitting_a_site_twice_changes_nothing(federation: Path, tmp_path: Path) -> None:
    request = site(tmp_path / "north", "north")
    provision.admit(federation, request, now=NOW)
    before = tree(federation)
    assert provision.admit(federation, request, now=NOW + timedelta(days=3)).kit.name == "north.kit"
    assert tree(federation) == before


def test_coming_and_going_disturbs_no_other(three: Path, tmp_path: Path) -> None:
    """But for the kits, each of which names all sites: they are written anew when one comes, or has another key."""

    def others(*, kits: bool) -> dict[str, tuple[int, bytes]]:
        found = {path: content for path, content in tree(three).items() if Path(path).stem not in ("west", "east")}
        return {path: content for path, content in found.items() if kits == path.startswith("kits/")}

    def named() -> dict[str, str]:
        opened = read_kit((three / "kits" / "north.kit").read_bytes(), "kit", trusted=signer(three))
        return dict(json.loads(opened.files["sites.json"]))

    before, kits = others(kits=False), others(kits=True)
    assert {"sites/north.json", "sites/south.pub", "federation.json"} < before.keys()
    provision.admit(three, site(tmp_path / "west", "west"), now=NOW)
    assert others(kits=False) == before
    assert others(kits=True).keys() == kits.keys()
    assert list(named()) == ["east", "north", "south", "west"]
    first, kits = named()["west"], others(kits=True)
    provision.revoke(three, "east", why="left", now=NOW)
    assert others(kits=False) == before
    assert others(kits=True) == kits
    again = enrol.init_site(tmp_path / "west", "west", again=True).request
    provision.rotate_site(three, "west", again, now=NOW)
    assert others(kits=False) == before
    assert list(named()) == ["north", "south", "west"]
    assert named()["west"] != first


def test_a_revoked_site_stays_known_and_out(three: Path, tmp_path: Path) -> None:
    request = tmp_path / "north" / "enrolment" / "north.request.json"
    provision.revoke(three, "north", why="its disk was stolen", now=NOW)
    assert not (three / "kits" / "north.kit").exists()
    entry = load(three).sites["north"]
    assert (entry.status, entry.why, entry.revoked) == ("revoked", "its disk was stolen", utc(NOW))
    with pytest.raises(ConfigError, match="was revoked already"):
        provision.revoke(three, "north", now=NOW)
    with pytest.raises(ConfigError, match=rf"revoked at {utc(NOW)} \(its disk was stolen\); --again"):
        provision.admit(three, request, now=NOW)
    with pytest.raises(ConfigError, match="was revoked at"):
        provision.rotate_site(three, "north", request, now=NOW)
    with pytest.raises(ConfigError, match="site='west': was never admitted"):
        provision.revoke(three, "west", now=NOW)
    rotation.rotate_signing(three)
    assert not (three / "kits" / "north.kit").exists()  # a rotation gives it none
    assert provision.admit(three, request, again=True, now=NOW).entry.status == "admitted"
    assert load(three).sites["north"].revoked is None


def test_a_key_that_was_given_up_is_never_taken_again(three: Path, tmp_path: Path) -> None:
    old = tmp_path / "old.json"
    shutil.copy(tmp_path / "north" / "enrolment" / "north.request.json", old)
    new = enrol.init_site(tmp_path / "north", "north", again=True).request
    with pytest.raises(ConfigError, match=r"is admitted with another key.*rotate north --request"):
        provision.admit(three, new, now=NOW)
    with pytest.raises(ConfigError, match="has this very key"):
        provision.rotate_site(three, "north", old, now=NOW)
    with pytest.raises(ConfigError, match="is of site 'north', not of 'east'"):
        provision.rotate_site(three, "east", new, now=NOW)
    done = provision.rotate_site(three, "north", new, now=NOW)
    assert len(done.entry.retired) == 1
    for again in (False, True):
        with pytest.raises(ConfigError, match="gave this key up"):
            provision.admit(three, old, again=again, now=NOW)
    with pytest.raises(ConfigError, match="gave this key up"):
        provision.rotate_site(three, "north", old, now=NOW)


def test_a_site_revoked_and_taken_back_with_another_key_keeps_both_on_record(three: Path, tmp_path: Path) -> None:
    old = load(three).sites["north"]
    provision.revoke(three, "north", now=NOW)
    new = enrol.init_site(tmp_path / "north", "north", again=True).request
    with pytest.raises(ConfigError, match="--again"):
        provision.admit(three, new, now=NOW)
    entry = provision.admit(three, new, again=True, now=NOW).entry
    assert [retired.public_key for retired in entry.retired] == [old.public_key]


def test_names_and_keys_belong_to_one_site_each(three: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is a site 'north'; names differ in more than case"):
        provision.admit(three, site(tmp_path / "other", "NORTH"), now=NOW)
    from shared.trust.keys import parse_site_key
    from shared.trust.kit import Versions, write_request

    key = parse_site_key((tmp_path / "north" / "enrolment" / "site.key").read_bytes(), "north")
    (tmp_path / "copy.json").write_bytes(write_request("west", key, Versions(lacuna="0.1.0", flwr="1.41.0")))
    with pytest.raises(ConfigError, match="its key is that of site 'north'"):
        provision.admit(three, tmp_path / "copy.json", now=NOW)
    for name in ("ca", "Signing", "../up", "", "a b"):
        with pytest.raises(ConfigError, match="site="):
            write_request(name, key, Versions(lacuna="0.1.0", flwr="1.41.0"))


def test_what_the_site_tells_by_telephone_must_fit(federation: Path, tmp_path: Path) -> None:
    done = enrol.init_site(tmp_path / "north", "north")
    before = tree(federation)
    for told, says in (("0" * 32, "Do not admit it"), ("12", "32 hex digits"), (done.fingerprint[:-1], "32 hex")):
        with pytest.raises(ConfigError, match=says):
            provision.admit(federation, done.request, compared=told, now=NOW)
    assert tree(federation) == before
    assert not provision.admit(federation, done.request, now=NOW).entry.compared
    aloud = " - ".join(done.fingerprint[i : i + 4].upper() for i in range(0, 32, 4))
    assert provision.admit(federation, done.request, compared=aloud, now=NOW).entry.compared
    assert provision.admit(federation, done.request, now=NOW).entry.compared  # once compared, compared


def test_another_version_is_said(federation: Path, tmp_path: Path) -> None:
    from shared.trust.keys import new_site_key, parse_site_key
    from shared.trust.kit import Versions, write_request

    key = parse_site_key(new_site_key(), "site key")
    (tmp_path / "r.json").write_bytes(write_request("north", key, Versions(lacuna="0.0.9", flwr="1.41.0")))
    (note,) = provision.admit(federation, tmp_path / "r.json", now=NOW).notes
    assert note.startswith("north has lacuna 0.0.9, the coordinator ")


# --- secrets


@pytest.mark.parametrize("wide", [0o640, 0o604, 0o660, 0o700 | 0o007])
def test_private_keys_that_others_may_read_are_refused(three: Path, tmp_path: Path, wide: int) -> None:
    acts: dict[str, Callable[[], object]] = {
        "signing/signing.key": lambda: provision.admit(three, site(tmp_path / "west", "west"), now=NOW),
        "ca/ca.key": lambda: rotation.rotate_server(three, now=NOW),
    }
    for path, act in acts.items():
        (three / path).chmod(wide)
        before = tree(three)
        with pytest.raises(ConfigError, match=f"{path}: mode {wide:04o} lets others at it; must be 0600"):
            act()
        assert tree(three) == before
        (three / path).chmod(0o600)


def secrets_of(path: Path) -> list[bytes]:
    """A private key in every form that it could take in a text."""
    content = path.read_bytes()
    if b"OPENSSH" in content:
        key = serialization.load_ssh_private_key(content, password=None)
    else:
        key = serialization.load_pem_private_key(content, password=None)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        raw = key.private_numbers().private_value.to_bytes(48, "big").lstrip(b"\0")
    else:
        raw = key.private_bytes_raw()  # type: ignore[union-attr]
    lines = [line for line in content.splitlines() if not line.startswith(b"-----") and len(line) > 30]
    return [raw, raw.hex().encode(), raw.hex().upper().encode(), base64.b64encode(raw)[:-4], *lines[-2:]]


def test_no_private_key_is_in_anything_that_is_sent_or_shown(three: Path, tmp_path: Path) -> None:
    enrol.init_site(tmp_path / "north", "north", again=True)
    rotation.rotate_signing(three)
    keys = [*three.rglob("*.key"), *tmp_path.glob("*/enrolment/*.key")]
    assert len(keys) == 3 + 4
    sent = [path for path in tmp_path.rglob("*") if path.is_file() and path not in keys]
    assert sum(path.suffix == ".kit" for path in sent) == 3
    assert sum(path.name.endswith(".request.json") for path in sent) == 3
    shown = json.dumps(federation_view.facts(three, NOW)) + "\n".join(
        federation_view.lines(federation_view.facts(three, NOW))
    )
    everything = [*(path.read_bytes() for path in sent), shown.encode()]
    for key in keys:
        for secret in secrets_of(key):
            assert len(secret) > 20
            assert not any(secret in content for content in everything), key
    assert not any(b"PRIVATE" in content for content in everything)


# --- the command


@dataclass(frozen=True, kw_only=True)
class Ended:
    code: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """`lacuna federation ...` in this process."""

    def one(*words: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["lacuna", "federation", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return Ended(code=int(ended.value.code or 0), out=said.out, err=said.err)

    return one


def test_every_verb_warns_of_an_end(tmp_path: Path, run: Callable[..., Ended]) -> None:
    folder = make(tmp_path / "federation", now=datetime.now(UTC), server_days=20)
    request = site(tmp_path / "north", "north")
    again = tmp_path / "again.json"
    for words in (
        ("admit", request),
        ("list",),
        ("list", "--json"),
        ("amend", "--quorum", 3),
        ("rotate", "signing"),
        ("rotate", "server"),
        ("rotate", "north", "--request", again),
        ("rotate", "ca"),
        ("revoke", "north"),
    ):
        if again in words:
            shutil.copy(enrol.init_site(tmp_path / "north", "north", again=True).request, again)
        done = run(*words, "--federation", folder)
        assert done.code == 0, done.err
        assert re.match(
            r"warning: the server's certificate \(server/server.crt\) expires in (19|20) days, at", done.err
        )


def test_the_list_is_there_for_a_program(three: Path, run: Callable[..., Ended]) -> None:
    provision.revoke(three, "east", why="left", now=NOW)
    said = json.loads(run("list", "--json", "--federation", three).out)
    assert {entry["site"]: entry["status"] for entry in said["sites"]} == {
        "east": "revoked",
        "north": "admitted",
        "south": "admitted",
    }
    assert said["signing_key"] == signer(three)
    assert said["manifest"]["hash"] == load(three).manifest.digest
    assert [entry["warning"] for entry in said["certificates"]] == [None, None]
    shown = run("list", "--federation", three).out
    assert "east" in shown
    assert "left" in shown


def test_a_refusal_is_one_line_and_its_code(federation: Path, tmp_path: Path, run: Callable[..., Ended]) -> None:
    (tmp_path / "no.json").write_text("{}")
    for words, code, says in (
        (("admit", tmp_path / "no.json", "--federation", federation), 3, "DataError: request "),
        (("admit", tmp_path / "none.json", "--federation", federation), 3, "is missing"),
        (("revoke", "north", "--federation", federation), 2, "was never admitted"),
        (("list", "--federation", tmp_path / "none"), 2, "no federation there"),
        (("rotate", "north", "--federation", federation), 2, "--request: missing"),
        (("rotate", "ca", "--request", "x", "--federation", federation), 2, "are for a site, not for ca"),
        (("init", tmp_path / "f", "--name", "x", "--address", "a:1"), 2, "--modality and --method"),
    ):
        done = run(*words)
        assert (done.code, done.err.count("\n"), done.out) == (code, 1, ""), done.err
        assert says in done.err


def test_a_manifest_reads_back_as_it_was() -> None:
    agreed = manifest.Manifest(
        federation="strokes",
        version=1,
        before="",
        made="2026-11-21 12:00 UTC",
        lacuna="0.1.0",
        modalities=("T1",),
        intensities=provision.intensities(["T1"]),
        methods=("amm_diff",),
        min_holders=2,
        quorum=3,
        grid=Plane.parse("96x128@1.5"),
    )
    assert manifest.parse(agreed.content(), "here") == agreed
    for text in ("96", "96x", "96x96@", "0x1", "96x96@1e9"):
        with pytest.raises(ConfigError, match="must be"):
            Plane.parse(text)
