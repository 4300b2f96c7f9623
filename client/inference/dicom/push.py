"""Written series into a PACS, by STOW-RS or C-STORE: each image is acknowledged, or the error says how far it came.

    https://host/dicom-web     STOW-RS, a few images per request
    AET@host:port              C-STORE in one association

These images name a patient. Over plain http they go to this machine alone, where a PACS or the site's own tunnel may
listen; a redirect is not followed, and no proxy is asked. C-STORE does not encrypt: it is for the hospital's own
network. Sending again is safe: the same files bear the same UIDs. What was not acknowledged counts as not sent.
"""

import json
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from http.client import HTTPMessage
from pathlib import Path
from typing import IO, Any

from pydicom import Dataset, dcmread

from client.ingest.arrive.dicomweb import check_url, is_secure
from shared.base.display.progress import Progress, unwatched
from shared.base.errors import ConfigError, DataError

OWN_AET = "LACUNA"
AT_ONCE = 24  # images per request
TRIES, PAUSE = 3, 1.0  # of a request that met no server; seconds, doubled each time
TIMEOUT = 120.0
MOST_ANSWER = 2**24  # bytes
SEQUENCES = {"00081199": "stored", "00081198": "failed"}  # of a STOW-RS answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A DICOM application that listens for C-STORE."""

    aet: str
    host: str
    port: int


def parse_target(text: str) -> str | Peer:
    """Read a DICOMweb address or AET@host:port; ConfigError for anything else."""
    if re.fullmatch(r"https?://[^\s/]+(/\S*)?", text):
        if not is_secure(check_url(text, "--push")):
            raise ConfigError(f"--push {text}: must be https: these images name a patient, and http is not encrypted")
        return text.rstrip("/")
    found = re.fullmatch(r"([\x21-\x5b\x5d-\x7e]{1,16})@([A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\]):(\d{1,5})", text)
    if found is None or not 0 < int(found[3]) < 65536:
        raise ConfigError(f"--push {text}: must be https://host/dicom-web or AET@host:port")
    return Peer(aet=found[1], host=found[2].strip("[]"), port=int(found[3]))


def push(
    files: Sequence[Path], target: str | Peer, *, authorization: str | None = None, progress: Progress = unwatched
) -> None:
    """Send all files, each acknowledged; else a DataError with how many were, and why the next was not."""
    uids = {path: _uid(path) for path in files}
    if isinstance(target, Peer):
        stored, why = _store(files, uids, target, progress)
        name = f"{target.aet}@{target.host}:{target.port}"
    else:
        stored, why = _stow(files, uids, target, authorization, progress)
        name = target
    if why is not None or len(stored) < len(uids):
        raise DataError(
            f"--push {name}: {len(stored)} of {len(files)} images were stored, {len(files) - len(stored)} were not: "
            f"{why or 'the PACS did not acknowledge them'}. Nothing is lost here; the same command sends them again"
        )


def _uid(path: Path) -> str:
    return str(dcmread(path, stop_before_pixels=True, specific_tags=["SOPInstanceUID"]).SOPInstanceUID)


# --- STOW-RS ---------------------------------------------------------------------------------------------------------


def _stow(
    files: Sequence[Path], uids: dict[Path, str], url: str, authorization: str | None, progress: Progress
) -> tuple[set[str], str | None]:
    stored: set[str] = set()
    for start in range(0, len(files), AT_ONCE):
        batch = files[start : start + AT_ONCE]
        try:
            answer = _post(f"{url}/studies", batch, authorization)
        except DataError as error:
            return stored, str(error)
        got, refused = _read(answer)
        stored |= got & {uids[path] for path in batch}
        missing = [path for path in batch if uids[path] not in stored]
        if missing:
            reason = next(iter(refused.values()), None)
            return stored, None if reason is None else f"{missing[0].name} was refused, reason {reason}"
        progress(len(stored), len(files))
    return stored, None


class _Refusing(urllib.request.HTTPRedirectHandler):
    """Another address was not asked for: it may be anybody's."""

    def redirect_request(
        self, request: Any, answer: IO[bytes], code: int, why: str, headers: HTTPMessage, to: str
    ) -> None:
        return None  # the answer is an HTTPError then


_OPENER = urllib.request.build_opener(_Refusing, urllib.request.ProxyHandler({}))


