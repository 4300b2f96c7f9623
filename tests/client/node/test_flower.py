"""The ban on Flower's private modules names all of them, so that no third file can come to lean on one."""

import pkgutil
import tomllib
from pathlib import Path

import flwr
import pytest

from client.node import flower
from shared.base.errors import RunFailed

PUBLIC = {"app", "clientapp", "serverapp", "simulation"}
PROJECT = Path(__file__).parents[3] / "pyproject.toml"


def test_every_private_part_of_flower_is_banned_but_at_two_doors() -> None:
    lint = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["tool"]["ruff"]["lint"]
    private = {f"flwr.{module.name}" for module in pkgutil.iter_modules(flwr.__path__)} - {f"flwr.{p}" for p in PUBLIC}
    assert private <= set(lint["flake8-tidy-imports"]["banned-api"])
    doors = {path for path, rules in lint["per-file-ignores"].items() if "TID251" in rules}
    assert doors == {"client/node/flower.py", "server/flower.py", "server/mail.py", "tests/**"}


def test_another_flower_is_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    def pull(state: object) -> int | None: ...

    monkeypatch.setattr(flower.internal, "_pull_and_store_message", pull)
    with pytest.raises(RunFailed, match="is not the version that this Lacuna guards"):
        flower.watch_messages(lambda *_: None, lambda: None)
