"""An embeddings server on this machine, that keeps what it was sent and can misbehave."""

import json
import math
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

WIDTH = 24


def vector_of(text: str, width: int, turn: float = 0.0) -> list[float]:
    """Some numbers that depend on the text."""
    return [math.sin(i + 1 + turn + sum((j + 1) * ord(c) for j, c in enumerate(text)) * 0.37) for i in range(width)]


class EmbeddingsServer:
    """Speaks the embeddings endpoint; keeps what it was sent, and can misbehave."""

    def __init__(self, tls: tuple[Path, Path] | None = None) -> None:
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.turn = 0.0  # another value: another model under the same name
        self.answer: Callable[[BaseHTTPRequestHandler, dict[str, Any]], bool] | None = None  # True: it answered
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append((self.path, dict(self.headers), asked))
                if outer.answer is not None and outer.answer(self, asked):
                    return
                width = asked.get("dimensions", WIDTH)
                rows = [
                    {"object": "embedding", "index": i, "embedding": vector_of(text, width, outer.turn)}
                    for i, text in enumerate(asked["input"])
                ]
                self.say(200, json.dumps({"object": "list", "data": rows[::-1], "model": asked["model"]}).encode())

            def say(self, status: int, body: bytes, **headers: str) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a refused handshake
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    @property
    def prompts(self) -> list[str]:
        return [text for _, _, asked in self.requests for text in asked["input"]]

    def close(self) -> None:
        if not self._thread.is_alive():
            return
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
