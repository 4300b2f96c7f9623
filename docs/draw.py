"""Draws docs/pictures/{rooms,round,bundle}.svg from the code. Run it after a change of folders, imports or docstrings.

    python docs/draw.py            draws all three
    python docs/draw.py --check    exit code 1 where a committed picture is not what would be drawn

The standard library alone, no fonts measured: the same code gives the same bytes anywhere.
"""

import ast
import sys
import textwrap
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

HOUSE = Path(__file__).resolve().parents[1]
PICTURES = HOUSE / "docs" / "pictures"
COLOURS = {"server": "#e8eefb", "client": "#e9f6ec", "shared": "#fbf3e2"}
WIDTH, GAP, PAD, LINE, LETTER = 1240, 12, 10, 15, 6.3  # pixels; of a letter of 12: an upper bound on the average

Steps = Sequence[tuple[str, str, str]]  # a room, a function or method anywhere in it, and when it has its turn
ONCE, EVERY, SITE = "once, before round 1", "every round", "every round, at every site"
ROUND: Steps = (
    ("server/rounds", "Handshake.gather", ONCE),
    ("server/rounds", "check_coverage", ONCE),
    ("server/rounds", "Roster.drawn", EVERY),
    ("shared/plan", "pack_plan", EVERY),
    ("client/round", "do_round", SITE),
    ("shared/plan", "train", SITE),
    ("client/privacy", "Engine.step", "in its place where the site trains privately"),
    ("shared/plan", "pack_update", SITE),
    ("client/site", "Ledger.release", SITE),
    ("shared/plan", "unpack_update", "for every reply"),
    ("server/rounds", "admit", "for every reply"),
    ("server/rounds", "Fold.add", "for every reply"),
    ("server/rounds", "Fold.mean", EVERY),
    ("server/rounds", "Strategy.step", EVERY),
    ("server/rounds", "keep_untrained", EVERY),
    ("server/rounds", "follow", EVERY),
    ("shared/base", "save", EVERY),
    ("server/rounds", "release", "once, after the last round"),
)
MADE: Steps = (("server/rounds", "release", "at the end of a run"), ("shared/model", "export", "lacuna export"))
USED: Steps = (
    ("shared/model", "load", "lacuna-site synthesize"),
    ("shared/model", "rebuild", "lacuna-site synthesize"),
    ("client/inference", "synthesize", "lacuna-site synthesize"),
)
BUNDLE_FILE = "bundle.json"  # how the list of a bundle's files begins, in a docstring of shared/model


@dataclass(frozen=True)
class Box:
    title: str
    text: str
    colour: str
    small: Sequence[str] = ()  # lines in grey, below

    def lines(self, width: float) -> list[tuple[str, str]]:
        """(style, text) of each line, as wide as fits."""
        fits = max(10, int((width - 2 * PAD) / LETTER))
        rows = [("title", self.title)]
        rows += [("text", line) for line in textwrap.wrap(self.text, fits)]
        rows += [("small", line) for each in self.small for line in textwrap.wrap(each, int(fits * 1.08))]
        return rows

    def height(self, width: float) -> float:
        return len(self.lines(width)) * LINE + 2 * PAD


@dataclass
class Sheet:
    parts: list[str] = field(default_factory=list)
    bottom: float = 0

    def box(self, box: Box, x: float, y: float, width: float, height: float) -> None:
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5"'
            f' fill="{box.colour}" stroke="#8a8f98"/>'
        )
        for row, (style, line) in enumerate(box.lines(width)):
            self.write(line, x + PAD, y + PAD + (row + 0.8) * LINE, style)
        self.bottom = max(self.bottom, y + height)

    def write(self, text: str, x: float, y: float, style: str) -> None:
        self.parts.append(f'<text x="{x:g}" y="{y:g}" class="{style}">{escape(text, quote=False)}</text>')

    def arrow(self, x: float, y: float, to_x: float, to_y: float) -> None:
        """Down, across half way, and down again: never through a box of the same column."""
        half = (y + to_y) / 2
        way = f"M{x:g} {y:g} V{half:g} H{to_x:g} V{to_y:g}"
        self.parts.append(f'<path d="{way}" fill="none" stroke="#4a4f57" marker-end="url(#tip)"/>')

    def svg(self, title: str) -> str:
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.bottom + GAP:g}" width="{WIDTH}"'
            f' role="img" aria-label="{escape(title)}" font-family="DejaVu Sans, Verdana, sans-serif">'
        )
        style = (
            "<style>text{font-size:11.5px;fill:#22262b}.title{font-weight:bold;font-size:12.5px}"
            ".small{fill:#5d646d;font-size:10.5px}.head{font-size:15px;font-weight:bold}</style>"
        )
        tip = (
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            '<path d="M0 0 L8 4 L0 8 z" fill="#4a4f57"/></marker></defs>'
        )
        ground = f'<rect width="{WIDTH}" height="{self.bottom + GAP:g}" fill="#ffffff"/>'
        return "\n".join([head, style, tip, ground, *self.parts, "</svg>\n"])


