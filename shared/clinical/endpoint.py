"""`openai_compatible`: an embeddings server of the site's own. Off unless the site names one; egress.py guards it.

No redirects, no proxies, TLS verified for any other machine. A body, sent or received, is in no log and no exception.
"""

import http.client
import json
import math
import socket
import ssl
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from shared.base.errors import ConfigError, DataError
from shared.base.files import read_secret
from shared.clinical.cache import Cache
from shared.clinical.egress import Address, Place, allowed_addresses, parse_url
from shared.clinical.probes import alike, probe_vectors
from shared.clinical.prompted import Prompted
from shared.clinical.settings import TextSettings

VERSION = 1
AT_ONCE = 64  # prompts in a request
MOST = 2**26  # bytes of an answer
_ANCHOR = "anchor"  # no prompt is called so


def open_endpoint(width: int, settings: TextSettings) -> Prompted:
    if settings.url is None or settings.model is None:
        raise ConfigError("text.url, text.model: missing; openai_compatible is off until the site names both")
    if settings.dimensions is not None and settings.dimensions != width:
        raise ConfigError(f"text.dimensions={settings.dimensions}: the network takes {width}")
    server = Server(settings)
    server.check()
    id = f"openai_compatible v{VERSION} model {settings.model} width {width}"
    if settings.state is None:
        return Prompted(id, width, server.embed)
    cache = Cache(settings.state, id)
    _forget_another_model(cache, Prompted(id, width, server.embed))
    return Prompted(id, width, server.embed, cache)


def _forget_another_model(cache: Cache, now: Prompted) -> None:
    """Empty the cache where the server now answers otherwise: models change under the same name."""
    vectors = probe_vectors(now)
    kept = cache.read(_ANCHOR)
    if kept is None or kept.size != vectors.size or not alike(kept.reshape(vectors.shape), vectors):
        cache.clear()
        cache.write(_ANCHOR, vectors.astype(np.float32))


class Server:
    def __init__(self, settings: TextSettings) -> None:
        assert settings.url is not None
        self._settings = settings
        self._place = parse_url(settings.url)

    def check(self) -> None:
        """ConfigError where the server may not be sent a prompt, or the key's file is open to others."""
        self._addresses()
        self._headers()

    def embed(self, texts: Sequence[str]) -> Tensor:
        parts = [self._ask(texts[i : i + AT_ONCE]) for i in range(0, len(texts), AT_ONCE)]
        return torch.cat(parts)

    def _ask(self, texts: Sequence[str]) -> Tensor:
        asked: dict[str, object] = {"model": self._settings.model, "input": list(texts), "encoding_format": "float"}
        if self._settings.dimensions is not None:
            asked["dimensions"] = self._settings.dimensions
        status, content, problem = self._post(json.dumps(asked).encode())
        if problem:
            raise DataError(f"text.url: the embeddings server did not answer ({problem})")
        if status != 200:
            raise DataError(f"text.url: the embeddings server answered with status {status}; must be 200")
        vectors = _read(content, len(texts))
        if vectors is None:
            raise DataError(f"text.url: the embeddings server's answer is not {len(texts)} embeddings")
        return vectors

    def _post(self, body: bytes) -> tuple[int, bytes, str]:
        """Send a request; gives status, answer and what went wrong. Nothing is raised: an error may hold the body."""
        headers = {"Content-Type": "application/json", "Accept": "application/json", **self._headers()}
        place, until = self._place, time.monotonic() + self._settings.timeout
        addresses = self._addresses()
        problem = "no address"
        for address in addresses:
            connection = http.client.HTTPConnection(place.host, place.port, timeout=self._settings.timeout)
            connection.debuglevel = 0
            try:
                connection.sock = self._connect(place, address.ip, loopback=address.loopback)
            except (OSError, ValueError) as error:
                problem = type(error).__name__
                continue
            try:
                connection.request("POST", f"{place.path}/embeddings", body=body, headers=headers)
                answer = connection.getresponse()
                content = bytearray()
                while chunk := answer.read1(2**16):
                    content += chunk
                    if len(content) > MOST:
                        return 0, b"", f"its answer is over {MOST} bytes"
                    if time.monotonic() > until:
                        return 0, b"", "TimeoutError"
                return answer.status, bytes(content), ""
            except (OSError, ValueError, http.client.HTTPException) as error:
                return 0, b"", type(error).__name__  # not asked again elsewhere
            finally:
                connection.close()
        return 0, b"", problem

    def _connect(self, place: Place, ip: str, *, loopback: bool) -> socket.socket:
        plain = socket.create_connection((ip, place.port), timeout=self._settings.timeout)
        if not place.tls:
            return plain
        try:
            return self._context(loopback=loopback).wrap_socket(plain, server_hostname=place.host)
        except BaseException:
            plain.close()
            raise

    def _context(self, *, loopback: bool) -> ssl.SSLContext:
        authority = self._settings.ca_file
        context = ssl.create_default_context(cafile=None if authority is None else str(authority))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if loopback and authority is None:  # nobody else can answer there
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def _addresses(self) -> list[Address]:
        return allowed_addresses(
            self._place, allowed_hosts=self._settings.allowed_hosts, allow=self._settings.allow_phi_egress
        )

    def _headers(self) -> dict[str, str]:
        if self._settings.key_file is None:
            return {}
        key = read_secret(self._settings.key_file, "text.key-file").strip()
        if not key or any(not 0x20 < byte < 0x7F for byte in key):
            raise ConfigError(f"text.key-file={self._settings.key_file}: must hold one line of printable ASCII")
        return {"Authorization": f"Bearer {key.decode('ascii')}"}


def _read(content: bytes, n: int) -> Tensor | None:
    """Read an answer as float32 (n, width), in the order that was asked for; None for anything else."""
    try:
        rows: dict[int, list[float]] = {}
        for entry in json.loads(content)["data"]:
            rows[int(entry["index"])] = [float(x) for x in entry["embedding"]]
        ordered = [rows[i] for i in range(n)]
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return None
    if len(rows) != n or len({len(row) for row in ordered}) != 1:
        return None
    if not all(math.isfinite(x) for row in ordered for x in row):
        return None
    return torch.tensor(ordered, dtype=torch.float32)
