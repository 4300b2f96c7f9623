"""A signature fits what was signed, for the purpose that it was signed for, and nothing else; the same of each file."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shared.base.errors import DataError
from shared.base.files import canonical
from shared.trust.signed import Folder, Signature, entry_of

KEY, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
CHART = Folder(
    what="chart",
    listing="chart.json",
    signature="chart.sig",
    context=b"lacuna chart 1\n",
    may_hold=("a", "b"),
    must_hold="a",
    most=1000,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        (tmp_path / name).write_text(f"this is {name}")
    listing = canonical(CHART.entries(tmp_path))
    (tmp_path / "chart.json").write_bytes(listing)
    (tmp_path / "chart.sig").write_bytes(CHART.sign(listing, KEY))
    return tmp_path


def read(folder: Path, trusted: Ed25519PrivateKey | None = KEY) -> dict[str, bytes]:
    import json

    listing, _ = CHART.verify(folder, None if trusted is None else trusted.public_key(), "here")
    return dict(CHART.read(folder, json.loads(listing), "here"))


def test_what_was_signed_is_read(folder: Path) -> None:
    assert read(folder) == read(folder, None) == {"a": b"this is a", "b": b"this is b"}
    with pytest.raises(DataError, match=r"signed by key \w{16}, not by the trusted key \w{16}"):
        read(folder, OTHER)


@pytest.mark.parametrize("name", ["a", "b", "chart.json"])
def test_no_byte_of_a_file_can_be_changed(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    for at in range(len(whole)):
        (folder / name).write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(DataError, match="was changed"):
            read(folder)


def test_a_folder_holds_just_what_is_listed(folder: Path) -> None:
    (folder / "c").write_text("more")
    with pytest.raises(DataError, match="'c' is no part of it"):
        read(folder)
    (folder / "c").unlink()
    (folder / "b").unlink()
    (folder / "b").symlink_to(folder / "a")
    with pytest.raises(DataError, match="b is missing"):
        read(folder)
    for listed, why in (({"c": {}}, "lists 'c'; a chart holds a, b"), ({"b": {}}, "lists no a")):
        with pytest.raises(DataError, match=why):
            list(CHART.read(folder, listed, "here"))


def test_a_signature_comes_back_from_both_of_its_spellings() -> None:
    made = Signature.make(KEY, b"words")
    assert Signature.parse_json(made.json(), "here", "x.sig").line() == made.line()
    found = Signature.parse_line(b"signed " + made.line(), "signed ")
    assert found is not None
    assert found.fits(b"words")
    assert not found.fits(b"other words")
    assert found.is_by(KEY.public_key())
    assert not found.is_by(OTHER.public_key())


@pytest.mark.parametrize("harm", [lambda line: line[:-1], lambda line: line.upper(), lambda line: b" " + line])
def test_a_line_that_is_written_otherwise_is_no_signature(harm: object) -> None:
    assert Signature.parse_line(harm(Signature.make(KEY, b"").line())) is None  # type: ignore[operator]


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"[" * 10**5, b'{"algorithm": "Ed25519", "public_key": "x"}'])
def test_json_that_is_no_signature_is_named(content: bytes) -> None:
    with pytest.raises(DataError, match=r"here: x\.sig is damaged"):
        Signature.parse_json(content, "here", "x.sig")


def test_an_entry_is_the_length_and_the_hash() -> None:
    assert entry_of(b"one") != entry_of(b"two")
    assert entry_of(b"one").bytes == 3
