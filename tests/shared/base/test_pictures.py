from pathlib import Path

import numpy as np

from shared.base.pictures import mosaic, save_png, three_planes


def test_row_0_of_a_plane_is_drawn_at_the_bottom() -> None:
    plane = np.zeros((8, 8))
    plane[7, 0] = 1  # front, left
    cell = np.asarray(mosaic([[plane]], cell=64))[-68:-4, 4:68, 0]
    assert cell[:4, :4].min() > 200
    assert cell[-6:, :].max() < 50


def test_missing_planes_and_planes_of_any_shape_have_their_place() -> None:
    wide, colour = np.ones((4, 8)), np.ones((8, 8, 3)) * [1, 0, 0]
    sheet = mosaic([[wide, None], [colour, np.full((8, 8), np.nan)]], ["a", "b"], ["T1", "T2"], "title", cell=32)
    plain = mosaic([[wide, None], [colour, None]], cell=32)
    assert plain.size == (4 + 2 * 36, 4 + 2 * 36)
    assert sheet.width > plain.width
    assert sheet.height > plain.height


def test_equal_sheets_are_equal_bytes(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).random((6, 7, 8))
    for name in ("a.png", "b.png"):
        save_png(mosaic([three_planes(volume, (3, 3, 3))], ["s"], ["x", "y", "z"], "t"), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