def _post(url: str, batch: Iterable[Path], authorization: str | None) -> Any:
    boundary = uuid.uuid4().hex
    parts = [
        b"--%s\r\nContent-Type: application/dicom\r\n\r\n%s\r\n" % (boundary.encode(), path.read_bytes())
        for path in batch
    ]
    request = urllib.request.Request(url, data=b"".join([*parts, b"--%s--\r\n" % boundary.encode()]), method="POST")
    request.add_header("Content-Type", f'multipart/related; type="application/dicom"; boundary={boundary}')
    request.add_header("Accept", "application/dicom+json")
    if authorization:
        request.add_header("Authorization", authorization)
    for attempt in range(TRIES):
        try:
            with _OPENER.open(request, timeout=TIMEOUT) as answer:
                return json.loads(answer.read(MOST_ANSWER))
        except urllib.error.HTTPError as error:
            if error.code == 409:  # none was stored: the answer says why
                try:
                    return json.loads(error.read(MOST_ANSWER))
                except ValueError:
                    pass
            hint = {
                401: " (--auth-file)",
                403: " (its right to store)",
                404: " (its DICOMweb root)",
            } | dict.fromkeys(range(300, 400), " (another address: name that one)")
            raise DataError(f"HTTP {error.code} {error.reason}{hint.get(error.code, '')}") from None
        except ValueError:
            raise DataError("the answer is no DICOM JSON: not a STOW-RS service") from None
        except ssl.SSLError as error:
            raise DataError(f"no trusted connection: {error.reason}") from None
        except (urllib.error.URLError, OSError) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, ssl.SSLError) or attempt == TRIES - 1:
                raise DataError(f"no answer: {reason}") from None
            time.sleep(PAUSE * 2**attempt)
    raise AssertionError


def _read(answer: Any) -> tuple[set[str], dict[str, str]]:
    """Read which SOP instances were stored, and which were refused, with the reason."""
    found: dict[str, dict[str, str]] = {"stored": {}, "failed": {}}
    try:
        for tag, what in SEQUENCES.items():
            for item in (answer.get(tag) or {}).get("Value", []):
                uid = str(item["00081155"]["Value"][0])
                reason = (item.get("00081197") or {}).get("Value", ["unknown"])[0]
                found[what][uid] = f"{reason:#06x}" if isinstance(reason, int) else str(reason)[:40]
    except (KeyError, IndexError, TypeError, AttributeError):
        return set(), {"": "an answer that can't be read"}
    return found["stored"].keys() - found["failed"].keys(), found["failed"]


# --- C-STORE ---------------------------------------------------------------------------------------------------------


def _store(files: Sequence[Path], uids: dict[Path, str], peer: Peer, progress: Progress) -> tuple[set[str], str | None]:
    from pynetdicom import AE, evt

    entity = AE(ae_title=OWN_AET)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = TIMEOUT
    entity.connection_timeout = 10.0
    headers = [dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID"]) for path in files]
    for kind, syntax in sorted({(str(h.SOPClassUID), str(h.file_meta.TransferSyntaxUID)) for h in headers}):
        entity.add_requested_context(kind, syntax)
    opened: list[Any] = [(evt.EVT_CONN_OPEN, _at_once)]
    association = entity.associate(peer.host, peer.port, ae_title=peer.aet, evt_handlers=opened)
    if not association.is_established:
        why = "it refused the association (is LACUNA known to it, and the AE title right?)"
        return set(), why if association.is_rejected else "no answer"
    stored: set[str] = set()
    try:
        for path in files:
            try:
                status: Dataset = association.send_c_store(dcmread(path))
            except (ValueError, RuntimeError) as error:  # no accepted context; the association was lost
                return stored, f"{path.name}: {str(error).splitlines()[0][:160]}"
            code = status.get("Status")
            if code is None:
                return stored, f"{path.name}: the connection was lost before it was acknowledged"
            if code != 0x0000 and code & 0xF000 != 0xB000:  # 0xBxxx: stored, with a warning
                return stored, f"{path.name} was refused, status {code:#06x} {status.get('ErrorComment', '')}".rstrip()
            stored.add(uids[path])
            progress(len(stored), len(files))
    finally:
        if association.is_established:
            association.release()
    return stored, None


def _at_once(event: Any) -> None:
    """An image goes out as two messages: held back until the first is acknowledged, the second waits some 40 ms."""
    event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
