"""Keys and certificates renewed: who must know, who need not, and that no kill or crowd leaves a half."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from support.disk.faults import Killed, failing
from support.flower.federations import NOW, signer, site, tree

from client.site import enrol
from server.federation import provision, rotation
from server.federation.authority import signed
from server.federation.federation import load, opened
from server.federation.rotation import Amendment
from shared.base.errors import ConfigError
from shared.trust.kit import read_kit
from shared.trust.manifest import Plane

pytestmark = pytest.mark.slow  # left out of `make fast`

LACUNA = (sys.executable, "-P", "-m", "server.cli", "federation")


def test_a_new_server_certificate_leaves_the_kits_alone(three: Path) -> None:
    before = tree(three)
    assert rotation.rotate_server(three, now=NOW).kits == ()
    after = tree(three)
    assert {path for path in before if before[path] != after[path]} == {"server/server.key", "server/server.crt"}


def test_a_new_ca_comes_beside_the_old_and_the_next_server_certificate_drops_it(three: Path, tmp_path: Path) -> None:
    def authorities(revision: int) -> int:
        done = enrol.join(tmp_path / "north", three / "kits" / "north.kit", now=NOW)
        assert done.head.revision == revision
        return (tmp_path / "north" / "federation" / "ca.crt").read_bytes().count(b"BEGIN CERTIFICATE")

    old = (three / "ca" / "ca.key").read_bytes()
    assert authorities(1) == 1
    assert len(rotation.rotate_ca(three, now=NOW).kits) == 3
    assert (three / "ca" / "ca.key").read_bytes() != old
    assert authorities(2) == 2
    with pytest.raises(ConfigError, match="rotate server` first"):
        rotation.rotate_ca(three, now=NOW)
    with pytest.raises(ConfigError, match="rotate server` first"):
        rotation.amend(three, Amendment(address="elsewhere.example.org:443"), now=NOW)
    assert len(rotation.rotate_server(three, now=NOW).kits) == 3
    assert authorities(3) == 1
    assert old not in b"".join(content for _, content in tree(three).values())


def test_the_servers_own_parts_trust_the_ca_of_the_certificate_that_it_shows(three: Path) -> None:
    def holds() -> bool:
        shown, trusted = ((three / "server" / name).read_bytes() for name in ("server.crt", "ca.crt"))
        return signed(x509.load_pem_x509_certificate(shown), x509.load_pem_x509_certificate(trusted))

    assert holds()
    rotation.rotate_ca(three, now=NOW)
    assert holds()
    rotation.rotate_server(three, now=NOW)
    assert holds()
    assert (three / "server" / "ca.crt").read_bytes() == (three / "ca" / "ca.crt").read_bytes()


def test_the_old_signing_key_vouches_for_the_new_one_and_is_gone(three: Path) -> None:
    old, secret = signer(three), (three / "signing" / "signing.key").read_bytes()
    assert len(rotation.rotate_signing(three).kits) == 3
    rotation.rotate_signing(three)
    assert signer(three) != old
    assert secret not in b"".join(content for _, content in tree(three).values())
    kit = read_kit((three / "kits" / "east.kit").read_bytes(), "kit", trusted=old)
    assert kit.head.revision == 3
    assert load(three).manifest.version == 1  # the agreement is the same


def test_an_amendment_names_the_version_before(three: Path) -> None:
    first = load(three).manifest
    changes = Amendment(modalities=["T1", "T2", "FLAIR"], methods=["any2all", "amm_diff"], grid=Plane.parse("96x96@2"))
    done = rotation.amend(three, changes, now=NOW + timedelta(days=1))
    assert (done.manifest.version, done.manifest.before) == (2, first.digest)
    assert done.manifest == load(three).manifest
    assert done.manifest.methods == ("amm_diff", "any2all")
    assert set(done.manifest.intensities.rules) == {"T1", "T2", "FLAIR"}
    assert len(done.kits) == 3
    with pytest.raises(ConfigError, match="nothing would change"):
        rotation.amend(three, Amendment(quorum=2), now=NOW)
    certificate = (three / "server" / "server.crt").read_bytes()
    moved = rotation.amend(three, Amendment(address="[::1]:443"), now=NOW)
    assert moved.manifest.version == 2
    assert (three / "server" / "server.crt").read_bytes() != certificate
    assert b'"superlink": "[::1]:443"' in (three / "kits" / "north.kit").read_bytes()


# --- kills and crowds


@pytest.mark.parametrize(
    "act",
    [
        lambda folder, request: rotation.rotate_signing(folder),
        lambda folder, request: rotation.rotate_ca(folder, now=NOW),
        lambda folder, request: provision.admit(folder, request, now=NOW),
        lambda folder, request: provision.revoke(folder, "south", now=NOW),
    ],
    ids=["signing", "ca", "admit", "revoke"],
)
def test_a_kill_anywhere_leaves_the_old_or_the_new_whole(
    three: Path, tmp_path: Path, act: Callable[[Path, Path], object]
) -> None:
    request = site(tmp_path / "west", "west")
    before, fates, steps = tree(three), set(), 0
    while True:
        folder = tmp_path / f"copy{steps}"
        shutil.copytree(three, folder)
        with failing(folder, steps) as faults, suppress(Killed):
            act(folder, request)
        with opened(folder) as loaded:  # what the next verb sees
            assert not (folder / ".change").exists()
            kits = {path.stem for path in (folder / "kits").iterdir()}
            assert kits == {name for name, entry in loaded.sites.items() if entry.status == "admitted"}
            for path in (folder / "kits").iterdir():
                kit = read_kit(path.read_bytes(), path.name, trusted=signer(folder))
                assert kit.head.revision == loaded.state.revision
                assert kit.files["ca.crt"] == loaded.authorities
            fates.add(tree(folder) == before)
        if not faults.dead:
            break
        steps += 1
    assert steps >= 5
    assert fates == {True, False}


def test_many_admissions_at_once_lose_none(federation: Path, tmp_path: Path) -> None:
    names = [f"site-{i}" for i in range(6)]
    requests = [site(tmp_path / name, name) for name in names]
    running = [
        subprocess.Popen([*LACUNA, "admit", str(request), "--federation", str(federation)], stdout=subprocess.PIPE)
        for request in requests
    ]
    assert [process.wait() for process in running] == [0] * 6
    for process in running:
        process.communicate()
    assert sorted(load(federation).sites) == names
    assert sorted(path.stem for path in (federation / "kits").iterdir()) == names
