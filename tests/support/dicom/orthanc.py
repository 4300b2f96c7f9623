"""A real PACS for tests: Debian's Orthanc with its DICOMweb plugin, on free loopback ports, in a folder of its own.

    def test_something(pacs: Pacs) -> None:      # empty at the start of each test
        pacs.store(path_of_a_dicom_file)
        client = DICOMwebClient(pacs.dicomweb)
        send_to(pacs.aet, pacs.host, pacs.dicom_port)

`running(folder, users={"name": "password"})` starts another one, for instance with a password.
"""

import base64
import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path("/usr/sbin/Orthanc")
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
PATIENCE = 30.0  # seconds until it must answer
HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pacs:
    """Where a running Orthanc is, and the few things that a test asks of it directly."""

    http_port: int
    dicom_port: int
    pid: int
    host: str = HOST
    aet: str = "ORTHANC"
    users: Mapping[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.http_port}"

    @property
    def dicomweb(self) -> str:
        return f"{self.url}/dicom-web"

    @property
    def authorization(self) -> str:
        """The header's value for the first user; "" where anybody may in."""
        if not self.users:
            return ""
        name, password = next(iter(self.users.items()))
        return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()

    def ask(self, path: str, *, body: bytes | None = None, method: str | None = None) -> bytes:
        request = urllib.request.Request(f"{self.url}{path}", data=body, method=method)
        if self.users:
            request.add_header("Authorization", self.authorization)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return bytes(answer.read())

    def get(self, path: str) -> Any:
        return json.loads(self.ask(path))

    def store(self, *paths: Path) -> None:
        """Put DICOM files in, by Orthanc's own REST door; a folder means every file below it."""
        for path in paths:
            for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
                self.ask("/instances", body=file.read_bytes())

    def instances(self, **tags: str) -> list[bytes]:
        """The DICOM files whose tags are these, as they came in: `pacs.instances(SeriesInstanceUID=uid)`."""
        query = json.dumps({"Level": "Instance", "Query": tags}).encode()
        return [self.ask(f"/instances/{name}/file") for name in sorted(json.loads(self.ask("/tools/find", body=query)))]

    def clear(self) -> None:
        for patient in self.get("/patients"):
            self.ask(f"/patients/{patient}", method="DELETE")


@contextlib.contextmanager
def running(folder: Path, *, users: Mapping[str, str] | None = None, **settings: Any) -> Iterator[Pacs]:
    """Orthanc as a child process from here to the end of the block; `settings` are keys of its configuration."""
    if not PROGRAM.exists() or not PLUGIN.exists():
        pytest.skip(f"{PROGRAM} or its DICOMweb plugin is absent: apt install orthanc orthanc-dicomweb")
    for _ in range(3):  # another process may take a port between the look and the start
        pacs = _start(folder, users or {}, settings)
        if pacs is not None:
            break
    else:
        raise RuntimeError(f"Orthanc did not come up: {(folder / 'orthanc.log').read_text()[-2000:]}")
    process, found = pacs
    try:
        yield found
    finally:
        process.kill()  # asked to end it takes seconds to put away what goes with it
        process.wait()
        shutil.rmtree(folder / "storage", ignore_errors=True)


@pytest.fixture(scope="session")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pacs]:
    with running(tmp_path_factory.mktemp("orthanc")) as found:
        yield found


@pytest.fixture
def pacs(orthanc: Pacs) -> Pacs:
    """One Orthanc for all tests of a process, empty at the start of each."""
    orthanc.clear()
    return orthanc


def _start(
    folder: Path, users: Mapping[str, str], settings: Mapping[str, Any]
) -> tuple[subprocess.Popen[bytes], Pacs] | None:
    http_port, dicom_port = _free_ports(2)
    configuration = {
        "Name": "lacuna-test",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [str(PLUGIN)],
        "HttpPort": http_port,
        "DicomPort": dicom_port,
        "DicomAet": "ORTHANC",
        "DicomAlwaysAllowEcho": True,
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowFind": True,
        "DicomAlwaysAllowGet": True,
        "DicomCheckCalledAet": False,
        "UnknownSopClassAccepted": True,
        "OverwriteInstances": True,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": bool(users),
        "RegisteredUsers": dict(users),
        "StableAge": 1,
        "ConcurrentJobs": 1,
        "HttpThreadsCount": 4,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "EnableWado": False, "StudiesMetadata": "Full"},
        **settings,
    }
    path = folder / "orthanc.json"
    path.write_text(json.dumps(configuration, indent=1), encoding="utf-8")
    with (folder / "orthanc.log").open("wb") as log:
        process = subprocess.Popen(
            [str(PROGRAM), str(path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8"},
        )
    found = Pacs(http_port=http_port, dicom_port=dicom_port, pid=process.pid, users=users)
    until = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < until:
        try:
            if "dicom-web" in found.get("/plugins"):
                return process, found
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    process.kill()
    process.wait()
    return None


def _free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]
