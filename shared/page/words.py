"""The pages' texts, in English and German: in a template and in code stands the English, german.toml has the other.

A text that the table does not have is shown in English; a test finds every text that the table lacks.
"""

import tomllib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TypeAlias

LANGUAGES = ("en", "de")
TABLE = Path(__file__).with_name("german.toml")
Say: TypeAlias = Callable[..., str]


@cache
def german() -> Mapping[str, str]:
    return dict(tomllib.loads(TABLE.read_text(encoding="utf-8")))


def say_in(language: str) -> Say:
    """`say("{count} rounds", count=3)` in that language."""

    def say(text: str, **values: object) -> str:
        said = german().get(text, text) if language == "de" else text
        return said.format(**values) if values else said

    return say


def preferred(accepted: str) -> str:
    """The first language of a browser's wishes that we speak."""
    for wish in accepted.split(","):
        word = wish.split(";")[0].strip().lower()[:2]
        if word in LANGUAGES:
            return word
    return LANGUAGES[0]
