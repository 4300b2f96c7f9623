"""A bundle round-trips bit for bit, and every byte class of it that is changed is refused with its own line."""

import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.model.models import AMM_TINY, release

from shared.base.errors import ConfigError, DataError
from shared.base.options import build, plain
from shared.model import bundle
from shared.model.model import read_model
from shared.trust.audits import Limits, Summary, read_summary
from shared.trust.claims import Certificate, PrivacyRecord, not_claimed, short, statement

pytestmark = pytest.mark.slow  # left out of `make fast`

PROBE = {"modalities": ["T1", "T2", "FLAIR"]}


@pytest.fixture
def signed(tmp_path: Path, probe: None) -> tuple[Path, Path]:
    """A bundle and its key."""
    bundle.make_signing_key(tmp_path / "key")
    final = release(tmp_path / "final", "probe", PROBE)
    return bundle.export(final, tmp_path / "bundle", key=tmp_path / "key", metrics={"psnr": 21.5}), tmp_path / "key"


def trusted(key: Path) -> bundle.Ed25519PublicKey:
    return bundle.read_public_key(bundle.public_path(key))


def test_a_bundle_gives_back_the_same_bits(signed: tuple[Path, Path], tmp_path: Path) -> None:
    folder, key = signed
    loaded = bundle.load(folder, trusted=trusted(key))
    before, after = read_model(tmp_path / "final"), loaded.model
    assert loaded.trusted
    assert loaded.signer == bundle.key_id(trusted(key))
    assert after.method == before.method
    assert (after.grid, after.sampler, after.modalities) == (before.grid, before.sampler, before.modalities)
    for name, value in before.net.state_dict().items():
        assert torch.equal(value, after.net.state_dict()[name])
    assert loaded.record["metrics"] == {"psnr": 21.5}
    assert loaded.record["provenance"]["sites"] == 3
    assert loaded.record["intensities"]["rules"]["T1"] == {"below": 3.0, "above": 3.0}


def test_the_same_model_and_key_give_the_same_bytes(signed: tuple[Path, Path], tmp_path: Path) -> None:
    folder, key = signed
    again = bundle.export(tmp_path / "final", tmp_path / "again", key=key, metrics={"psnr": 21.5})
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {p.name: p.read_bytes() for p in again.iterdir()}
    bundle.export(tmp_path / "final", folder, key=key)  # an older bundle is replaced
    assert bundle.load(folder, trusted=trusted(key)).record["metrics"] == {}


CERTIFICATE = Certificate(
    site="north",
    epsilon=3.371,
    budget=7.5,
    delta=2e-5,
    noise=2.19,
    rate=0.125,
    clip=0.3,
    draws=4,
    slices=3,
    steps=207,
    size=240,
    ledger="ab12",
    sequence=214,
    head="f00d",
    others=6,
)


def test_a_bundle_says_what_may_be_said_of_its_privacy(signed: tuple[Path, Path], tmp_path: Path) -> None:
    folder, key = signed
    assert bundle.load(folder, trusted=trusted(key)).record["privacy"]["statement"] == statement(PrivacyRecord())
    record = PrivacyRecord(private=(CERTIFICATE,), not_private=("south",))
    model = json.loads((tmp_path / "final" / "model.json").read_text())
    model["provenance"] |= {"private": True, "privacy": plain(record)}
    (tmp_path / "final" / "model.json").write_text(json.dumps(model))
    bundle.export(tmp_path / "final", folder, key=key)
    said = bundle.load(folder, trusted=trusted(key)).record["privacy"]
    assert said == {"short": short(record), "statement": statement(record), "not_claimed": not_claimed()}
    edit("bundle.json", "3.38", "1.38")(folder)
    with pytest.raises(DataError, match="the signature does not fit"):
        bundle.load(folder, trusted=trusted(key))

    del model["provenance"]["privacy"]  # private, and no numbers: nothing is exported
    (tmp_path / "final" / "model.json").write_text(json.dumps(model))
    with pytest.raises(DataError, match=r"private=true: needs provenance\.privacy"):
        bundle.export(tmp_path / "final", tmp_path / "other", key=key)
    assert not (tmp_path / "other").exists()


def audit_of(folder: Path, **changed: Any) -> Summary:
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    values: dict[str, Any] = {
        "duplicates": 0.01,
        "control": 0.01,
        "auc": 0.5,
        "auc_low": 0.4,
        "auc_high": 0.6,
        "hits": None,
    }
    return Summary(weights=weights, limits=Limits(), lacuna="0", **values | changed)


def test_a_bundle_keeps_what_a_sites_audit_found_whatever_it_found(signed: tuple[Path, Path], tmp_path: Path) -> None:
    folder, key = signed
    audits = [audit_of(folder), audit_of(folder, duplicates=0.97, auc=0.9, auc_low=0.8, auc_high=0.95, hits=0.7)]
    assert [len(audit.warnings) for audit in audits] == [0, 2]
    bundle.export(tmp_path / "final", folder, key=key, audits=audits)
    kept = bundle.load(folder, trusted=trusted(key)).record["audits"]
    assert [build(Summary, one, "audit") for one in kept] == audits
    assert kept[1]["duplicates"] == 0.97


