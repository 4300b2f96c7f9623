"""Every text of the pages has its German, and the table has none that nothing says."""

import ast
import re
from pathlib import Path

from shared.page.words import german, preferred, say_in

ROOT = Path(__file__).parents[3]
QUOTED = re.compile(r'"([^"]+)"')
STATES = [  # of other rooms, which a page says as it finds them
    ("in the cohort", "excluded", "rejected", "accepted"),  # review
    ("waits for you", "approved", "refused", "not asked about"),  # plans
    ("update", "inventory", "refusal", "reply"),  # the ledger
    ("ok", "refused", "rejected", "timeout", "error", "absent"),  # facts of a site
    ("running", "submitted", "finished", "failed", "stopped", "interrupted"),  # runs
    ("admitted", "revoked"),  # sites
    ("This needs the role decide, which you do not have.",),
]
ROOMS = [ROOT / room / "page" for room in ("shared", "client", "server")]
IN_TEMPLATE = re.compile(r"""\bt\(\s*"((?:[^"\\]|\\.)*)\"""")


def said_in_templates() -> set[str]:
    return {
        text for room in ROOMS for path in room.glob("*.j2") for text in IN_TEMPLATE.findall(path.read_text("utf-8"))
    }


def said_in_code() -> set[str]:
    """Whole texts of our modules and in lists of templates: what is said there as a value."""
    found = {text for room in ROOMS for path in room.glob("*.j2") for text in QUOTED.findall(path.read_text("utf-8"))}
    found |= {word for words in STATES for word in words}
    for room in ROOMS:
        for path in room.glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.add(node.value)
    return found


def test_every_text_of_a_template_has_its_german() -> None:
    assert said_in_templates() - set(german()) == set()


def test_the_table_has_no_text_that_nothing_says() -> None:
    assert set(german()) - said_in_templates() - said_in_code() == set()


def test_both_languages_have_the_same_places() -> None:
    places = re.compile(r"\{(\w*)\}")
    for text, other in german().items():
        assert sorted(places.findall(text)) == sorted(places.findall(other)), text


def test_a_text_is_said_in_the_language_that_is_asked_for() -> None:
    assert say_in("de")("Sign in") == "Anmelden"
    assert say_in("en")("Sign in") == "Sign in"
    assert say_in("de")("never written {n}", n=3) == "never written 3"


def test_the_browsers_wish_is_heard() -> None:
    assert preferred("de-DE,de;q=0.9,en;q=0.8") == "de"
    assert preferred("fr-FR,fr;q=0.9,de;q=0.5") == "de"
    assert preferred("fr") == preferred("") == "en"
