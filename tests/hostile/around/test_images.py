"""An image under the right name that is not the federation's: `lacuna-site up` starts none of it."""

import importlib.metadata
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from client.node import launcher
from client.site.settings import Settings
from server.cli.cli import app
from shared.base.errors import ConfigError
from shared.trust import image
from shared.trust.keys import public_pem, read_signing_key
from shared.trust.signed import Signature
from shared.trust.warrant import TRUSTED

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
GOOD, OTHER = f"sha256:{'a1' * 32}", f"sha256:{'b2' * 32}"
SIGNING, STRANGER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / TRUSTED).parent.mkdir(parents=True)
    (tmp_path / TRUSTED).write_bytes(public_pem(SIGNING.public_key()))
    (tmp_path / image.FOLDER).mkdir()
    return tmp_path


def check(state: Path, id: str, built: str = "federation") -> None:
    launcher._check_signed(state, Settings(image="lacuna-client:0.1.0", built=built), id)


def test_an_image_that_the_federation_signed_is_started(state: Path) -> None:
    (state / image.FOLDER / "images.sig").write_bytes(image.sign([OTHER, GOOD], SIGNING))
    check(state, GOOD)
    check(state, OTHER)


FORGED: dict[str, bytes] = {
    "no signature": b"",
    "another image's": image.sign([OTHER], SIGNING),
    "a stranger's": image.sign([GOOD], STRANGER),
    "another image's under this id": image.sign([OTHER], SIGNING).replace(OTHER.encode(), GOOD.encode()),
    "one for another purpose": f"{GOOD} ".encode() + Signature.make(SIGNING, GOOD.encode()).line(),
    "one that was cut": image.sign([GOOD], SIGNING)[:-9],
    "the trusted key over a stranger's signature": image.sign([GOOD], STRANGER).replace(
        STRANGER.public_key().public_bytes_raw().hex().encode(), SIGNING.public_key().public_bytes_raw().hex().encode()
    ),
    "not a line": b"\xff" * 100,
}


@pytest.mark.parametrize("forged", FORGED)
def test_an_image_without_its_signature_is_not_started(state: Path, forged: str) -> None:
    (state / image.FOLDER / "images.sig").write_bytes(FORGED[forged])
    with pytest.raises(ConfigError, match=r"image=lacuna-client:0\.1\.0: sha256:a1.*is not signed by the federation"):
        check(state, GOOD)
    check(state, GOOD, built="here")  # a hospital's own word


def test_without_a_folder_of_signatures_nothing_is_signed(state: Path) -> None:
    shutil.rmtree(state / image.FOLDER)
    with pytest.raises(ConfigError, match="put the file of signatures that came with it into"):
        check(state, GOOD)


@pytest.mark.parametrize("name", ["lacuna-client:0.1.0", "sha256:abc", f"{GOOD} {OTHER}", f"{GOOD}\n", ""])
def test_a_name_is_never_signed(name: str) -> None:
    with pytest.raises(ConfigError, match="must be an id, sha256:"):
        image.sign([name], SIGNING)


def test_up_looks_before_it_makes_anything(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    engine = SimpleNamespace(
        images=SimpleNamespace(get=lambda name: SimpleNamespace(id=OTHER)),  # the tag was moved
        containers=SimpleNamespace(create=lambda *a, **k: made.append(a), get=lambda name: made.append(name)),
        info=dict,
    )

    @contextmanager
    def here() -> Iterator[Any]:
        yield engine

    monkeypatch.setattr(launcher, "_engine", here)
    monkeypatch.setattr(launcher, "_texts", lambda state: (SimpleNamespace(site="north"), {}))
    (state / image.FOLDER / "images.sig").write_bytes(image.sign([GOOD], SIGNING))
    with pytest.raises(ConfigError, match="is not signed by the federation"):
        launcher.up(state, Settings(image="lacuna-client:0.1.0", cohorts=(str(tmp_path),)))
    assert made == []


def test_the_coordinator_signs_by_a_verb(tmp_path: Path) -> None:
    folder, out = tmp_path / "federation", tmp_path / "images.sig"
    words = ["--name", "strokes", "--address", "fl.test:443", "--modality", "T1", "--modality", "T2"]
    done = CliRunner().invoke(app, ["federation", "init", str(folder), *words, "--method", "amm_diff"])
    assert done.exit_code == 0, done.exception
    done = CliRunner().invoke(
        app, ["federation", "sign-image", GOOD, OTHER, "--federation", str(folder), "--out", str(out)]
    )
    assert done.exit_code == 0, done.exception
    (tmp_path / "sigs").mkdir()
    shutil.copy(out, tmp_path / "sigs")
    trusted = read_signing_key(folder / "signing" / "signing.key").public_key()
    assert image.is_signed(GOOD, tmp_path / "sigs", trusted)
    assert not image.is_signed(GOOD, tmp_path / "sigs", SIGNING.public_key())


# --- what is in an image ----------------------------------------------------------------------------------------------


def test_every_image_lists_what_is_installed_in_it() -> None:
    for name in ("client", "server", "postgres", "proxy"):
        text = (DEPLOY / f"{name}.Dockerfile").read_text()
        assert f"sh /tmp/sbom.sh lacuna-{name} >/usr/share/lacuna/sbom.cdx.json" in text
        assert text.index("sbom.sh") > max(text.rfind("pip install"), text.rfind("apt-get install"))


def test_the_list_is_cyclonedx_and_has_what_is_here() -> None:
    if shutil.which("dpkg-query") is None:
        pytest.skip("dpkg-query is absent: not a Debian")
    done = subprocess.run(
        ["sh", str(DEPLOY / "sbom.sh"), "lacuna-test", sys.executable], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert (found["bomFormat"], found["specVersion"]) == ("CycloneDX", "1.5")
    assert found["metadata"]["component"] == {"type": "container", "name": "lacuna-test"}
    versions = {one["name"]: one["version"] for one in found["components"]}
    for name in ("cryptography", "torch", "flwr"):
        assert versions[name] == importlib.metadata.version(name)
    assert "dpkg" in versions
    purls = [one["purl"] for one in found["components"]]
    assert len(purls) == len(set(purls))
    assert not [purl for purl in purls if "+" in purl or purl.count("@") != 1]
