"""The pictures in docs/pictures are those that docs/draw.py draws of the code as it is."""

import importlib.util
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.slow  # left out of `make fast`

HOUSE = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def draw() -> ModuleType:
    """The script, without running it."""
    spec = importlib.util.spec_from_file_location("lacuna_docs_draw", HOUSE / "docs" / "draw.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["rooms.svg", "round.svg", "bundle.svg"])
def test_a_committed_picture_is_what_the_code_says(draw: ModuleType, name: str) -> None:
    committed = (HOUSE / "docs" / "pictures" / name).read_text(encoding="utf-8")
    assert committed == draw.DRAWN[name](), f"{name} is out of date: run python docs/draw.py"


def test_every_picture_is_drawn_and_is_xml(draw: ModuleType) -> None:
    assert set(draw.DRAWN) == {path.name for path in (HOUSE / "docs" / "pictures").glob("*.svg")}
    for make in draw.DRAWN.values():
        assert ElementTree.fromstring(make()).tag.endswith("svg")


def test_every_room_is_in_the_picture_with_its_sentence(draw: ModuleType) -> None:
    words = " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", draw.draw_rooms()))
    rooms = [path.parent for path in HOUSE.glob("*/*/__init__.py") if path.parents[1].name in draw.COLOURS]
    assert len(rooms) > 15
    for room in rooms:
        assert f"{room.name} " in words
        assert draw.sentence_of(f"{room.parent.name}/{room.name}").split(".")[0].split()[0] in words


def test_a_room_uses_what_it_imports_and_not_itself(draw: ModuleType) -> None:
    assert "base" in draw.uses("shared/data")
    assert "data" not in draw.uses("shared/data")
    assert draw.uses("shared/base") == []
    assert "methods" not in draw.uses("shared/data")
    assert "site" in draw.uses("client/app")  # a file that is a room by itself


def test_a_step_that_is_not_in_the_code_is_an_error(draw: ModuleType) -> None:
    with pytest.raises(SystemExit, match="has 0 of nothing_such"):
        draw.step("server/rounds", "nothing_such", "never")


def test_the_list_of_a_bundles_files_names_those_that_it_may_hold(draw: ModuleType) -> None:
    from shared.model.bundle import MANIFEST, SIGNATURE, WEIGHTS

    assert {MANIFEST, SIGNATURE, WEIGHTS} <= {name for name, _ in draw.bundle_files()}


def test_check_tells_a_stale_picture(
    draw: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(draw, "PICTURES", tmp_path)
    assert draw.main(check=False) == 0
    assert draw.main(check=True) == 0
    (tmp_path / "round.svg").write_text("<svg/>", encoding="utf-8")
    assert draw.main(check=True) == 1
    assert "round.svg; run python docs/draw.py" in capsys.readouterr().err
