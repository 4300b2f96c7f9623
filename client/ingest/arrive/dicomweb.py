"""Images from a DICOMweb server (PS3.18): searched by QIDO-RS page by page, fetched by WADO-RS file by file.

Each file is streamed to disk and appears whole or not at all, so an interrupted ingest goes on where it stopped and
memory does not grow with the images. What fails for a moment is asked again, later each time; what the server refuses
is left aside with its answer. The authorization comes from a file and goes to this server alone, to another machine
over https alone.
"""

import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import requests

from client.ingest.arrive.records import Aside
from client.ingest.arrive.source import SPARE, UID, is_this_machine, place
from shared.base.display.progress import Bar, Progress
from shared.base.errors import ConfigError, DataError
from shared.base.files import read_secret, writing
from shared.base.options import require

MODALITIES = ("MR", "CT", "PT")
PAGE = 100
MAX_PAGES = 10_000
MAX_JSON = 64 * 2**20
CHUNK = 2**18
CONNECTIONS = 4
ATTEMPTS = 6
FIRST_WAIT, MOST_WAIT = 0.5, 30.0  # seconds before the second attempt, and the longest wait
TIMEOUT = (10.0, 120.0)  # to connect, and between two pieces of an answer
PASSING = {408, 425, 429, 500, 502, 503, 504}
_STUDY, _SERIES, _INSTANCE, _MODALITY = "0020000D", "0020000E", "00080018", "00080060"


