"""The grid of a federation's manifest: read as it is written, and no new hash for what was agreed on before."""

import json

import pytest

from shared.base.errors import ConfigError
from shared.trust.manifest import Intensities, Manifest, Plane, parse

WRITTEN = {
    "96x96": (None, None),
    "96x96@2": (2.0, None),
    "96x96@2x3.5": (2.0, 3.5),
    "96x96@ownx5": (None, 5.0),
}


@pytest.mark.parametrize("text", WRITTEN)
def test_a_grid_is_said_as_it_is_read(text: str) -> None:
    plane = Plane.parse(text)
    assert (plane.spacing_mm, plane.slice_mm) == WRITTEN[text]
    assert str(plane) == text


@pytest.mark.parametrize("text", ["96x96@", "96x96@2x", "96x96x3", "96x96@0", "96x96@2x0", "96x96@2x3x4"])
def test_another_spelling_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        Plane.parse(text)


def manifest(plane: Plane) -> Manifest:
    return Manifest(
        federation="strokes",
        version=1,
        before="",
        made="2026-11-21T00:00:00Z",
        lacuna="0.1.0",
        modalities=("T1", "T2"),
        intensities=Intensities(version="1", rules={"T1": {}, "T2": {}}),
        methods=("amm_diff",),
        min_holders=2,
        quorum=2,
        grid=plane,
    )


def test_a_grid_without_slices_has_the_hash_that_it_had_and_one_with_them_another() -> None:
    before, after = manifest(Plane.parse("64x64@3")), manifest(Plane.parse("64x64@3x3"))
    assert json.loads(before.content())["grid"] == {"height": 64, "width": 64, "spacing_mm": 3.0}
    assert before.digest != after.digest
    for one in (before, after):
        assert parse(one.content(), "here") == one
        assert parse(one.content(), "here").digest == one.digest
