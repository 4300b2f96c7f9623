"""quality.html shows every subject, believes nobody, and lets its own script run alone."""

import base64
import hashlib
from html.parser import HTMLParser
from pathlib import Path

from client.ingest.cohort import page
from client.ingest.cohort.outcome import Outcome
from client.ingest.image.preparation import Quality
from client.ingest.image.quality import BrainFigures, ImageFigures

HOSTILE = "<script>alert('site')</script> & \"more\""
PNG = b"\x89PNG no picture"


class Table(HTMLParser):
    """The rows of a page as (text, what it is sorted by), with its pictures and scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[tuple[str, str | None]]] = []
        self.images: list[str | None] = []
        self.scripts: list[str] = []
        self.policy = ""
        self._in = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self._in = tag
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append(("", named.get("data-v")))
        elif tag == "img":
            self.images.append(named["src"])
        elif tag == "script":
            self.scripts.append("")
        elif tag == "meta" and "http-equiv" in named:
            self.policy = named["content"] or ""

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in in ("td", "th"):
            text, by = self.rows[-1][-1]
            self.rows[-1][-1] = (text + data, by)
        elif self._in == "script":
            self.scripts[-1] += data


def figures(*, registration: float | None, snr: float = 12.34, coverage: float = 0.97) -> ImageFigures:
    return ImageFigures(registration=registration, coverage=coverage, snr=snr, ghost=None, voxel_mm=(1.0, 1.0, 3.25))


def outcomes() -> list[Outcome]:
    brain = BrainFigures(ml=1234.4, length_mm=1, width_mm=1, height_mm=1, overlap=0.912, tissue=0.75, cut=0)
    images = {
        "T1": figures(registration=None),
        "FLAIR": figures(registration=0.8, snr=9.0),
        "T2": figures(registration=0.2, coverage=0.1),  # was left out, so its figures are not the cohort's
    }
    quality = Quality(brain=brain, images=images, reference="T1", how="rigid", warnings=("ghosts",))
    return [
        Outcome(
            subject="sub-01",
            session="ses-1",
            files={"T1": "a", "FLAIR": "b"},
            quality=quality,
            left={"T2": HOSTILE},
            excluded=None,
            key="k",
        ),
        Outcome(subject="sub-02", session=None, files={}, quality=None, left={}, excluded=HOSTILE, key="k"),
    ]


def test_every_subject_has_its_row_with_numbers_words_and_picture(tmp_path: Path) -> None:
    (tmp_path / "quality").mkdir()
    (tmp_path / "quality" / "sub-01_ses-1.png").write_bytes(PNG)
    text = page.render(tmp_path, outcomes(), "abcdef0123456789")
    assert "1 of 2 visits are in the cohort" in text
    assert "<code>abcdef012345</code>" in text
    table = Table(text)
    head, first, second = table.rows
    assert [name for name, _ in head] == [*page.COLUMNS, "pictures"]
    assert [by for _, by in first] == [
        "sub-01_ses-1",
        "kept",
        f"T2 left out: {HOSTILE} · ghosts",
        "T1, FLAIR",
        *("1234.4", "0.912", "0.75", "0.8", "0.97", "9", "", "3.25", ""),
    ]
    assert [word for word, _ in first[4:]] == ["1234", "0.91", "0.75", "0.80", "0.97", "9.0", "n/a", "3.25", ""]
    assert second[2] == (HOSTILE, HOSTILE)
    assert second[-1] == ("none", "")
    assert table.images == ["data:image/png;base64," + base64.b64encode(PNG).decode()]


def test_its_own_script_runs_and_no_other(tmp_path: Path) -> None:
    table = Table(page.render(tmp_path, outcomes(), "abcdef0123456789"))
    (script,) = table.scripts
    assert "localeCompare" in script
    sha = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert table.policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{sha}'"
