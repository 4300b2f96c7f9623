"""Sites with another encoder are told apart, and what tells them apart says nothing of a subject."""

import base64
from collections.abc import Sequence

import pytest
import torch

from shared.clinical import ENCODERS, OWN, Chart, make_encoder
from shared.clinical.builtin import Builtin
from shared.clinical.probes import PROBES, fingerprint, id_of, same_encoder
from shared.clinical.prompted import Prompted

WITHOUT_FILES = [kind for kind in ENCODERS if kind not in OWN]
WIDTH = 48


class Words:
    """A language model of sorts, that can be a little off."""

    def __init__(self, seed: int = 0, off: float = 0.0) -> None:
        self.seed, self.off = seed, off

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        rows = []
        for text in texts:
            noise = torch.Generator().manual_seed(sum((i + 1) * ord(c) for i, c in enumerate(text)) + self.seed)
            row = torch.randn(WIDTH, generator=noise)
            rows.append(row + self.off * torch.randn(WIDTH, generator=noise))
        return torch.stack(rows)


def words(**options: float) -> Prompted:
    return Prompted("hf_dir v1 sha256 abc", WIDTH, Words(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", WITHOUT_FILES)
def test_an_encoder_is_itself_and_about_a_kilobyte(kind: str) -> None:
    one = fingerprint(make_encoder(kind, 64))
    assert same_encoder(one, fingerprint(make_encoder(kind, 64)))
    assert id_of(one) == make_encoder(kind, 64).id
    assert 700 < len(one) < 1300
    for other in ENCODERS:
        if other != kind and other not in OWN:
            assert not same_encoder(one, fingerprint(make_encoder(other, 64)))
    if kind != "none":
        assert not same_encoder(one, fingerprint(make_encoder(kind, 80)))


def test_providers_without_weights_are_compared_bit_by_bit() -> None:
    class Nearly(Builtin):
        def encode(self, charts, targets, available):  # type: ignore[no-untyped-def]
            tokens, held = super().encode(charts, targets, available)
            return torch.nextafter(tokens, torch.tensor(9.0)), held

    assert not same_encoder(fingerprint(Builtin(64)), fingerprint(Nearly(64)))


def test_language_models_may_differ_in_the_last_bits_alone() -> None:
    ours = fingerprint(words())
    assert same_encoder(ours, fingerprint(words(off=1e-3)))
    assert not same_encoder(ours, fingerprint(words(off=0.05)))
    assert not same_encoder(ours, fingerprint(words(seed=1)))


def test_one_probe_that_differs_is_enough() -> None:
    class OnePrompt(Words):
        def __call__(self, texts: Sequence[str]) -> torch.Tensor:
            found = super().__call__(texts)
            if "MMSE=3" in texts:
                found[list(texts).index("MMSE=3")] *= -1
            return found

    assert not same_encoder(fingerprint(words()), fingerprint(Prompted(words().id, WIDTH, OnePrompt())))


@pytest.mark.parametrize("what", ["", "nonsense", "é", "AAAA", base64.b64encode(b"builtin v1\n" + bytes(99)).decode()])
def test_what_is_no_fingerprint_is_nobodys(what: str) -> None:
    one = fingerprint(make_encoder("builtin", 64))
    assert not same_encoder(one, what)
    assert not same_encoder(what, one)
    assert not same_encoder(what, what)
    assert id_of(what) == "unreadable"


def test_numbers_that_are_none_are_nobodys() -> None:
    one = base64.b64decode(fingerprint(words()))
    poisoned = base64.b64encode(one[:-2] + b"\xff\x7f").decode()
    assert not same_encoder(fingerprint(words()), poisoned)


def test_a_fingerprint_holds_no_run_of_a_tokens_numbers() -> None:
    for encoder in (make_encoder("builtin", 64), words()):
        content = base64.b64decode(fingerprint(encoder))
        tokens, held = encoder.encode(*map(list, zip(*PROBES, strict=True)))
        flat = tokens[held].flatten().numpy()
        for kind in ("<f4", "<f2"):
            packed = flat.astype(kind).tobytes()
            step = 4 if kind == "<f4" else 2
            assert not any(packed[i : i + 16] in content for i in range(0, len(packed) - 16, step))


def test_probes_speak_of_every_piece_and_of_nobody() -> None:
    assert len(PROBES) == 16
    assert {name for chart, _, _ in PROBES for name in chart.known} == set(
        Chart(diagnosis="AD", mmse=1, adas13=1, cdrsb=1).known
    )
