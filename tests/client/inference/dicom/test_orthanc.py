"""What we write, in a real PACS and back: equal pixels and UIDs, and no half-sent series goes unnoticed."""

import http.server
import io
import json
import shutil
import socket
import threading
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from pynetdicom import AE
from support.cohort.shared_data import unpacked
from support.dicom.orthanc import Pacs, running
from support.dicom.studies import NOW, turned, volumes, write_study

from client.inference.dicom import push as dicom_push
from client.inference.dicom.out import LABEL, Series, write_series
from client.inference.dicom.push import Peer, parse_target, push
from client.inference.dicom.source import read_study
from shared.base.errors import ConfigError, DataError

pytestmark = pytest.mark.slow  # left out of `make fast`


def series_of(tmp_path: Path, n: int = 14) -> tuple[Series, ...]:
    """More images than one request takes."""
    affine, shape = turned((10, 0, 0), (1, 1, 1)), (20, 24, n)
    write_study(tmp_path / "study", affine, [np.full(shape, 7, np.uint16)])
    mean, _ = volumes(tmp_path / "nifti", "FLAIR", affine, shape)
    return write_series({"FLAIR": mean}, read_study(tmp_path / "study"), tmp_path / "out", now=NOW)


def files_of(series: tuple[Series, ...]) -> list[Path]:
    return [path for one in series for path in one.files]


def test_the_pacs_answers(pacs: Pacs) -> None:
    assert pacs.get("/studies") == []
    assert pacs.get("/dicom-web/studies") == []


@pytest.mark.parametrize("way", ["STOW-RS", "C-STORE"])
def test_a_synthesised_series_comes_back_as_it_went(pacs: Pacs, tmp_path: Path, way: str) -> None:
    series = series_of(tmp_path)
    pacs.store(tmp_path / "study")
    target = parse_target(pacs.dicomweb if way == "STOW-RS" else f"ORTHANC@{pacs.host}:{pacs.dicom_port}")
    steps: list[tuple[int, int]] = []
    push(files_of(series), target, progress=lambda done, of: steps.append((done, of)))
    assert steps[-1] == (28, 28)
    assert len(pacs.get("/studies")) == 1  # the source's own
    assert len(pacs.get("/series")) == 3
    for one in series:
        back = {
            image.SOPInstanceUID: image
            for image in (dcmread(io.BytesIO(b)) for b in pacs.instances(SeriesInstanceUID=one.uid))
        }
        sent = {image.SOPInstanceUID: image for image in map(dcmread, one.files)}
        assert back.keys() == sent.keys()
        for uid, image in sent.items():
            assert np.array_equal(back[uid].pixel_array, image.pixel_array)
            assert back[uid].FrameOfReferenceUID == image.FrameOfReferenceUID
            assert back[uid].SeriesDescription.startswith(LABEL)
    push(files_of(series), target)  # again: nothing is doubled
    assert len(pacs.get("/instances")) == 14 + 28


