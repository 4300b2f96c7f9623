"""DICOMweb against a real Orthanc, and against a server that does everything wrong; C-STORE from a real sender."""

import contextlib
import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support.cohort.shared_data import unpacked
from support.dicom.dicoms import write_series, write_study
from support.dicom.orthanc import Pacs, running

from client.ingest.arrive import dicomweb
from client.ingest.arrive.dicomweb import Web, check_url, read_authorization
from client.ingest.arrive.receive import Receiver, Sender, parse_receiver
from client.ingest.arrive.sources import find_source
from shared.base.errors import ConfigError, DataError

pytestmark = pytest.mark.slow  # left out of `make fast`

# A real PACS ----------------------------------------------------------------------------------------------------------


def test_a_pacs_becomes_a_cohort_and_again_fetches_nothing(
    site: Any,
    pacs: Pacs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_study(tmp_path / "a", "A", ["T1", "T2", "FLAIR"])
    write_study(tmp_path / "b", "B", ["T1", "CT"])
    pacs.store(tmp_path / "a", tmp_path / "b")
    monkeypatch.setattr(dicomweb, "PAGE", 7)  # so that pages are turned
    done = site.ingest(Web(url=pacs.dicomweb))
    assert sorted(list(job.inputs) for job in site.jobs) == [["T1", "CT"], ["T1", "T2", "FLAIR"]]
    assert done.files == 5 * 16
    assert not done.asides
    monkeypatch.setattr(Web, "_fetch", lambda *_: pytest.fail("fetched again"))
    assert site.ingest(Web(url=pacs.dicomweb)).files == 5 * 16


def test_what_is_fetched_is_what_was_stored(site: Any, pacs: Pacs, tmp_path: Path) -> None:
    paths = write_series(tmp_path / "a", "T1")
    pacs.store(tmp_path / "a")
    site.ingest(Web(url=pacs.dicomweb), review=True)
    fetched = {p.read_bytes() for p in (site.state / "ingest" / "incoming").rglob("*.dcm")}
    assert fetched == {path.read_bytes() for path in paths}


def test_real_series_of_three_makers_through_a_real_pacs(site: Any, pacs: Pacs) -> None:
    """Siemens enhanced and GE classic T1 are inputs; Philips' field map and Siemens' EPI are left aside by name."""
    for name in ("xa30_t1", "ge_t1", "enhanced_philips_siemens"):
        pacs.store(unpacked(f"dicom/{name}.tar.xz"))
    done = site.ingest(Web(url=pacs.dicomweb))
    assert [list(job.inputs) for job in site.jobs] == [["T1"], ["T1"]]
    assert done.files == 1 + 130 + 5
    why = sorted(aside.why.split(",")[0] for aside in site.asides)
    assert why == ["echo-planar", "magnitude and phase in one series"]


def test_only_the_studies_asked_for(site: Any, pacs: Pacs, tmp_path: Path) -> None:
    write_study(tmp_path / "a", "A", ["T1"], study="old", day="20200101")
    write_study(tmp_path / "b", "B", ["T2"], study="new", day="20240601")
    pacs.store(tmp_path)
    site.ingest(Web(url=pacs.dicomweb, dates="20240101-20241231"))
    assert [list(job.inputs) for job in site.jobs] == [["T2"]]


def test_a_password_is_needed_and_never_shown(site: Any, tmp_path: Path) -> None:
    (tmp_path / "pacs").mkdir()
    with running(tmp_path / "pacs", users={"site": "s3cret"}) as guarded:
        write_series(tmp_path / "a", "T1")
        guarded.store(tmp_path / "a")
        with pytest.raises(ConfigError, match="answers 401: give its authorization") as told:
            site.ingest(Web(url=guarded.dicomweb))
        assert "s3cret" not in str(told.value)
        keeps = tmp_path / "auth"
        keeps.write_text(f"Authorization: {guarded.authorization}\n")
        keeps.chmod(0o644)
        with pytest.raises(ConfigError, match="mode 0644 lets others at it"):
            read_authorization(keeps)
        keeps.chmod(0o600)
        source = find_source(guarded.dicomweb, auth_file=keeps)
        assert guarded.authorization not in repr(source)
        assert site.ingest(source).visits == 1


# A server that does everything wrong ----------------------------------------------------------------------------------


class Wrong(BaseHTTPRequestHandler):
    """Two instances of one series; each request is first answered by what stands in `trouble`."""

    trouble: list[str] = []  # noqa: RUF012
    asked: list[str] = []  # noqa: RUF012
    files: dict[str, bytes] = {}  # noqa: RUF012

    def do_GET(self) -> None:
        type(self).asked.append(self.path)
        trouble = type(self).trouble.pop(0) if type(self).trouble else ""
        if trouble.isdigit():
            self.send_response(int(trouble))
            if trouble == "503":
                self.send_header("Retry-After", "7")
            if trouble == "302":
                self.send_header("Location", "http://127.0.0.1:9/steal")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        path = self.path.partition("?")[0]
        if "/instances/" in path:
            body = (
                b"--X y\r\nContent-Type: application/dicom\r\n\r\n" + self.files[path.rsplit("/")[-1]] + b"\r\n--X y--"
            )
            kind = 'multipart/related; type="application/dicom"; boundary="X y"'
        else:
            tag, uids = ("0020000D", ["1.2"]) if path.endswith("/studies") else ("0020000E", ["1.2.3"])
            if path.endswith("/instances"):
                tag, uids = "00080018", list(self.files)
            if trouble == "traversal":
                uids = ["../../../../etc"]
            rows = [{tag: {"Value": [u]}, "00080060": {"Value": ["MR"]}} for u in uids]
            body, kind = json.dumps(rows).encode(), "application/dicom+json"
        if trouble == "garbage":
            body = b"<html>login</html>"
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if trouble == "cut" else body)
        if trouble == "cut":
            self.close_connection = True

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def wrong(tmp_path: Path) -> Iterator[str]:
    paths = write_series(tmp_path / "a", "T1")[:2]
    Wrong.trouble, Wrong.asked = [], []
    Wrong.files = {f"1.2.3.{i}": path.read_bytes() for i, path in enumerate(paths)}
    with ThreadingHTTPServer(("127.0.0.1", 0), Wrong) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/dicom-web"
        server.shutdown()
        thread.join()


