"""How a page looks: a template beside its room's code, inside of the frame that all pages share (frame.html.j2)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from shared.base.display.page import HERE as BASE
from shared.base.display.page import environment
from shared.page.ask import Answer, Ask
from shared.page.words import LANGUAGES, say_in

HERE = Path(__file__).parent
STATIC = HERE / "static"
VENDOR = HERE / "vendor"


@dataclass(frozen=True, kw_only=True)
class Look:
    """The pages of one room: its templates, what its head says, and where one can go from there."""

    folder: Path  # of the templates
    title: str  # site-a, or the folder of the runs
    ways: Sequence[tuple[str, str]]  # address and text of each page
    readonly: bool = False
    beside: Sequence[Path] = ()  # other folders with pieces of templates
    more: Mapping[str, Path] = field(default_factory=dict)  # static files of the room's own

    @cached_property
    def _templates(self) -> Any:
        return environment(self.folder, HERE, *self.beside)

    @cached_property
    def files(self) -> dict[str, Path]:
        """Every static file by the name under which it is served: what is not listed here is not there."""
        found = {path.name: path for folder in (STATIC, VENDOR) for path in folder.iterdir() if path.suffix in KINDS}
        return {**found, "page.css": BASE / "page.css", **self.more}

    def page(self, ask: Ask, template: str, *, status: int = 200, **values: object) -> Answer:
        say = say_in(ask.language)
        text = self._templates.get_template(template).render(
            t=say,
            ask=ask,
            look=self,
            languages=LANGUAGES,
            viewer=(VENDOR / "niivue.umd.js").is_file(),
            **values,
        )
        return Answer(body=text.encode(), status=status)

    def sorry(self, ask: Ask, said: str, *, status: int, remedy: str = "") -> Answer:
        """What went wrong, in a line."""
        return self.page(ask, "sorry.html.j2", status=status, said=said, remedy=remedy)


KINDS = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