@dataclass(frozen=True, slots=True, kw_only=True)
class Web:
    """A server, which of its studies are wanted, and how it knows us."""

    url: str
    authorization: str = field(default="", repr=False)
    studies: tuple[str, ...] = ()  # StudyInstanceUIDs; () for all that the dates allow
    dates: str = ""  # YYYYMMDD-YYYYMMDD
    connections: int = CONNECTIONS
    wait: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        check_url(self.url)
        if self.authorization and not is_secure(self.url):
            raise ConfigError(f"source={self.url}: an authorization is sent to another machine over https alone")
        for uid in self.studies:
            require(UID.fullmatch(uid) is not None, "studies", uid, "StudyInstanceUIDs, one a line")
        require(
            re.fullmatch(r"(\d{8})?-?(\d{8})?", self.dates) is not None, "dates", self.dates, "like 20240101-20241231"
        )

    @property
    def name(self) -> str:
        return self.url.rstrip("/")

    def bring(self, incoming: Path, bar: Bar) -> tuple[Path, list[Aside]]:
        """All files of the wanted studies in a folder; those that are there already are not fetched again."""
        folder = place(incoming, self.name)
        asides: list[Aside] = []
        with bar("searching") as advance:
            wanted = self._search(asides, advance)
        todo = [key for key in wanted if not _path(folder, key).exists()]
        with bar("fetching") as advance, ThreadPoolExecutor(self.connections) as pool:
            done = len(wanted) - len(todo)
            advance(done, len(wanted))
            local = threading.local()
            for failed in pool.map(lambda key: self._fetch(key, folder, local), todo):
                if failed is not None:
                    asides.append(failed)
                done += 1
                advance(done, len(wanted))
        return folder, asides

    # QIDO-RS ----------------------------------------------------------------------------------------------------------

    def _search(self, asides: list[Aside], advance: Progress) -> list[tuple[str, str, str]]:
        """(study, series, instance) of every file of a series whose modality Lacuna may use."""
        session = self._session()
        studies = list(self.studies)
        if not studies:
            query = {"StudyDate": self.dates} if self.dates else {}
            studies = [uid for uid, _ in self._pages(session, "studies", _STUDY, query, asides)]
        wanted = []
        for done, study in enumerate(studies, start=1):
            for series, modality in self._pages(session, f"studies/{study}/series", _SERIES, {}, asides):
                if modality and modality not in MODALITIES:
                    known = modality if re.fullmatch(r"[A-Z]{2,10}", modality) else "another"
                    why = f"on the server, not fetched: a series of modality {known}"
                    asides.append(Aside(what="series", where=series, why=why, series=series))
                    continue
                path = f"studies/{study}/series/{series}/instances"
                wanted += [(study, series, uid) for uid, _ in self._pages(session, path, _INSTANCE, {}, asides)]
            advance(done, len(studies))
        return sorted(set(wanted))

    def _pages(
        self, session: requests.Session, path: str, tag: str, query: Mapping[str, str], asides: list[Aside]
    ) -> Iterator[tuple[str, str]]:
        """UIDs and modalities of all pages: until a page brings nothing new, whatever the server makes of the limit."""
        seen: set[str] = set()
        for _ in range(MAX_PAGES):
            found = self._json(session, path, {**query, "limit": str(PAGE), "offset": str(len(seen))})
            new = 0
            for entry in found:
                uid, modality = _first(entry, tag), _first(entry, _MODALITY)
                if uid in seen:
                    continue
                seen.add(uid)
                new += 1
                if UID.fullmatch(uid):
                    yield uid, modality
                else:
                    asides.append(Aside(what="series", where=path, why="the server names a UID that is none"))
            if not new or len(found) < PAGE:
                return

    def _json(self, session: requests.Session, path: str, query: Mapping[str, str]) -> Sequence[Mapping[str, Any]]:
        def ask() -> Sequence[Mapping[str, Any]]:
            headers = {"Accept": "application/dicom+json"}
            with session.get(
                f"{self.name}/{path}",
                params=query,
                headers=headers,
                timeout=TIMEOUT,
                stream=True,
                allow_redirects=False,
            ) as answer:
                if answer.status_code == 204:
                    return []
                _check(answer)
                content = b""
                for chunk in answer.iter_content(CHUNK):
                    content += chunk
                    if len(content) > MAX_JSON:
                        raise DataError(f"an answer of more than {MAX_JSON // 2**20} MB to a search")
                found = json.loads(content)
            if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
                raise DataError("an answer to a search that is no list of DICOM JSON objects")
            return found

        try:
            return cast(Sequence[Mapping[str, Any]], self._again(ask))
        except ValueError:
            raise DataError(f"{self.name}: an answer to a search that is no JSON") from None
        except DataError as error:
            raise DataError(f"{self.name}: {error}") from None

    # WADO-RS ----------------------------------------------------------------------------------------------------------

    def _fetch(self, key: tuple[str, str, str], folder: Path, local: threading.local) -> Aside | None:
        """One file; an Aside when it can't be had. A full disk ends the whole fetch."""
        if shutil.disk_usage(folder).free < SPARE:
            raise DataError("state: less than 1 GB of its disk is free; the files fetched so far are kept")
        if not hasattr(local, "session"):
            local.session = self._session()
        target = _path(folder, key)
        study, series, instance = key
        url = f"{self.name}/studies/{study}/series/{series}/instances/{instance}"
        accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'

        def ask() -> None:
            with local.session.get(
                url, headers={"Accept": accept}, timeout=TIMEOUT, stream=True, allow_redirects=False
            ) as answer:
                _check(answer)
                with writing(target, durable=False) as file:  # a damaged one is fetched again
                    _write_part(answer, file.write)

        try:
            self._again(ask)
        except DataError as error:
            return Aside(what="file", where=instance, why=f"on the server, not fetched: {error}", series=series)
        return None

    def _session(self) -> requests.Session:
        session = requests.Session()
        session.trust_env = False  # no .netrc, whose passwords would replace ours; proxies are a site's own matter
        if self.authorization:
            session.headers["Authorization"] = self.authorization
        return session

    def _again(self, ask: Callable[[], Any]) -> Any:
        """What fails for a moment is asked again, twice as late each time, or when the server says."""
        wait = FIRST_WAIT
        for attempt in range(1, ATTEMPTS + 1):
            asked_to_wait = 0.0
            try:
                return ask()
            except _Passing as error:
                reason, asked_to_wait = str(error), error.wait
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
                reason = f"the connection failed ({type(error).__name__})"
            except requests.RequestException as error:
                raise DataError(f"can't be asked ({type(error).__name__})") from None
            if attempt < ATTEMPTS:
                self.wait(min(max(wait, asked_to_wait), MOST_WAIT))
                wait *= 2
        raise DataError(f"{reason}, {ATTEMPTS} times")


