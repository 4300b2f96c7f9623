"""How work that takes long says how far it is. The bar that shows it is in terminal.py."""

from collections.abc import Callable
from contextlib import AbstractContextManager

Progress = Callable[[int, int], None]
"""Is called with (done, total) after each step."""

Bar = Callable[[str], AbstractContextManager[Progress]]
"""Opens a bar with this title and gives its `Progress`."""


def unwatched(done: int, total: int) -> None:
    """The `Progress` of work that nobody watches."""
