"""STATE/site.toml: one reader, whoever asks for one of its tables."""

from pathlib import Path

import pytest

from client.site.settings import SETTINGS, SiteFile, read_file
from client.site.site import find_site
from shared.base.errors import ConfigError


def test_the_tables_are_as_they_were_written(tmp_path: Path) -> None:
    assert read_file(tmp_path) == SiteFile()
    (tmp_path / SETTINGS).write_text('[text]\nkey_file = "/k"\n[site]\ndevice = "cpu"\n[policy]\nmin_subjects = 2\n')
    assert read_file(tmp_path) == SiteFile(site={"device": "cpu"}, policy={"min_subjects": 2}, text={"key_file": "/k"})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[polcy]\nmin_subjects = 2\n", r"\[polcy\] is unknown; it has \[site\], \[policy\] and \[text\]"),
        ("policy = 3\n", r"policy=3: policy must be a table, \[policy\]"),
        ("text = []\n", r"text=\[\]: text must be a table, \[text\]"),
        ("[policy\n", "can't be read: is no TOML"),
        ("#" * 2**20 + "\n", "can't be read: .*is over"),
    ],
)
def test_a_slip_of_the_pen_keeps_the_site_out_of_training(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / SETTINGS).write_text(text)
    with pytest.raises(ConfigError, match=rf"site.toml: {says}"):
        find_site({"site": "north", "cohort": "/data", "state": str(tmp_path)})