def test_an_audit_of_other_weights_is_refused(signed: tuple[Path, Path], tmp_path: Path) -> None:
    folder, key = signed
    other = dataclasses.replace(audit_of(folder), weights="0" * 64)
    with pytest.raises(ConfigError, match=r"audit: of weights 000000000000; this bundle's are \w{12}"):
        bundle.export(tmp_path / "final", tmp_path / "other", key=key, audits=[other])
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[", "not JSON"),
        ("[]", "must be an audit's summary.json"),
        ("{}", "missing, and it has no default"),
        ('{"subjects": []}', "audit.subjects=[]: unknown key"),
    ],
)
def test_what_is_no_audit_is_named(tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(DataError, match=re.escape(line)):
        read_summary(tmp_path / "summary.json")
    with pytest.raises(ConfigError, match="can't be read"):
        read_summary(tmp_path / "none.json")


def test_an_audit_says_only_what_is_possible(signed: tuple[Path, Path]) -> None:
    folder, _ = signed
    for wrong in ({"duplicates": 1.2}, {"auc_low": 0.55}, {"hits": -0.1}, {"kind": "other"}):
        with pytest.raises(ConfigError, match="must be"):
            audit_of(folder, **wrong)
    with pytest.raises(ConfigError, match=r"auc=0\.4: must be in \[0\.5, 1\]"):
        Limits(auc=0.4)


def flip(name: str, at: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[at] ^= 1
        (folder / name).write_bytes(bytes(content))

    return change


def edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return change


def link_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "elsewhere")
    (folder / "model.safetensors").symlink_to(folder.parent / "elsewhere")


TAMPERINGS: dict[str, tuple[Callable[[Path], None], str]] = {
    "last weight": (flip("model.safetensors", -1), "model.safetensors was changed: sha256"),
    "header of the weights": (flip("model.safetensors", 9), "model.safetensors was changed: sha256"),
    "weights cut": (lambda f: os.truncate(f / "model.safetensors", 50), "model.safetensors was changed: sha256"),
    "weights gone": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
    "weights a link": (link_weights, "model.safetensors is missing"),
    "method renamed": (edit("bundle.json", "probe", "Probe"), "the signature does not fit"),
    "metric raised": (edit("bundle.json", "21.5", "31.5"), "the signature does not fit"),
    "white space": (edit("bundle.json", "{\n", "{ \n"), "the signature does not fit"),
    "manifest gone": (lambda f: (f / "bundle.json").unlink(), "bundle.json is missing"),
    "manifest endless": (lambda f: (f / "bundle.json").write_bytes(b" " * 2**23), "bundle.json is over"),
    "signature gone": (lambda f: (f / "bundle.sig").unlink(), "bundle.sig is missing"),
    "signature empty": (lambda f: (f / "bundle.sig").write_bytes(b""), "bundle.sig is damaged"),
    "signature nested": (lambda f: (f / "bundle.sig").write_bytes(b"[" * 10**6), "bundle.sig is damaged"),
    "algorithm none": (edit("bundle.sig", "Ed25519", "none"), "signed by none; must be Ed25519"),
    "file added": (lambda f: (f / "model.pkl").write_bytes(b"x"), "'model.pkl' is no part of it"),
    "folder added": (lambda f: (f / "more").mkdir(), "'more' is no part of it"),
}


@pytest.mark.parametrize("what", TAMPERINGS)
@pytest.mark.parametrize("knows_the_key", [True, False])
def test_every_tampering_is_refused(signed: tuple[Path, Path], what: str, knows_the_key: bool) -> None:
    folder, key = signed
    change, line = TAMPERINGS[what]
    change(folder)
    with pytest.raises(DataError) as caught:
        bundle.load(folder, trusted=trusted(key) if knows_the_key else None)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_signature_value_is_refused(signed: tuple[Path, Path]) -> None:
    folder, key = signed
    entry = json.loads((folder / "bundle.sig").read_text())
    entry["signature"] = ("B" if entry["signature"][0] == "A" else "A") + entry["signature"][1:]
    (folder / "bundle.sig").write_text(json.dumps(entry))
    with pytest.raises(DataError, match="the signature does not fit"):
        bundle.load(folder, trusted=trusted(key))


def test_a_forger_s_own_key_is_refused_by_who_knows_the_right_one(signed: tuple[Path, Path], tmp_path: Path) -> None:
    folder, key = signed
    bundle.make_signing_key(tmp_path / "forger")
    bundle.export(tmp_path / "final", folder, key=tmp_path / "forger")
    with pytest.raises(DataError, match=r"signed by key \w{16}, not by the trusted key \w{16}"):
        bundle.load(folder, trusted=trusted(key))
    loaded = bundle.load(folder, trusted=None)
    assert not loaded.trusted
    # a forger who also claims to be the right key
    entry = json.loads((folder / "bundle.sig").read_text())
    import base64

    entry["public_key"] = base64.b64encode(trusted(key).public_bytes_raw()).decode()
    (folder / "bundle.sig").write_text(json.dumps(entry))
    for known in (trusted(key), None):
        with pytest.raises(DataError, match="the signature does not fit"):
            bundle.load(folder, trusted=known)


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("method", "pickle", "method='pickle': this version knows"),
        ("options", {"width": "wide"}, "options.width='wide': must be float"),
        ("options", {"modalities": ["T1", "T2"]}, "its method says"),
        ("schema", 9, "schema 9: this version reads 1"),
        ("files", {"../../x": {"sha256": ""}}, "bundle.json lists '../../x'"),
        ("files", {"denoiser.pt2": {"sha256": ""}}, "bundle.json lists no model.safetensors"),
        ("files", [], "is not what this version writes"),
        ("intensities", {"version": "old"}, "made with other intensity rules"),
        ("grid", {"height": 0, "width": 4}, "grid.height=0: must be 1 or more"),
    ],
)
def test_a_well_signed_wrong_record_is_refused(signed: tuple[Path, Path], key: str, value: object, line: str) -> None:
    folder, secret = signed
    record = json.loads((folder / "bundle.json").read_text()) | {key: value}
    manifest = json.dumps(record).encode()
    (folder / "bundle.json").write_bytes(manifest)
    (folder / "bundle.sig").write_bytes(bundle._FOLDER.sign(manifest, bundle.read_signing_key(secret)))
    with pytest.raises(DataError) as caught:
        bundle.load(folder, trusted=trusted(secret))
    assert line in str(caught.value)


