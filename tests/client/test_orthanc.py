"""What we write, in a real PACS and back."""

import urllib.error
from pathlib import Path

import pytest
from support.orthanc import Pacs, running


def test_the_pacs_answers(pacs: Pacs) -> None:
    assert pacs.get("/studies") == []
    assert pacs.get("/dicom-web/studies") == []


def test_a_pacs_with_a_password_asks_for_it(tmp_path: Path) -> None:
    with running(tmp_path, users={"site": "secret"}) as guarded:
        assert guarded.get("/dicom-web/studies") == []
        stranger = Pacs(http_port=guarded.http_port, dicom_port=guarded.dicom_port, pid=guarded.pid)
        with pytest.raises(urllib.error.HTTPError, match="401"):
            stranger.get("/dicom-web/studies")