class _Passing(Exception):
    """An answer that may be another one later."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


def _check(answer: requests.Response) -> None:
    status = answer.status_code
    if status == 200:
        return
    if status in PASSING:
        after = answer.headers.get("Retry-After", "")
        raise _Passing(f"the server answers {status}", float(after) if after.isdigit() else 0.0)
    if status in (401, 403):
        raise ConfigError(f"auth: the server answers {status}: give its authorization by --auth-file")
    if 300 <= status < 400:
        raise DataError(f"the server answers {status}, another address: name that one")
    raise DataError(f"the server answers {status}")


def _write_part(answer: requests.Response, write: Callable[[bytes], Any]) -> None:
    """The DICOM file within a multipart answer, or the answer itself, piece by piece; cut off ones are asked again."""
    kind = answer.headers.get("Content-Type", "")
    pieces = answer.iter_content(CHUNK)
    if not kind.lower().startswith("multipart/related"):
        if not kind.lower().startswith("application/dicom"):
            raise DataError("the server's answer is not DICOM")
        length, got = answer.headers.get("Content-Length", ""), 0
        for piece in pieces:
            write(piece)
            got += len(piece)
        if length.isdigit() and got < int(length):
            raise _Passing("the answer was cut off")
        return
    match = re.search(r'boundary="?([^";,]+)"?', kind, re.IGNORECASE)
    if match is None:
        raise DataError("the server's answer has parts, but names no boundary")
    end = b"\r\n--" + match[1].encode("latin-1")

    def more() -> bytes:
        for piece in pieces:
            return bytes(piece)
        raise _Passing("the answer was cut off")

    held, start = b"\r\n", -1
    while start < 0:
        if len(held) > 4 * CHUNK:
            raise DataError("the server's answer has no part")
        held += more()
        first = held.find(end)
        start = held.find(b"\r\n\r\n", first) if first >= 0 else -1
    held = held[start + 4 :]
    while (at := held.find(end)) < 0:
        cut = max(len(held) - len(end), 0)
        write(held[:cut])
        held = held[cut:] + more()
    write(held[:at])


def _first(entry: Mapping[str, Any], tag: str) -> str:
    value = entry.get(tag, {})
    values = value.get("Value", []) if isinstance(value, dict) else []
    return str(values[0]) if isinstance(values, list) and values else ""


def _path(folder: Path, key: tuple[str, str, str]) -> Path:
    study, series, instance = key
    return folder / study / series / f"{instance}.dcm"


def read_authorization(path: Path | None) -> str:
    """The header's value, such as `Bearer ...` or `Basic ...`, from a file of the user's own; "" without one."""
    if path is None:
        return ""
    text = read_secret(path, "auth-file").decode("latin-1").strip().removeprefix("Authorization:").strip()
    if not text or any(not " " <= c <= "~" for c in text):
        raise ConfigError(f"auth-file={path}: must hold one line, such as `Bearer TOKEN` or `Basic BASE64`")
    return text


def check_url(url: str, key: str = "source") -> str:
    """The address of a DICOMweb service, without credentials: the command line is seen by every user of a machine."""
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise ConfigError(f"{key}: an address with a user or password; put the authorization into a file, --auth-file")
    if not parts.hostname or parts.query or parts.fragment:
        raise ConfigError(f"{key}={url!r}: must be http(s)://host[:port]/path, such as https://pacs/dicom-web")
    return url.rstrip("/")


def is_secure(url: str) -> bool:
    """Can nobody on the way read what is sent there? Over https, or to this machine, as a tunnel of the site's own."""
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.hostname is not None and is_this_machine(parts.hostname))