def test_a_signing_key_is_its_owner_s_alone(tmp_path: Path, signed: tuple[Path, Path]) -> None:
    _, key = signed
    assert key.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="never overwritten"):
        bundle.make_signing_key(key)
    key.chmod(0o640)
    with pytest.raises(ConfigError, match="mode 0640 lets others at it"):
        bundle.export(tmp_path / "final", tmp_path / "other", key=key)
    assert not (tmp_path / "other").exists()
    with pytest.raises(ConfigError, match="not a public key"):
        bundle.read_public_key(key)
    with pytest.raises(ConfigError, match="can't be read: No such file"):
        bundle.read_signing_key(tmp_path / "none")


def test_what_is_no_bundle_is_not_overwritten(signed: tuple[Path, Path], tmp_path: Path) -> None:
    _, key = signed
    (tmp_path / "precious").mkdir()
    with pytest.raises(ConfigError, match="something else is there"):
        bundle.export(tmp_path / "final", tmp_path / "precious", key=key)


def test_a_failed_export_leaves_nothing(signed: tuple[Path, Path], tmp_path: Path) -> None:
    _, key = signed
    shutil.copytree(tmp_path / "final", tmp_path / "cut")
    os.truncate(tmp_path / "cut" / "weights.safetensors", 20)
    with pytest.raises(DataError, match="can't be read"):
        bundle.export(tmp_path / "cut", tmp_path / "new", key=key)
    assert not [p for p in tmp_path.iterdir() if "new" in p.name]


ACA_TINY = {"modalities": ["T1", "FDG"], "size": "tiny", "depth": 8, "height": 8, "width": 8, "cube": 2}


@pytest.mark.parametrize(("method", "options"), [("amm_diff", AMM_TINY), ("aca_diff", ACA_TINY)])
def test_the_exported_denoiser_is_the_network_s(method: str, options: dict[str, Any], tmp_path: Path) -> None:
    """torch.export and ONNX, at a batch size that neither was traced with, against eager."""
    import onnxruntime

    bundle.make_signing_key(tmp_path / "key")
    final = release(tmp_path / "final", method, options, edge=options.get("height", 16))
    folder = bundle.export(final, tmp_path / "bundle", key=tmp_path / "key")
    loaded = bundle.load(folder, trusted=trusted(tmp_path / "key"))
    assert sorted(loaded.record["files"]) == ["denoiser.onnx", "denoiser.pt2", "model.safetensors"]
    here = str(Path(bundle.__file__).parent).encode()  # no path of the machine that exported it
    assert not any(here in (folder / name).read_bytes() for name in ("denoiser.onnx", "denoiser.pt2"))

    net = loaded.model.net
    inputs = [torch.randn(x.shape).to(x.dtype) if x.is_floating_point() else x for x in net.example(5, 16, 16)]
    with torch.no_grad():
        wanted = net(*inputs)
        assert wanted.abs().max() > 0.01
        program = torch.export.load(folder / "denoiser.pt2").module()
        assert torch.allclose(program(*inputs), wanted, atol=1e-5 * wanted.abs().max().item())
    session = onnxruntime.InferenceSession(str(folder / "denoiser.onnx"), providers=["CPUExecutionProvider"])
    feed = {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)}
    assert abs(session.run(None, feed)[0] - wanted.numpy()).max() < 1e-4 * wanted.abs().max().item()