def fetch(url: str, folder: Path) -> tuple[list[bytes], list[str], list[float]]:
    waits: list[float] = []
    source = Web(url=url, connections=1, wait=waits.append)
    place, asides = source.bring(folder, lambda title: contextlib.nullcontext(lambda done, total: None))
    assert not list(place.rglob("*.partial"))
    return [p.read_bytes() for p in sorted(place.rglob("*.dcm"))], [a.why for a in asides], waits


def test_what_fails_for_a_moment_is_asked_again_later(wrong: str, tmp_path: Path) -> None:
    Wrong.trouble = ["500", "503", "", "", "", "cut", "", "504"]
    files, asides, waits = fetch(wrong, tmp_path / "in")
    assert files == list(Wrong.files.values())
    assert not asides
    assert waits == [0.5, 7.0, 0.5, 0.5]


def test_what_fails_for_good_is_named_and_the_rest_is_fetched(wrong: str, tmp_path: Path) -> None:
    Wrong.trouble = ["", "", "", "404"]
    files, asides, _ = fetch(wrong, tmp_path / "in")
    assert files == list(Wrong.files.values())[1:]
    assert asides == ["on the server, not fetched: the server answers 404"]
    files, asides, _ = fetch(wrong, tmp_path / "in")  # the next ingest fetches what is missing, and that alone
    assert (len(files), asides) == (2, [])
    assert sum("/instances/" in path for path in Wrong.asked) == 3


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        (["500"] * 6, "the server answers 500, 6 times"),
        (["302"], "another address: name that one"),
        (["garbage"], "no JSON"),
        (["404"], "the server answers 404"),
    ],
)
def test_a_search_that_fails_is_one_line(wrong: str, tmp_path: Path, trouble: list[str], says: str) -> None:
    Wrong.trouble = list(trouble)
    with pytest.raises(DataError, match=says):
        fetch(wrong, tmp_path / "in")


def test_a_server_can_not_name_a_path(wrong: str, tmp_path: Path) -> None:
    Wrong.trouble = ["", "", "traversal"]
    files, asides, _ = fetch(wrong, tmp_path / "in")
    assert (files, asides) == ([], ["the server names a UID that is none"])


def test_nobody_there_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/dicom-web"
        with pytest.raises(DataError, match=r"the connection failed \(ConnectionError\), 6 times"):
            fetch(url, tmp_path / "in")


@pytest.mark.parametrize("url", ["http://me:secret@pacs/dicom-web", "http:///dicom-web", "https://pacs/x?y=1"])
def test_an_address_with_a_secret_or_without_a_host_is_refused(url: str) -> None:
    with pytest.raises(ConfigError) as told:
        check_url(url)
    assert "secret" not in str(told.value)


# C-STORE --------------------------------------------------------------------------------------------------------------


def test_a_receiver_takes_what_a_sender_stores(site: Any, tmp_path: Path) -> None:
    storescu = shutil.which("storescu")
    if storescu is None:
        pytest.skip("storescu is absent: apt install dcmtk")
    write_study(tmp_path / "a", "A", ["T1", "T2"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sent: list[int] = []

    def send() -> None:
        for title in ("SOMEBODY", "LACUNA"):
            command = [
                storescu,
                "-aec",
                title,
                "-aet",
                "PACS",
                "+sd",
                "+r",
                "127.0.0.1",
                str(port),
                str(tmp_path / "a"),
            ]
            sent.append(subprocess.run(command, capture_output=True, check=False).returncode)

    sender = threading.Thread(target=send)
    receiver = Receiver(port=port, title="LACUNA", peers=(Sender(title="PACS"),), idle=2.0, ready=sender.start)
    site.ingest(receiver)
    sender.join()
    assert sent[0] != 0  # another title is refused
    assert sent[1] == 0
    assert [list(job.inputs) for job in site.jobs] == [["T1", "T2"]]
    assert not list(site.leftovers())


@pytest.mark.parametrize("text", ["receive:", "receive:0/LACUNA", "receive:104/", "receive:104/TITLE-OF-MORE-THAN-16"])
def test_a_receiver_must_have_port_and_title(text: str) -> None:
    with pytest.raises(ConfigError, match="must be receive:PORT/AETITLE"):
        parse_receiver(text)
