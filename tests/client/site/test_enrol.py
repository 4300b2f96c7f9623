"""The site's half: a key that never leaves, a request that says nothing else, a kit that is installed whole or not."""

import json
import stat
from contextlib import suppress
from datetime import timedelta
from itertools import count
from pathlib import Path

import pytest
import yaml
from support.disk.disks import Killed, failing
from support.flower.federations import NOW, enter, make, signer, site, tree

from client.site import enrol
from server.federation import federation as disk
from server.federation import provision, rotation
from server.federation.federation import load
from server.federation.rotation import Amendment
from shared.base.errors import ConfigError, DataError
from shared.base.files import locked
from shared.base.names import Address
from shared.base.options import plain
from shared.trust import kit
from shared.trust.keys import fingerprint, parse_site_key, parse_site_line, site_line


@pytest.fixture
def federation(tmp_path: Path) -> Path:
    return make(tmp_path / "federation")


@pytest.fixture
def north(federation: Path, tmp_path: Path) -> Path:
    """A site that has joined."""
    enter(federation, tmp_path / "north", "north")
    return tmp_path / "north"


def kit_of(federation: Path, name: str = "north") -> Path:
    return federation / "kits" / f"{name}.kit"


# --- init


def test_a_site_makes_its_own_key_in_the_form_that_flower_takes(tmp_path: Path) -> None:
    done = enrol.init_site(tmp_path / "north", "north")
    key = tmp_path / "north" / "enrolment" / "site.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700
    assert key.read_bytes().startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----")
    public = (key.parent / "site.pub").read_text()
    assert public == site_line(parse_site_key(key.read_bytes(), "key").public_key()) + "\n"
    assert public.startswith("ecdsa-sha2-nistp384 ")
    assert done.fingerprint == fingerprint(parse_site_line(public.strip(), "here"))


def test_a_request_says_who_and_which_key_and_nothing_else(tmp_path: Path) -> None:
    done = enrol.init_site(tmp_path / "north", "north")
    said = json.loads(done.request.read_text())
    assert said.keys() == {"schema", "site", "public_key", "fingerprint", "versions", "signature"}
    assert said["versions"].keys() == {"lacuna", "flwr"}
    assert len(said["public_key"].split()) == 2  # no comment, which would name the host
    assert str(tmp_path) not in done.request.read_text()
    assert kit.read_request(done.request.read_bytes(), "r").site == "north"


def test_two_sites_never_share_a_state(tmp_path: Path) -> None:
    enrol.init_site(tmp_path / "north", "north")
    before = tree(tmp_path)
    for name, again, says in (
        ("south", False, "is the state of site 'north'"),
        ("south", True, "is the state of site 'north'"),
        ("north", False, "has a key pair already"),
        ("no/rth", False, "must match"),
        ("ca", False, "reserved"),
    ):
        with pytest.raises(ConfigError, match=says):
            enrol.init_site(tmp_path / "north", name, again=again)
    assert tree(tmp_path) == before


# --- join


def test_a_kit_is_installed_as_it_was_signed(federation: Path, north: Path) -> None:
    made = kit.read_kit(kit_of(federation).read_bytes(), "kit", trusted=signer(federation))
    folder = north / "federation"
    assert {path.name for path in folder.iterdir()} == {*kit.FILES, "kit.json"}
    for name, content in made.files.items():
        assert (folder / name).read_bytes() == content
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert (folder / "ca.crt").read_bytes() == (federation / "ca" / "ca.crt").read_bytes()
    assert (folder / "federation.json").read_bytes() == (federation / "federation.json").read_bytes()
    before = tree(north)
    enrol.join(north, kit_of(federation), now=NOW)  # once more, and nothing changes
    assert tree(north) == before


def test_the_first_kit_needs_the_fingerprint_from_the_coordinators_mouth(federation: Path, tmp_path: Path) -> None:
    state = tmp_path / "north"
    path = provision.admit(federation, site(state, "north"), now=NOW).kit
    before = tree(state)
    for told, says in ((None, "by telephone"), ("0" * 32, "not the one|is not, and"), ("12 34", "32 hex digits")):
        with pytest.raises((ConfigError, DataError), match=says):
            enrol.join(state, path, signer=told, now=NOW)
    assert tree(state) == before
    with pytest.raises(ConfigError, match="lacuna-site init"):
        enrol.join(tmp_path / "nobody", path, signer=signer(federation), now=NOW)
    assert enrol.join(state, path, signer=signer(federation).upper(), now=NOW).notes == ()


def test_a_kit_fits_one_site_and_one_key(federation: Path, north: Path, tmp_path: Path) -> None:
    enter(federation, tmp_path / "south", "south")
    before = tree(north)
    with pytest.raises(DataError, match="is for site 'south'; this is 'north'"):
        enrol.join(north, kit_of(federation, "south"), now=NOW)
    other = make(tmp_path / "other")  # a namesake with a key of its own, in a federation of the same name
    namesake = provision.admit(other, site(tmp_path / "namesake", "north"), now=NOW).kit
    with pytest.raises(DataError, match="is for another key"):
        enrol.join(north, namesake, signer=signer(other), now=NOW)
    with pytest.raises(DataError, match="is not, and does not follow, the one that you trust"):
        enrol.join(north, namesake, now=NOW)
    assert tree(north) == before


