"""What a submission is made of, without a SuperLink."""

from pathlib import Path

import pytest

from client.site import bundle_guard
from server.superlink import submission
from server.superlink.superlink import bundle
from shared.base.errors import ConfigError
from shared.base.files import sha256
from shared.plan.config import load


def test_a_site_takes_the_bundle_and_it_is_the_same_for_every_run() -> None:
    content = bundle()
    assert content == bundle()
    assert bundle_guard.check(content, sha256(content)).id == "lacuna/lacuna-run"


def test_a_path_with_quotes_and_spaces_stays_one_override(tmp_path: Path) -> None:
    folder = tmp_path / "it's a, [place] = $here"
    assert load([submission.quoted("runs", folder)]).runs == str(folder)
    with pytest.raises(ConfigError, match="no federation there"):
        submission.link_to("127.0.0.1:8000", folder)
