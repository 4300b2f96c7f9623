"""Tokens: the same bits everywhere, near scores near, what is missing not held."""

import hashlib
import itertools
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shared.base.errors import ConfigError
from shared.clinical import ENCODERS, OWN, PIECES, Chart, TextSettings, Unset, builtin, make_encoder
from shared.clinical.chart import DIAGNOSES, FIELDS, SCORES
from shared.clinical.encoder import Encoder
from shared.data.modalities import MODALITIES

WITHOUT_FILES = [kind for kind in ENCODERS if kind not in OWN]
FULL = Chart(diagnosis="AD", mmse=22, adas13=28, cdrsb=4.5)

charts = st.builds(
    Chart,
    diagnosis=st.none() | st.sampled_from(DIAGNOSES),
    mmse=st.none() | st.integers(0, 30),
    adas13=st.none() | st.integers(0, 85),
    cdrsb=st.none() | st.integers(0, 36).map(lambda n: n / 2),
)


def one(encoder: Encoder, chart: Chart = FULL, target: str = "FDG", available: tuple[str, ...] = ("T1",)) -> Tensor:
    return encoder.encode([chart], [target], [available])[0][0]


def score(encoder: Encoder, piece: str, value: float) -> Tensor:
    return one(encoder, Chart(**{piece: value}))[PIECES.index(piece)]


@pytest.mark.parametrize("kind", WITHOUT_FILES)
@settings(deadline=None)
@given(chart=charts)
def test_what_is_missing_is_not_held_and_exactly_zero(kind: str, chart: Chart) -> None:
    tokens_BLD, held_BL = make_encoder(kind, 64).encode([chart, FULL], ["FDG", "T1"], [("T1",), ()])
    assert tokens_BLD.shape == (2, len(PIECES), 64)
    assert tokens_BLD.dtype == torch.float32
    assert (tokens_BLD[~held_BL] == 0).all()
    if kind == "none":
        assert not held_BL.any()
        return
    assert held_BL[0].tolist() == [True, True, *(name in chart.known for name in FIELDS)]
    assert held_BL[1].tolist() == [True, False, True, True, True, True]
    assert (tokens_BLD[held_BL].square().mean(-1).sqrt() - 1).abs().max() < 0.3


@pytest.mark.parametrize("kind", WITHOUT_FILES)
def test_a_token_depends_on_its_own_piece_alone(kind: str) -> None:
    """So the batch does not matter either, nor the order of the modalities."""
    encoder = make_encoder(kind, 64)
    alone = one(encoder, available=("T1", "AV45"))
    others = [Chart(mmse=3), FULL, Chart()]
    tokens, _ = encoder.encode(others, ["T1", "FDG", "AV45"], [("AV45",), ("AV45", "T1"), ("T1",)])
    assert torch.equal(tokens[1], alone)
    without = one(encoder, Chart(diagnosis="AD", adas13=28), available=("T1", "AV45"))
    for row, name in enumerate(PIECES):
        if name not in ("mmse", "cdrsb"):
            assert torch.equal(without[row], alone[row])


def test_tokens_are_the_same_bits_in_another_process() -> None:
    code = (
        "import hashlib, sys; from shared.clinical import *; "
        "made = [make_encoder(kind, 64).encode([Chart(diagnosis='AD', mmse=22, adas13=28, cdrsb=4.5)], ['FDG'], "
        "[('T1', 'XYZ')])[0] for kind in sys.argv[1:]]; "
        "print(*(hashlib.sha256(tokens.numpy().tobytes()).hexdigest() for tokens in made))"
    )
    asked = [sys.executable, "-c", code, *WITHOUT_FILES]
    there = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()
    torch.manual_seed(5)
    here = [one(make_encoder(kind, 64), available=("T1", "XYZ")) for kind in WITHOUT_FILES]
    assert [hashlib.sha256(tokens.numpy().tobytes()).hexdigest() for tokens in here] == there


