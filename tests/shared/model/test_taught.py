"""What was never together is refused, or made in passes among what was."""

from typing import Any

import pytest
import torch

from shared.base.errors import DataError
from shared.data.volumes import Grid
from shared.diffusion.operators import Measured
from shared.diffusion.samplers import Sampler
from shared.methods.any2all import Any2all
from shared.model.fill import Filling, fill
from shared.model.model import Model
from shared.model.taught import check_taught, passes, untaught_remarks, why_untaught

NAMES = ("T1", "FLAIR", "T2S", "CT")


class Told(Any2all):
    """Remembers what it was asked."""

    def restore(
        self, net: Any, measured: Any, sampler: Any, generator: Any, *, like_BMHW: Any, silent: Any = ()
    ) -> Any:
        ASKED.append(([one.kind for one in measured], tuple(silent)))
        return torch.full_like(like_BMHW, len(ASKED) / 10)


ASKED: list[tuple[list[str], tuple[int, ...]]] = []


def model(patterns: list[list[str]] | None) -> Model:
    method = Told(modalities=NAMES, size="tiny", precision="fp32")
    provenance = {} if patterns is None else {"patterns": patterns}
    return Model(
        name="any2all",
        method=method,
        net=method.build(0),
        grid=Grid(height=16, width=16),
        sampler=Sampler(),
        record={"provenance": provenance},
    )


def names(rows: tuple[int, ...]) -> list[str]:
    return [NAMES[row] for row in rows]


def test_complete_stacks_are_made_in_one_pass() -> None:
    for patterns in (None, [["T1"], list(NAMES)]):
        for known in ([], [0], [0, 1, 2]):
            (one,) = passes(model(patterns), known)
            assert one.silent == ()
            assert len(one.rows) == len(NAMES)


def test_what_was_never_together_is_made_in_passes_that_were() -> None:
    found = passes(model([["T1", "FLAIR", "T2S"], ["T1", "CT"], ["T1"]]), [0])
    assert [(names(one.silent), names(one.rows)) for one in found] == [
        (["CT"], ["T1", "FLAIR", "T2S"]),
        (["FLAIR", "T2S"], ["CT"]),
    ]


def test_what_no_pattern_holds_beside_the_known_is_made_from_everything() -> None:
    found = passes(model([["T1", "FLAIR"], ["T2S", "CT"]]), [0, 3])
    assert found == [((), (0, 1, 2, 3))]
    assert passes(model([["T1", "FLAIR"]]), range(4)) == [((), (0, 1, 2, 3))]


@pytest.mark.parametrize("seed", range(20))
def test_every_missing_modality_is_made_exactly_once_among_a_trained_set(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    patterns = [[m for m in NAMES if torch.rand(1, generator=g) < 0.7] for _ in range(3)]
    known = {m for m in range(4) if torch.rand(1, generator=g) < 0.4}
    made = passes(model(patterns), known)
    rows = [row for one in made for row in one.rows if row not in known]
    assert sorted(rows) == sorted(set(range(4)) - known)
    for one in made:
        taking_part = {NAMES[m] for m in range(4) if m not in one.silent}
        assert not set(one.rows) & set(one.silent)
        assert not one.silent or taking_part in [set(p) for p in patterns]


def test_a_subject_is_filled_in_pass_by_pass_and_the_shown_comes_back() -> None:
    ASKED.clear()
    taught = model([["T1", "FLAIR", "T2S"], ["T1", "CT"]])
    images = torch.rand(4, 2, 16, 16)
    filled = fill(
        taught,
        images,
        torch.tensor([True, False, False, False]),
        [0, 1],
        Filling(sampler=Sampler(), keys=(0,), device=torch.device("cpu")),
    )
    assert ASKED == [(["clean", "none", "none", "none"], (3,)), (["clean", "none", "none", "none"], (1, 2))]
    assert torch.equal(filled.mean_MDHW[0], images[0])
    assert filled.mean_MDHW[[1, 2]].unique().item() == pytest.approx(0.1)
    assert filled.mean_MDHW[3].unique().item() == pytest.approx(0.2)


def test_a_silent_modality_is_as_one_that_a_subject_lacks() -> None:
    method = Any2all(modalities=NAMES, size="tiny", precision="fp32", times=50)
    net = method.build(0)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p += 0.05 * torch.randn(p.shape, generator=noise)
    like = torch.zeros(1, 4, 16, 16)
    known = [Measured("clean", torch.rand(1, 16, 16)), *[Measured("none")] * 3]
    for kind in ("mds", "mds_fast", "mps", "ddim"):

        def run(silent: tuple[int, ...], kind: str = kind) -> torch.Tensor:
            sampler = Sampler(kind=kind, steps=3)  # type: ignore[arg-type]
            return method.restore(net, known, sampler, torch.Generator().manual_seed(1), like_BMHW=like, silent=silent)

        before = run((3,))
        with torch.no_grad():
            net.unet.stem.weight[:, 12:] += 1.0  # the last modality's own
        assert torch.equal(run((3,))[:, :3], before[:, :3]), kind
        assert not torch.equal(run(())[:, :3], before[:, :3]), kind


def test_a_pair_that_was_never_seen_is_refused_by_name() -> None:
    taught = model([["T1", "FLAIR"], ["T1", "T2S"], ["FLAIR", "CT"]])
    assert why_untaught(taught, ["T1"], "FLAIR") is None
    why = why_untaught(taught, ["T1", "FLAIR"], "CT")
    assert why is not None
    assert "CT beside T1" in why
    assert "leave T1 out" in why
    with pytest.raises(DataError, match="CT beside T1"):
        check_taught(taught, ["T1", "FLAIR"], ["CT"], asked=True)
    kept, left = check_taught(taught, ["T1"], ["FLAIR", "T2S", "CT"], asked=False)
    assert kept == ("FLAIR", "T2S")
    assert len(left) == 1
    assert "CT" in left[0]
    with pytest.raises(DataError):
        check_taught(taught, ["T1"], ["CT"], asked=False)  # nothing would be left to make


def test_pairs_without_the_whole_are_remarked_upon() -> None:
    taught = model([["T1", "FLAIR"], ["T1", "T2S"], ["FLAIR", "T2S"]])
    (remark,) = untaught_remarks(taught, ["T1", "FLAIR"], ["T2S"])
    assert "T1, FLAIR, T2S" in remark
    assert untaught_remarks(taught, ["T1"], ["T2S"]) == ()
    assert untaught_remarks(model(None), ["T1"], ["T2S"]) == ()
    assert check_taught(model(None), ["T1"], ["CT"], asked=True) == (("CT",), ())
