"""A page that really listens on a loopback port, for tests that ask it over HTTP; and a plain client for it."""

import contextlib
import re
import threading
import time
from collections.abc import Iterator, Sequence

import httpx

from shared.page.ask import Route
from shared.page.look import Look
from shared.page.serve import Served, Where

_OPEN: list[httpx.Client] = []  # closed with the page that they asked


@contextlib.contextmanager
def listening(routes: Sequence[Route], look: Look, where: Where | None = None) -> Iterator[Served]:
    served = Served(routes, look, where or Where())
    server = served._server()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [served._socket]}, daemon=True)
    thread.start()
    end = time.monotonic() + 10
    while not server.started and time.monotonic() < end:
        time.sleep(0.01)
    assert server.started
    try:
        yield served
    finally:
        while _OPEN:
            _OPEN.pop().close()
        server.should_exit = True
        thread.join(timeout=10)


class Browser:
    """What a browser sends for a person: its cookie, the form's token, where the form came from."""

    def __init__(self, served: Served) -> None:
        self.url = served.url.rstrip("/")
        self.http = httpx.Client(base_url=self.url, timeout=30)
        _OPEN.append(self.http)

    def enter(self, link: str) -> httpx.Response:
        return self.http.get(link)

    @property
    def csrf(self) -> str:
        found = re.search(r'<meta name="csrf" content="([^"]+)"', self.http.get("/", follow_redirects=True).text)
        assert found is not None
        return found[1]

    def post(self, path: str, **fields: str | Sequence[str]) -> httpx.Response:
        data = {"csrf": self.csrf, **fields}
        return self.http.post(path, data=data, headers={"Origin": self.url})


def entered(served: Served) -> Browser:
    browser = Browser(served)
    assert browser.enter(served.link()).status_code == 200
    return browser