# --- what the code says -----------------------------------------------------------------------------------------------


def paragraph(docstring: str | None) -> str:
    """The first paragraph, on one line, without backticks."""
    return " ".join((docstring or "").split("\n\n")[0].split()).replace("`", "")


def module_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def files_of(room: str) -> list[Path]:
    """`server/runs` is a folder with all below it, `client/app` a file."""
    place = HOUSE / room
    return sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]


def sentence_of(room: str) -> str:
    place = HOUSE / room
    first = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    return paragraph(ast.get_docstring(module_of(first)))


def uses(room: str) -> list[str]:
    """The other rooms of its own package that a room imports."""
    package, own = room.split("/")
    found = set()
    for path in files_of(room):
        for node in ast.walk(module_of(path)):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            found |= {parts[1] for name in names if (parts := name.split("."))[0] == package and len(parts) > 1}
    rooms = {name for row in layers(package) for name in row}  # folders, and a few files that stand by themselves
    return sorted((found - {own}) & rooms)


def layers(package: str) -> list[list[str]]:
    """Rows of rooms, from import-linter's contract: who stands higher may import what lies lower."""
    settings = tomllib.loads((HOUSE / "pyproject.toml").read_text(encoding="utf-8"))
    for contract in settings["tool"]["importlinter"]["contracts"]:
        if contract.get("containers") == [package] and contract["type"] == "layers":
            return [[room.strip("() ") for room in row.split("|")] for row in contract["layers"]]
    raise SystemExit(f"pyproject.toml: no contract of layers for {package}")