def test_builtin_tokens_are_those_of_version_1() -> None:
    """A change of the bits is a change of the version: sites with another would be averaged with these."""
    tokens, _ = make_encoder("builtin", 64).encode(
        [Chart(diagnosis=d, mmse=n, adas13=2 * n, cdrsb=n / 2) for d in DIAGNOSES for n in range(31)],
        ["FDG"] * 93,
        [("T1", "new one")] * 93,
    )
    assert builtin.VERSION == 1
    assert hashlib.sha256(tokens.numpy().tobytes()).hexdigest()[:16] == "ef5433fb4be9e9e5"


def test_no_wave_lies_where_mathematical_libraries_could_round_it_differently() -> None:
    import math

    for form in SCORES.values():
        for i in range(round(form.most / form.step) + 1):
            for k in builtin.WAVES:
                for f in (math.cos, math.sin):
                    grain = f(math.pi * k * (i * form.step / form.most)) * builtin.GRAIN
                    assert abs(abs(grain - math.floor(grain)) - 0.5) > 1e-6


@pytest.mark.parametrize("width", [16, 64, 100])
@pytest.mark.parametrize("piece", SCORES)
def test_different_scores_have_different_tokens_and_nearer_ones_nearer(piece: str, width: int) -> None:
    encoder = make_encoder("builtin", width)
    form = SCORES[piece]
    values = [i * form.step for i in range(round(form.most / form.step) + 1)]
    tokens = torch.stack([score(encoder, piece, v) for v in values]).double()
    apart = torch.cdist(tokens, tokens, compute_mode="donot_use_mm_for_euclid_dist")
    for i in range(len(values)):
        assert (apart[i, i + 1 :].diff() > 0).all(), "farther up is farther off"
        assert (apart[i, :i].flip(0).diff() > 0).all(), "farther down is farther off"
    off = apart + torch.eye(len(values)) * 9
    assert off.min() > 0.02 * width**0.5


def test_words_have_orthogonal_codes_and_unknown_modalities_have_some() -> None:
    encoder = make_encoder("builtin", 64)
    for piece, every in (
        ("diagnosis", [one(encoder, Chart(diagnosis=d))[2] for d in DIAGNOSES]),
        ("target", [one(encoder, target=m)[0] for m in MODALITIES]),
    ):
        gram = torch.stack(every) @ torch.stack(every).T
        assert torch.allclose(gram, 64 * torch.eye(len(every)), atol=1e-3), piece
    names = [*MODALITIES, "TAU", "tau2", "PIB", "DWI", "SWI"]
    tokens = [one(encoder, target=m)[0] for m in names]
    for (a, x), (b, y) in itertools.combinations(zip(names, tokens, strict=True), 2):
        assert (x - y).norm() > 2, (a, b)


def test_the_same_number_means_something_else_in_another_piece() -> None:
    tokens = one(make_encoder("builtin", 64), Chart(mmse=12, adas13=12, cdrsb=12), target="T1", available=("T1",))
    for a, b in itertools.combinations([tokens[i] for i in (0, 1, 3, 4, 5)], 2):
        assert (a - b).norm() > 4


def test_labels_are_one_hot_in_slots_of_their_own_and_scores_come_in_classes() -> None:
    encoder = make_encoder("label_embedding", 64)
    hot = one(encoder, available=("T1", "FDG")) != 0
    assert hot.sum(1).tolist() == [1, 2, 1, 1, 1, 1]
    assert hot.sum(0).max() == 1
    classes = {piece: len({tuple(score(encoder, piece, v).tolist()) for v in range(19)}) for piece in SCORES}
    assert classes == {"mmse": 2, "adas13": 2, "cdrsb": 5}


def test_the_known_modalities_are_those_of_the_house() -> None:
    assert tuple(MODALITIES) == builtin.KNOWN


def test_wrong_choices_name_key_value_and_rule() -> None:
    with pytest.raises(ConfigError, match=r"text=gpt: must be one of builtin, "):
        make_encoder("gpt", 64)
    with pytest.raises(ConfigError, match=r"width=8: must be 38 or more for label_embedding"):
        make_encoder("label_embedding", 8)
    with pytest.raises(ConfigError, match=r"timeout=0: must be above 0"):
        TextSettings(timeout=0)
    with pytest.raises(ConfigError, match=r"text=hf_dir: no encoder is attached"):
        Unset("hf_dir", 64).encode([], [], [])
