"""Plain values to options: each wrong one is named with its key, its value and the rule."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from shared.base.errors import ConfigError
from shared.base.options import build, plain, require


@dataclass(frozen=True, kw_only=True)
class Inner:
    lr: float = 0.1

    def __post_init__(self) -> None:
        require(self.lr > 0, "lr", self.lr, "above 0")


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    kind: Literal["a", "b"] = "a"
    size: tuple[int, int] = (1, 2)
    names: tuple[str, ...] | None = None
    inner: Inner = Inner()
    phases: Mapping[str, Inner] | None = None
    steps: int = 3
    on: bool = False


@dataclass(frozen=True, kw_only=True)
class Place:
    path: Path


GOOD: list[dict[str, Any]] = [
    {"name": "x"},
    {"name": "x", "kind": "b", "size": [3, 4], "names": ["p", "q"], "inner": {"lr": 1}, "on": True},
    {"name": "x", "phases": {"one": {"lr": 0.5}}},
]


@pytest.mark.parametrize("values", GOOD)
def test_plain_is_the_reverse_of_build(values: dict[str, Any]) -> None:
    made = build(Outer, values, "outer")
    assert build(Outer, plain(made), "outer") == made


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "outer.name: missing"),
        ({"name": 3}, "outer.name=3: must be str"),
        ({"name": "x", "kind": "c"}, "outer.kind='c': must be one of a, b"),
        ({"name": "x", "size": [1]}, "outer.size=.*must have 2"),
        ({"name": "x", "size": ["a", 1]}, r"outer.size\[0\]='a'"),
        ({"name": "x", "names": "pq"}, "outer.names='pq': must be a list"),
        ({"name": "x", "inner": {"lr": -1}}, r"outer.inner.lr=-1.0: must be above 0"),
        ({"name": "x", "inner": {"rate": 1}}, "outer.inner.rate=1: unknown key; outer.inner takes lr"),
        ({"name": "x", "phases": {"one": {"lr": "fast"}}}, "outer.phases.one.lr='fast'"),
        ({"name": "x", "steps": True}, "outer.steps=True"),
        ({"name": "x", "steps": 1.5}, "outer.steps=1.5"),
        ({"name": "x", "on": 1}, "outer.on=1: must be bool"),
    ],
)
def test_a_wrong_value_is_named(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build(Outer, values, "outer")


def test_a_path_is_written_as_text_and_comes_back() -> None:
    made = build(Place, {"path": "some/where"}, "place")
    assert made == Place(path=Path("some/where"))
    assert plain(made) == {"path": "some/where"}
    assert build(Place, plain(made), "place") == made
    with pytest.raises(ConfigError, match=r"place\.path=3: must be Path"):
        build(Place, {"path": 3}, "place")