def functions(room: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    for path in files_of(room):
        for node in module_of(path).body:
            if isinstance(node, ast.FunctionDef):
                yield node.name, node
            elif isinstance(node, ast.ClassDef):
                yield from ((f"{node.name}.{m.name}", m) for m in node.body if isinstance(m, ast.FunctionDef))


def step(room: str, name: str, when: str) -> Box:
    """A function as a box. It must be there once, say what it does, and be called somewhere."""
    found = [node for known, node in functions(room) if known == name]
    if len(found) != 1 or not ast.get_docstring(found[0]):
        raise SystemExit(f"docs/draw.py: {room} has {len(found)} of {name}; it takes one, with a docstring")
    if name.split(".")[-1] not in called():
        raise SystemExit(f"docs/draw.py: {room}: nobody calls {name}")
    package = room.split("/")[0]
    return Box(
        title=name, text=paragraph(ast.get_docstring(found[0])), colour=COLOURS[package], small=(f"{room}; {when}",)
    )


def called() -> set[str]:
    """Every name that is called, or handed on to be called, anywhere in the product."""
    if not _CALLED:
        for path in (path for package in COLOURS for path in files_of(package)):
            for node in ast.walk(module_of(path)):
                if isinstance(node, ast.Attribute):
                    _CALLED.add(node.attr)
                elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                    _CALLED.add(node.id)
    return _CALLED


_CALLED: set[str] = set()


# --- the pictures -----------------------------------------------------------------------------------------------------


def draw_rooms() -> str:
    sheet = Sheet()
    half = (WIDTH - 3 * GAP) / 2
    _rooms(sheet, "server", GAP, GAP, half)
    _rooms(sheet, "client", 2 * GAP + half, GAP, half)
    _rooms(sheet, "shared", GAP, sheet.bottom + GAP, WIDTH - 2 * GAP)
    return sheet.svg("The rooms of Lacuna: each may import what lies lower in its package, and all may import shared")


def _rooms(sheet: Sheet, package: str, x: float, y: float, width: float) -> None:
    sheet.write(f"{package}/   {sentence_of(package)}", x, y + LINE, "head")
    y += LINE + GAP
    for row in layers(package):
        each = (width - (len(row) - 1) * GAP) / len(row)
        boxes = [_room(package, name) for name in row]
        height = max(box.height(each) for box in boxes)
        for at, box in enumerate(boxes):
            sheet.box(box, x + at * (each + GAP), y, each, height)
        y += height + GAP


def _room(package: str, name: str) -> Box:
    room = f"{package}/{name}"
    inside = sorted(path.parent.name for path in (HOUSE / room).glob("*/__init__.py"))
    small = [f"in it: {', '.join(inside)}"] if inside else []
    small += [f"uses: {', '.join(found)}"] if (found := uses(room)) else []
    return Box(title=name, text=sentence_of(room), colour=COLOURS[package], small=small)


def draw_round() -> str:
    sheet, width = Sheet(), (WIDTH - 4 * GAP) / 3
    lanes = {"server": GAP, "shared": 2 * GAP + width, "client": 3 * GAP + 2 * width}
    titles = {"server": "the coordinator: server/", "shared": "at both ends: shared/", "client": "a site: client/"}
    for lane, x in lanes.items():
        sheet.write(titles[lane], x, GAP + LINE, "head")
    _chain(sheet, ROUND, lanes, width, GAP + LINE + GAP)
    return sheet.svg("A round, from the handshake to the released model")


def _chain(sheet: Sheet, steps: Steps, lanes: Mapping[str, float], width: float, y: float) -> list[float]:
    """One below the other, each in its lane, with an arrow from each to the next; gives the middle of each."""
    middles = []
    before: float | None = None
    for room, name, when in steps:
        box, x = step(room, name, when), lanes[room.split("/")[0]]
        y += 1.5 * GAP
        if before is not None:
            sheet.arrow(before + width / 2, y - 1.5 * GAP, x + width / 2, y)
        sheet.box(box, x, y, width, box.height(width))
        middles.append(y + box.height(width) / 2)
        before, y = x, y + box.height(width)
    return middles


def draw_bundle() -> str:
    sheet, width = Sheet(), (WIDTH - 6 * GAP) / 3
    left, middle, right = GAP, 3 * GAP + width, 5 * GAP + 2 * width
    for title, x in (("made by the coordinator", left), ("a bundle: a folder", middle), ("used at a site", right)):
        sheet.write(title, x, GAP + LINE, "head")
    top = GAP + LINE
    made = _chain(sheet, MADE, dict.fromkeys(COLOURS, left), width, top)
    used = _chain(sheet, USED, dict.fromkeys(COLOURS, right), width, top)
    y: float = top
    for name, text in bundle_files():
        y += 1.5 * GAP
        box = Box(title=name, text=text, colour="#f3f3f5")
        sheet.box(box, middle, y, width, box.height(width))
        y += box.height(width)
    frame = (middle - GAP / 2, top + GAP, width + GAP, y - top)
    sheet.parts.append(
        '<rect x="{:g}" y="{:g}" width="{:g}" height="{:g}" rx="8" fill="none" stroke="#8a8f98"'
        ' stroke-dasharray="5 4"/>'.format(*frame)
    )
    sheet.bottom = max(sheet.bottom, frame[1] + frame[3])
    for x, at in ((left + width, made[-1]), (middle + width + GAP / 2, used[0])):  # from export, and into load
        sheet.parts.append(f'<path d="M{x:g} {at:g} h{1.5 * GAP:g}" stroke="#4a4f57" marker-end="url(#tip)"/>')
    return sheet.svg("A bundle: how it is made, what is in it, how it is used")


def bundle_files() -> list[tuple[str, str]]:
    """Name and meaning of each file, as a docstring of shared/model lists them: indented, two spaces between."""
    for path in files_of("shared/model"):
        lines = (ast.get_docstring(module_of(path)) or "").split("\n")
        if not any(line.strip().startswith(f"{BUNDLE_FILE}  ") for line in lines):
            continue
        rows: list[tuple[str, str]] = []
        for line in (line for line in lines if line.startswith("    ")):
            name, _, text = line.strip().partition("  ")
            if line.startswith("     "):  # goes on from the line above
                rows[-1] = (rows[-1][0], f"{rows[-1][1]} {line.strip()}")
            else:
                rows.append((name, text.strip().replace("`", "")))
        return rows
    raise SystemExit(f"docs/draw.py: no docstring in shared/model lists {BUNDLE_FILE}")


DRAWN = {"rooms.svg": draw_rooms, "round.svg": draw_round, "bundle.svg": draw_bundle}


def main(check: bool) -> int:
    stale = []
    for name, draw in DRAWN.items():
        made, path = draw(), PICTURES / name
        if check and (not path.exists() or path.read_text(encoding="utf-8") != made):
            stale.append(name)
        elif not check:
            path.write_text(made, encoding="utf-8")
    if stale:
        print(f"not what the code says any more: {', '.join(stale)}; run python docs/draw.py", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