def test_a_state_belongs_to_one_federation(north: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "other", name="tumours")
    path = provision.admit(other, north / "enrolment" / "north.request.json", now=NOW).kit
    with pytest.raises(DataError, match="is of federation 'tumours'; this state is in 'strokes'"):
        enrol.join(north, path, signer=signer(other), now=NOW)


def test_an_older_kit_is_not_taken_back(federation: Path, north: Path, tmp_path: Path) -> None:
    old = tmp_path / "old.kit"
    old.write_bytes(kit_of(federation).read_bytes())
    rotation.amend(federation, Amendment(quorum=3), now=NOW)
    (note,) = enrol.join(north, kit_of(federation), now=NOW).notes
    assert note.startswith("the federation's manifest changed")
    with pytest.raises(DataError, match="is revision 1, older than the installed 2"):
        enrol.join(north, old, now=NOW)


def test_a_site_follows_the_signing_key(federation: Path, north: Path, tmp_path: Path) -> None:
    first = tmp_path / "first.kit"
    first.write_bytes(kit_of(federation).read_bytes())
    rotation.rotate_signing(federation)
    rotation.rotate_signing(federation)  # it missed one
    (note,) = enrol.join(north, kit_of(federation), now=NOW).notes
    assert "vouches for it" in note
    assert enrol.join(north, kit_of(federation), now=NOW).notes == ()
    with pytest.raises(DataError, match="is not, and does not follow"):  # whoever has the old key has nothing
        enrol.join(north, first, now=NOW)


def test_a_site_changes_its_key_without_a_gap(federation: Path, north: Path, tmp_path: Path) -> None:
    key, old = north / "enrolment" / "site.key", (north / "enrolment" / "site.key").read_bytes()
    request = enrol.init_site(north, "north", again=True).request
    assert key.read_bytes() == old
    enrol.join(north, kit_of(federation), now=NOW)  # a kit for the key in use still fits
    assert key.read_bytes() == old
    path = provision.rotate_site(federation, "north", request, now=NOW).kit
    former = tmp_path / "former.kit"
    former.write_bytes(path.read_bytes())
    done = enrol.join(north, path, now=NOW)
    assert done.notes == ("the site's new key is in use from its next start",)
    assert key.read_bytes() != old
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert site_line(parse_site_key(key.read_bytes(), "key").public_key()) == load(federation).sites["north"].public_key
    assert {p.name for p in key.parent.iterdir()} == {"site.json", "site.key", "site.pub", "north.request.json"}
    again = enrol.init_site(north, "north", again=True).request
    provision.rotate_site(federation, "north", again, now=NOW)
    enrol.join(north, kit_of(federation), now=NOW)
    with pytest.raises(DataError, match="is for another key"):
        enrol.join(north, former, now=NOW)


def test_a_key_that_others_may_read_is_refused(federation: Path, north: Path) -> None:
    (north / "enrolment" / "site.key").chmod(0o640)
    with pytest.raises(ConfigError, match=r"site\.key: mode 0640 lets others at it; must be 0600"):
        enrol.join(north, kit_of(federation), now=NOW)


def test_a_wrong_clock_and_an_old_ca_are_told_apart_from_forgery(federation: Path, tmp_path: Path) -> None:
    state = tmp_path / "north"
    path = provision.admit(federation, site(state, "north"), now=NOW).kit
    for now in (NOW - timedelta(days=2), NOW + timedelta(days=3650)):
        with pytest.raises(DataError, match=r"ca\.crt holds until .* and the clock here says"):
            enrol.join(state, path, signer=signer(federation), now=now)
    enrol.join(state, path, signer=signer(federation), now=NOW)
    assert enrol.expiry_warnings(state, NOW) == []
    (said,) = enrol.expiry_warnings(state, NOW + timedelta(days=3640))
    assert "expires in 10 days" in said
    assert "lacuna-site join" in said


def forge(federation: Path, **changes: bytes) -> bytes:
    """A kit that the coordinator itself made to say something else, and signed."""
    made = kit.read_kit(kit_of(federation).read_bytes(), "kit", trusted=signer(federation))
    loaded = load(federation)
    replaced = {key.replace("_", "."): value for key, value in changes.items()}
    return kit.write_kit(
        {**made.files, **replaced},
        loaded.signing_key(),
        loaded.follows,
        federation="strokes",
        site="north",
        public_key=made.head.public_key,
        revision=9,
        versions=made.head.versions,
    )


