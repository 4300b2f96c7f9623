"""Whoever stands between a site and its PACS, or calls itself one: images go and come as they were meant to."""

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pydicom import dcmread
from support.dicom.dicoms import write_series

from client.inference.dicom.push import parse_target, push
from client.ingest.arrive.dicomweb import Web
from client.ingest.arrive.receive import Receiver, Sender, parse_peer, parse_receiver
from client.ingest.arrive.source import UID
from client.ingest.arrive.sources import find_source
from shared.base.errors import ConfigError, DataError

Request = tuple[str, str, str]  # method, path, authorization


@contextmanager
def web(answer: bytes = b"[]", status: int = 200, location: str = "") -> Iterator[tuple[str, list[Request]]]:
    """A server on this machine that gives one answer to all, and what it was asked."""
    asked: list[Request] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked.append((self.command, self.path, self.headers.get("Authorization", "")))
            self.send_response(status)
            if location:
                self.send_header("Location", location)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_POST = do_CONNECT = do_GET

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def acknowledged(files: list[Path]) -> bytes:
    uids = [dcmread(path, stop_before_pixels=True).SOPInstanceUID for path in files]
    return json.dumps({"00081199": {"Value": [{"00081155": {"Value": [uid]}} for uid in uids]}}).encode()


# --- what goes to a PACS ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    ["http://10.0.0.1/dicom-web", "http://pacs.example:8042", "http://localhost.example/x", "http://127.0.0.1.x/"],
)
def test_identified_images_never_go_over_plain_http_to_another_machine(url: str) -> None:
    with pytest.raises(ConfigError, match="must be https: these images name a patient"):
        parse_target(url)


@pytest.mark.parametrize(
    "url", ["https://pacs.example/x", "http://127.0.0.1:8042/x", "http://localhost/x", "http://[::1]/x"]
)
def test_https_and_this_machine_are_fine(url: str) -> None:
    assert parse_target(url) == url


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_gets_no_password(tmp_path: Path, status: int) -> None:
    files = write_series(tmp_path / "a", "T1")[:2]
    with (
        web(acknowledged(files)) as (elsewhere, stolen),
        web(b"", status, f"{elsewhere}/steal") as (url, asked),
        pytest.raises(DataError, match=rf"0 of 2 images were stored.*HTTP {status}.*another address: name that one"),
    ):
        push(files, url, authorization="Basic c2VjcmV0")
    assert len(asked) == 1
    assert not stolen


def test_a_proxy_of_the_environment_gets_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_series(tmp_path / "a", "T1")[:2]
    with web(acknowledged(files)) as (proxy, read), web(acknowledged(files)) as (url, asked):
        monkeypatch.setenv("http_proxy", proxy)
        monkeypatch.setenv("https_proxy", proxy)
        push(files, url, authorization="Basic c2VjcmV0")
    assert not read
    assert len(asked) == 1


@pytest.mark.parametrize("url", ["https://me:secret@pacs/x", "http://me:secret@127.0.0.1/x"])
def test_no_password_stands_on_the_command_line(url: str) -> None:
    with pytest.raises(ConfigError, match="put the authorization into a file") as told:
        parse_target(url)
    assert "secret" not in str(told.value)


# --- what comes from one ----------------------------------------------------------------------------------------------


def test_a_password_never_goes_over_plain_http_to_another_machine(tmp_path: Path) -> None:
    auth = tmp_path / "auth"
    auth.touch(mode=0o600)
    auth.write_text("Bearer secret")
    with pytest.raises(ConfigError, match="sent to another machine over https alone") as told:
        find_source("http://pacs.example/dicom-web", auth_file=auth)
    assert "secret" not in str(told.value)
    find_source("https://pacs.example/dicom-web", auth_file=auth)


NO_UIDS = ["..", ".", "1..2", ".1", "1.", "1/2", "1" * 65, "1.2\n", "１.2", "", "1.2?x=1", "%2e%2e", "1.2.a"]