def test_no_half_of_an_image_waits_for_the_other_to_be_acknowledged(
    pacs: Pacs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C-STORE sends an image in two pieces; the kernel kept the second for some 40 ms."""
    made: list[Any] = []

    def associate(entity: AE, *words: Any, **named: Any) -> Any:
        made.append(real(entity, *words, **named))
        return made[-1]

    real = AE.associate
    monkeypatch.setattr(AE, "associate", associate)
    at_once: list[int] = []

    def look(done: int, of: int) -> None:
        at_once.append(made[0].dul.socket.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    push(files_of(series_of(tmp_path))[:2], parse_target(f"ORTHANC@{pacs.host}:{pacs.dicom_port}"), progress=look)
    assert at_once == [1, 1]


def is_near_the_middle(path: Path) -> bool:
    """A dozen neighbouring slices, or an instance that holds them all: enough to check places, and quick."""
    try:
        header = dcmread(path, stop_before_pixels=True, specific_tags=["InstanceNumber", "NumberOfFrames"])
    except InvalidDicomError:
        return False
    return "NumberOfFrames" in header or 50 <= int(header.InstanceNumber) < 62


def test_the_vendors_series_take_a_synthesised_one_back(pacs: Pacs, tmp_path: Path) -> None:
    """Siemens enhanced, GE and the fruit: a volume on the source's own grid, into the same study, at its places."""
    for archive in ("dicom/xa30_t1.tar.xz", "dicom/ge_t1.tar.xz", "dicom/deident.tar.xz"):
        pacs.clear()
        folder = tmp_path / archive / "study"
        folder.mkdir(parents=True)
        for path in sorted(p for p in unpacked(archive).rglob("*") if p.is_file() and is_near_the_middle(p)):
            shutil.copy(path, folder)
        pacs.store(folder)
        study = read_study(folder)
        like = study[0]
        n, frame = len(like.frames), like.frames[0]
        lps = np.eye(4)
        gap = (like.frames[-1].position - frame.position) / (n - 1)
        lps[:3, 0], lps[:3, 1] = like.columns * frame.spacing[1], like.rows * frame.spacing[0]
        lps[:3, 2], lps[:3, 3] = gap, frame.position
        mean, _ = volumes(tmp_path / archive, "T2", np.diag([-1, -1, 1, 1]) @ lps, (*frame.size[::-1], n))
        made = write_series({"T2": mean}, study, tmp_path / archive / "out", now=NOW)[:1]
        push(files_of(made), parse_target(pacs.dicomweb))
        assert len(pacs.get("/studies")) == 1
        back = [dcmread(io.BytesIO(b)) for b in pacs.instances(SeriesInstanceUID=made[0].uid)]
        assert len(back) == n
        places = sorted(tuple(map(float, image.ImagePositionPatient)) for image in back)
        assert np.allclose(places, sorted(tuple(one.position) for one in like.frames), atol=1e-2)
        assert {image.FrameOfReferenceUID for image in back} == {like.frame_of_reference}


def test_a_pacs_with_a_password_asks_for_it(tmp_path: Path) -> None:
    series = series_of(tmp_path, 3)
    (tmp_path / "pacs").mkdir()
    with running(tmp_path / "pacs", users={"site": "secret"}) as guarded:
        assert guarded.get("/dicom-web/studies") == []
        stranger = Pacs(http_port=guarded.http_port, dicom_port=guarded.dicom_port, pid=guarded.pid)
        with pytest.raises(urllib.error.HTTPError, match="401"):
            stranger.get("/dicom-web/studies")
        with pytest.raises(DataError, match="0 of 6 images were stored, 6 were not: HTTP 401"):
            push(files_of(series), guarded.dicomweb)
        push(files_of(series), guarded.dicomweb, authorization=guarded.authorization)
        assert len(guarded.get("/instances")) == 6


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("https://pacs.example/dicom-web/", "https://pacs.example/dicom-web"),
        ("http://127.0.0.1:8042/dicom-web", "http://127.0.0.1:8042/dicom-web"),
        ("PACS@10.0.0.1:104", Peer(aet="PACS", host="10.0.0.1", port=104)),
        ("MY PACS@h:104", None),
        ("PACS@h", None),
        ("PACS@h:99999", None),
        ("ftp://h/x", None),
        ("", None),
    ],
)
def test_where_to_push_is_an_address_or_a_peer(text: str, meant: str | Peer | None) -> None:
    if meant is None:
        with pytest.raises(ConfigError, match=r"must be https://host/dicom-web or AET@host:port"):
            parse_target(text)
    else:
        assert parse_target(text) == meant


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # pynetdicom leaves its socket open
def test_nobody_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_push, "PAUSE", 0.01)
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        files = files_of(series_of(tmp_path, 2))
        for target in (f"http://127.0.0.1:{port}/dicom-web", Peer(aet="PACS", host="127.0.0.1", port=port)):
            with pytest.raises(DataError, match=r"0 of 4 images were stored, 4 were not: no answer"):
                push(files, target)


def test_a_server_that_keeps_only_some_is_noticed(tmp_path: Path) -> None:
    """It says 200 and acknowledges the first request alone; then it refuses one; then it talks nonsense."""
    files = files_of(series_of(tmp_path))
    uids = [dcmread(path, stop_before_pixels=True).SOPInstanceUID for path in files]

    def item(uid: str, **more: object) -> dict[str, object]:
        return {"00081155": {"vr": "UI", "Value": [uid]}, **more}

    some = {"00081199": {"vr": "SQ", "Value": [item(uid) for uid in uids[:24]]}}
    refusal = {
        "00081198": {"vr": "SQ", "Value": [item(uids[3], **{"00081197": {"vr": "US", "Value": [0xA700]}})]},
        "00081199": {"vr": "SQ", "Value": [item(uid) for uid in uids[:24]]},
    }
    for answer, line in (
        (some, "24 of 28 images were stored, 4 were not: the PACS did not acknowledge them"),
        (refusal, "23 of 28 images were stored, 5 were not: .* was refused, reason 0xa700"),
        ({}, "0 of 28 images were stored, 28 were not: the PACS did not acknowledge them"),
        ([], "0 of 28 images were stored, 28 were not: .* an answer that can't be read"),
        (None, "0 of 28 images were stored, 28 were not: the answer is no DICOM JSON"),
    ):
        with (
            answering(b"<html>" if answer is None else json.dumps(answer).encode()) as url,
            pytest.raises(DataError, match=line),
        ):
            push(files, url)


class answering:
    """A server that gives one answer to whatever is posted."""

    def __init__(self, body: bytes) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))

    def __enter__(self) -> str:
        self.thread.start()
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def test_a_peer_that_stops_in_the_middle_is_noticed(tmp_path: Path) -> None:
    from pynetdicom import AE, evt

    files = files_of(series_of(tmp_path, 4))
    taken: list[str] = []

    def handle(event: evt.Event) -> int:
        taken.append(event.request.AffectedSOPInstanceUID)
        return 0x0000 if len(taken) < 4 else 0xA700

    entity = AE(ae_title="FULL")
    entity.add_supported_context("1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.1.2.1")
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, handle)])
    try:
        peer = Peer(aet="FULL", host="127.0.0.1", port=server.server_address[1])
        with pytest.raises(
            DataError, match=r"3 of 8 images were stored, 5 were not: 0004.dcm was refused, status 0xa7"
        ):
            push(files, peer)
    finally:
        server.shutdown()
