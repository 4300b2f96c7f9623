"""A page for a browser, made from a template that lies beside the code: one file that loads nothing. [the only jinja2]

What is put into a template is escaped, and a name that it was not given is an error. page.html.j2 is what all pages
share: their policy, by which a browser loads nothing and runs nothing but the one script given here, and their looks.
"""

import base64
import hashlib
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from shared.base.display.figures import duration, moment, number, size

HERE = Path(__file__).parent


def environment(*folders: Path) -> Environment:
    """Templates of these folders, the first first."""
    made = Environment(
        loader=FileSystemLoader(folders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"number": number, "duration": duration, "size": size, "moment": moment}
    return made


def render(template: Path, *, script: str = "", **values: object) -> str:
    """The page of a `*.html.j2`. `script` is our own code, never anything that came from elsewhere."""
    return (
        environment(template.parent, HERE)
        .get_template(template.name)
        .render(
            style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
            script=Markup(script),
            script_sha256=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            **values,
        )
    )


def embedded(picture: Path) -> str:
    """A PNG as the address under which a page carries it inside."""
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
