"""What a page is made of: somebody asks, a handler answers. Nothing here knows of a server, so tests call handlers.

Route("GET", "/subjects", handler)              look, at least
Route("POST", "/plans/decide", handler, role="decide")
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from shared.base.errors import LacunaError

Role = Literal["look", "decide", "send"]
ROLES: tuple[Role, ...] = ("look", "decide", "send")  # decide: yes and no, jobs; send: out of the house
HTML, JSON = "text/html; charset=utf-8", "application/json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Who asks."""

    name: str
    roles: frozenset[Role]

    def may(self, role: Role) -> bool:
        return role in self.roles


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request, by somebody who was let in and who may ask for it."""

    person: Person
    where: Mapping[str, str] = field(default_factory=dict)  # parts of the path that the route names
    query: Mapping[str, str] = field(default_factory=dict)
    form: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    body: bytes = b""
    path: str = "/"
    language: str = "en"
    part: bool = False  # only a part of the page is wanted, by htmx
    csrf: str = ""

    def said(self, name: str, default: str = "") -> str:
        """A field of the form that was sent."""
        return self.form.get(name, (default,))[0].strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What goes back: bytes, or a file that our own index named."""

    body: bytes | Path = b""
    kind: str = HTML
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


class NotFound(LacunaError):
    """Nothing is there under that address."""


Handler: TypeAlias = Callable[[Ask], Answer]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    method: Literal["GET", "POST"]
    path: str  # as Starlette has it: /subjects/{handle}
    handler: Handler
    role: Role = "look"
    most: int = 2**16  # bytes of a body
    raw: bool = False  # the body is a file, and no form


def see(path: str) -> Answer:
    """Look there now: what every form ends with, so that a reload sends nothing twice."""
    return Answer(status=303, headers={"Location": path})
