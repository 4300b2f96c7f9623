"""A page believes nothing that is put into it, and its policy lets one script run at most."""

import base64
import hashlib
from pathlib import Path

import pytest
from jinja2 import UndefinedError

from shared.base.display.page import embedded, render

HOSTILE = "<script>alert('site')</script>\" onload=\"x"


@pytest.fixture
def template(tmp_path: Path) -> Path:
    path = tmp_path / "one.html.j2"
    path.write_text(
        '{% extends "page.html.j2" %}{% set title = name %}'
        '{% block content %}<p title="{{ name }}">{{ name }}</p>{% endblock %}'
    )
    return path


def test_what_is_put_in_is_escaped(template: Path) -> None:
    page = render(template, name=HOSTILE)
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(&#39;site&#39;)&lt;/script&gt;&#34; onload=&#34;x") == 3


def test_a_name_that_is_not_given_is_an_error(template: Path) -> None:
    with pytest.raises(UndefinedError, match="name"):
        render(template)


def test_without_a_script_none_may_run_and_nothing_is_loaded(template: Path) -> None:
    page = render(template, name="n")
    assert "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\"" in page


def test_the_policy_names_the_one_script_by_its_hash(template: Path) -> None:
    script = "for (const a of []) if (a < 1 && a > 0) alert('1')\n"
    page = render(template, name=HOSTILE, script=script)
    written = page.split("<script>")[1].split("</script>")[0]
    assert written == script
    sha = base64.b64encode(hashlib.sha256(written.encode()).digest()).decode()
    assert f"style-src 'unsafe-inline'; script-src 'sha256-{sha}'\"" in page
    assert page.count("<script") == 1


def test_a_picture_is_carried_inside(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    assert embedded(tmp_path / "a.png") == "data:image/png;base64,iVBORw=="