@pytest.mark.parametrize("uid", NO_UIDS)
def test_a_uid_that_is_none_is_no_uid(uid: str) -> None:
    assert UID.fullmatch(uid) is None


@pytest.mark.parametrize("uid", ["1.2.840.10008.5.1.4.1.1.2", "0", "2.25.1", "1.02.3", "1" * 64])
def test_a_uid_is_one(uid: str) -> None:
    assert UID.fullmatch(uid) is not None


def test_a_server_that_calls_a_study_dot_dot_reaches_no_other_folder(tmp_path: Path) -> None:
    """Its series would have been written beside what other sources brought, or over it."""
    rows = [{tag: {"Value": [".."]} for tag in ("0020000D", "0020000E", "00080018")} | {"00080060": {"Value": ["MR"]}}]
    with web(json.dumps(rows).encode()) as (url, asked):
        source = Web(url=url, connections=1, wait=lambda _: None)
        folder, asides = source.bring(tmp_path / "in" / "there", lambda title: contextlib.nullcontext(lambda *_: None))
    assert [aside.why for aside in asides] == ["the server names a UID that is none"]
    assert [path for _, path, _ in asked] == ["/studies?limit=100&offset=0"]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert list(folder.iterdir()) == []


def test_a_receiver_listens_to_this_machine_alone_unless_told() -> None:
    assert parse_receiver("receive:11112/LACUNA") == ("127.0.0.1", 11112, "LACUNA")
    assert parse_receiver("receive:10.0.0.7:11112/LACUNA")[0] == "10.0.0.7"


def test_a_receiver_takes_nothing_from_just_anybody() -> None:
    with pytest.raises(ConfigError, match="--peer: missing; who may send must be named"):
        find_source("receive:11112/LACUNA")
    with pytest.raises(ConfigError, match=r"must be PACS@ADDRESS where 0\.0\.0\.0 is listened on"):
        find_source("receive:0.0.0.0:11112/LACUNA", peers=("PACS",))
    find_source("receive:0.0.0.0:11112/LACUNA", peers=("PACS@10.0.0.5",))


@pytest.mark.parametrize("peer", ["", "PACS@", "PACS@pacs.example", "A@B@10.0.0.5", "PACS@10.0.0.500", "M" * 17, "Ä"])
def test_a_peer_is_a_title_and_an_address_of_numbers(peer: str) -> None:
    with pytest.raises(ConfigError, match="must be AETITLE or AETITLE@ADDRESS"):
        parse_peer(peer)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # pynetdicom leaves its socket open
def test_a_stranger_and_a_peer_at_another_address_store_nothing(tmp_path: Path) -> None:
    from pynetdicom import AE

    image = write_series(tmp_path / "a", "T1")[0]
    header = dcmread(image)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said: dict[str, bool] = {}

    def send() -> None:
        for title in ("STRANGER", "ELSEWHERE", "PACS"):
            entity = AE(ae_title=title)
            entity.add_requested_context(header.SOPClassUID, header.file_meta.TransferSyntaxUID)
            association = entity.associate("127.0.0.1", port, ae_title="LACUNA")
            said[title] = association.is_established
            if association.is_established:
                association.send_c_store(header)
                association.release()

    sender = threading.Thread(target=send)
    listed = (Sender(title="PACS", address="127.0.0.1"), Sender(title="ELSEWHERE", address="10.0.0.5"))
    receiver = Receiver(port=port, title="LACUNA", peers=listed, idle=1.0, ready=sender.start)
    folder, asides = receiver.bring(tmp_path / "in", lambda title: contextlib.nullcontext(lambda *_: None))
    sender.join()
    assert said == {"STRANGER": False, "ELSEWHERE": False, "PACS": True}
    assert len(list(folder.rglob("*.dcm"))) == 1
    assert [aside.why for aside in asides] == [
        "'STRANGER' at 127.0.0.1 is no --peer: refused",
        "'ELSEWHERE' at 127.0.0.1 is no --peer: refused",
    ]