def test_a_coordinator_can_not_say_what_runs_at_a_site(federation: Path, north: Path, tmp_path: Path) -> None:
    before = tree(north)
    compose = (north / "federation" / "compose.yaml").read_bytes()
    gpu = (north / "federation" / "gpu.yaml").read_bytes()
    for changes, says in (
        ({"compose_yaml": compose.replace(b"read_only: true", b"read_only: false")}, r"compose\.yaml line \d+ is not"),
        ({"compose_yaml": compose.replace(b"/state:?", b"/:?")[:-1]}, r"compose\.yaml line \d+ is not"),
        ({"compose_yaml": compose + b"  evil:\n    image: evil\n"}, r"compose\.yaml line \d+ is not"),
        ({"gpu_yaml": gpu.replace(b"all", b"1")}, r"gpu\.yaml line 9 is not"),
        ({"addresses_json": b'{\n "superlink": "localhost:18443\\n"\n}\n'}, "addresses.json: superlink="),
        ({"addresses_json": b'{\n "evil": 1,\n "superlink": "localhost:18443"\n}\n'}, "addresses.json line 2 is not"),
        ({"ca_crt": b"nothing"}, "ca.crt: no certificate"),
        ({"ca_crt": (federation / "server" / "server.crt").read_bytes()}, "ca.crt: .* is no CA's certificate"),
        ({"signing_pub": b"another"}, "signing.pub is not the key that signed the kit"),
        ({"federation_sig": b"00 00\n"}, "federation.sig is damaged"),
        ({"federation_json": b"{}\n"}, "federation.sig does not fit federation.json"),
    ):
        (tmp_path / "forged.kit").write_bytes(forge(federation, **changes))
        with pytest.raises(DataError, match=says):
            enrol.join(north, tmp_path / "forged.kit", now=NOW)
    assert tree(north) == before


def test_other_intensity_rules_are_refused(federation: Path, north: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from shared.trust import manifest

    agreed = load(federation).manifest
    for rules in ({"T1": {"low": 0.5, "high": 99.0}}, {}):
        wanted = replace(agreed, intensities=replace(agreed.intensities, rules={**agreed.intensities.rules, **rules}))
        if not rules:
            wanted = replace(agreed, intensities=replace(agreed.intensities, version="0" * 12))
        content = wanted.content()
        signature = manifest.sign(content, load(federation).signing_key())
        (tmp_path / "k").write_bytes(forge(federation, federation_json=content, federation_sig=signature))
        with pytest.raises(DataError, match="has other intensity rules"):
            enrol.join(north, tmp_path / "k", now=NOW)


def test_a_kill_anywhere_leaves_the_old_kit_or_the_new_one(federation: Path, north: Path, tmp_path: Path) -> None:
    import shutil

    request = enrol.init_site(north, "north", again=True).request
    rotation.rotate_ca(federation, now=NOW)
    path = provision.rotate_site(federation, "north", request, now=NOW).kit
    shutil.copytree(north, tmp_path / "new")
    enrol.join(tmp_path / "new", path, now=NOW)
    old, new, fates = tree(north), tree(tmp_path / "new"), []
    for steps in count():
        state = tmp_path / f"copy{steps}"
        shutil.copytree(north, state)
        with failing(state, steps) as faults, suppress(Killed):
            enrol.join(state, path, now=NOW)
        with locked(state):
            pass
        fates.append(tree(state))
        assert fates[-1] in (old, new)
        if not faults.dead:
            break
    assert fates[0] == old
    assert fates[-1] == new
    assert fates.count(new) > 2  # once it was decided, it is finished


# --- what a kit says about running the site


@pytest.mark.parametrize("address", ["fl.example.org:443", "10.0.0.7:8443", "[2001:db8::1]:443"])
def test_the_compose_file_is_whole_and_starts_the_sites_own_node(address: str) -> None:
    written = kit.site_files("St.Mary-1", "strokes", Address.parse(address, "address"))
    assert kit.read_address(written["addresses.json"], "kit") == Address.parse(address, "address")
    service = yaml.safe_load(written["compose.yaml"])["services"]["site"]
    assert address in written["compose.yaml"].decode()
    assert (service["entrypoint"], service["command"]) == (
        ["lacuna-site"],
        ["run", "--state", "/state", "--cohort", "/cohort"],
    )
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert "ports" not in service
    assert service["environment"]["FLWR_TELEMETRY_ENABLED"] == "0"
    mounts = {volume["target"]: volume.get("read_only", False) for volume in service["volumes"]}
    assert mounts == {"/state": False, "/state/enrolment": True, "/state/federation": True, "/cohort": True}
    assert "@" not in written["compose.yaml"].decode().replace("@example", "")
    assert service["healthcheck"]["test"] == ["CMD", "lacuna-site", "status", "--state", "/state", "--quiet"]
    assert list(yaml.safe_load(written["gpu.yaml"])["services"]) == ["site"]


def test_what_is_installed_is_found_again(federation: Path, north: Path) -> None:
    head = enrol.join(north, kit_of(federation), now=NOW).head
    assert json.loads((north / "federation" / "kit.json").read_text()) == plain(head)
    assert head.revision == load(federation).state.revision
    assert disk.versions() == head.versions
