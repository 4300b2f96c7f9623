"""Every pointer leads somewhere: from code to documents, from documents to each other, to headings and to decisions."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).resolve().parents[2]
TEXT = {".py", ".md", ".yaml", ".toml", ".sh", ".txt", ".conf", ".Dockerfile", ""}
HISTORY = ("docs/log.md", "CHANGELOG.md")  # what was true when it was written
POINTER = re.compile(r'(?<![\w/.])docs/[\w./-]*\w(?:(?:\.md)?,\s+(?:# )?"(?P<heading>[^"\n]*(?:\n[^"\n]*)?)")?')
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
DECISION = re.compile(r"\bdecisions? (\d{4})(?:(?: to | and |, )(\d{4}))*")
ELSEWHERE = re.compile(r"seed_systems|\bspecs/|\bspecs §|\bDESIGN\.md|\bSTYLE\.md|§ ?\d")


def tracked() -> list[str]:
    """What the repository holds, or will with the next commit."""
    asked = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    told = subprocess.run(asked, cwd=HOUSE, capture_output=True, text=True, check=False)
    if told.returncode:
        pytest.skip("not a checkout: what is tracked can't be told", allow_module_level=True)
    return sorted(name for name in told.stdout.splitlines() if (HOUSE / name).is_file())


FILES = [name for name in tracked() if Path(name).suffix in TEXT and name not in ("LICENSE", "constraints.txt")]
MARKDOWN = [name for name in FILES if name.endswith(".md")]


def text_of(name: str) -> str:
    return (HOUSE / name).read_text(encoding="utf-8")


def headings(name: str) -> set[str]:
    return set(re.findall(r"^#+ (.+?)\s*$", text_of(name), re.MULTILINE))


def anchors(name: str) -> set[str]:
    """As the usual viewers make them of headings."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings(name)}


def pointers() -> Iterator[tuple[str, str, str | None]]:
    """(file, where it points, heading)."""
    for name in FILES:
        if name in HISTORY or name.startswith("tests/docs/"):
            continue
        for found in POINTER.finditer(text_of(name)):
            place, heading = found.group().split(",")[0], found.group("heading")
            yield name, place, None if heading is None else re.sub(r"\s*\n[\s#]*", " ", heading)


def test_pointers_are_found() -> None:
    """The expression sees what it is meant to see."""
    found = list(pointers())
    assert len(found) > 60
    assert sum(heading is not None for *_, heading in found) > 25


@pytest.mark.parametrize(("name", "place", "heading"), sorted(set(pointers()), key=str))
def test_a_pointer_from_anywhere_leads_to_a_page_and_its_heading(name: str, place: str, heading: str | None) -> None:
    assert (HOUSE / place).exists(), f"{name} points to {place}, which is not there"
    if heading is not None:
        assert heading in headings(place), f"{name}: {place} has no heading {heading!r}"


def test_nothing_points_to_papers_digests_outside_of_the_repository() -> None:
    left = [
        f"{name}: {found.group()}"
        for name in FILES
        if name not in HISTORY and not name.startswith("tests/docs/")
        for found in ELSEWHERE.finditer(text_of(name))
    ]
    assert left == []


@pytest.mark.parametrize("name", MARKDOWN)
def test_links_between_pages_resolve(name: str) -> None:
    for target in LINK.findall(text_of(name)):
        if re.match(r"[a-z]+:", target):
            continue
        place, _, anchor = target.partition("#")
        page = (HOUSE / name).parent / place if place else HOUSE / name
        assert page.exists(), f"{name} links to {target}, which is not there"
        if anchor:
            assert anchor in anchors(str(page.resolve().relative_to(HOUSE))), f"{name}: no heading for {target}"


def test_decisions_that_are_named_exist() -> None:
    known = {path.name[:4] for path in (HOUSE / "docs" / "decisions").glob("*.md")}
    named = {
        (name, number)
        for name in FILES
        if not name.startswith("tests/docs/")
        for found in DECISION.finditer(text_of(name))
        for number in re.findall(r"\d{4}", found.group())
    }
    assert {number for _, number in named} >= {"0001", "0009", "0014"}
    assert {(name, number) for name, number in named if number not in known} == set()


def test_every_page_can_be_found_from_the_index() -> None:
    """Decisions and pictures are reached from the pages that need them."""
    reached, ahead = set(), [HOUSE / "docs" / "index.md"]
    while ahead:
        page = ahead.pop().resolve()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        targets = [link.partition("#")[0] for link in LINK.findall(page.read_text(encoding="utf-8"))]
        ahead += [page.parent / target for target in targets if target and (page.parent / target).exists()]
    pages = {HOUSE / name for name in MARKDOWN if not name.startswith("docs/decisions/")}
    assert pages - reached == set()


PLACE = re.compile(
    r"`((?:shared|server|client|configs|benchmarks|deploy|tests)/(?:[\w/-]*|[\w./-]*\.(?:py|md|yaml|sh)))`"
)


@pytest.mark.parametrize("name", [n for n in MARKDOWN if n not in HISTORY and not n.startswith("docs/decisions/")])
def test_files_and_folders_that_a_page_names_are_there(name: str) -> None:
    """Decisions, like the log, may name what was there when they were made."""
    assert [place for place in PLACE.findall(text_of(name)) if not (HOUSE / place).exists()] == []
