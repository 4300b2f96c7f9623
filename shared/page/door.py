"""Who may in: a link that works once, a password, a cookie; and which request a browser was not tricked into.

the link's token    -> once, for whoever starts the page; the cookie that it buys is HttpOnly and SameSite=Strict
name and password   -> where the page is seen from other machines, see people.py
Host                -> must be an address of ours: a name that somebody pointed at us (DNS rebinding) is refused
Origin, Sec-Fetch-* -> what another page sends, or embeds, is refused, and every form has the session's own token
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Lock

from shared.page.ask import Person

IDLE = 8 * 3600.0  # seconds without a request that end a session
LINK = 24 * 3600.0  # seconds that an unused link holds
MOST_SESSIONS = 64
TRIES, PAUSE = 5, 60.0  # wrong passwords in a row, and the seconds that nobody is let in after them


@dataclass(slots=True, kw_only=True)
class Session:
    person: Person
    csrf: str
    last: float


@dataclass(slots=True, kw_only=True)
class Door:
    """`hosts`: what a Host header may say, with its port."""

    hosts: frozenset[str]
    scheme: str = "http"
    clock: Callable[[], float] = time.monotonic
    _sessions: dict[str, Session] = field(default_factory=dict)  # by the cookie's hash
    _link: tuple[str, float, Person] | None = None  # hash of the token, since when, for whom
    _wrong: int = 0
    _closed_until: float = 0.0
    _lock: Lock = field(default_factory=Lock)

    # --- in and out

    def link(self, person: Person) -> str:
        """A new token for one entry; the one before is worth nothing any more."""
        token = secrets.token_urlsafe(32)
        with self._lock:
            self._link = (_hash(token), self.clock(), person)
        return token

    def enter(self, token: str) -> str | None:
        """The cookie that the token buys; None: it was used, is too old, or never was."""
        with self._lock:
            if self._link is None:
                return None
            known, since, person = self._link
            if not hmac.compare_digest(_hash(token), known) or self.clock() - since > LINK:
                return None
            self._link = None
        return self.admit(person)

    def admit(self, person: Person) -> str:
        """A session for somebody who is known."""
        cookie, now = secrets.token_urlsafe(32), self.clock()
        with self._lock:
            kept = {key: one for key, one in self._sessions.items() if now - one.last <= IDLE}
            while len(kept) >= MOST_SESSIONS:
                kept.pop(min(kept, key=lambda key: kept[key].last))
            kept[_hash(cookie)] = Session(person=person, csrf=secrets.token_urlsafe(24), last=now)
            self._sessions = kept
        return cookie

    def session(self, cookie: str | None) -> Session | None:
        if not cookie:
            return None
        with self._lock:
            found = self._sessions.get(_hash(cookie))
            if found is None or self.clock() - found.last > IDLE:
                return None
            found.last = self.clock()
            return found

    def leave(self, cookie: str | None) -> None:
        with self._lock:
            self._sessions.pop(_hash(cookie or ""), None)

    # --- passwords

    def waits(self) -> bool:
        """Too many wrong passwords: nobody is let in for a minute, whoever it was."""
        return self.clock() < self._closed_until

    def told(self, right: bool) -> None:
        with self._lock:
            self._wrong = 0 if right else self._wrong + 1
            if self._wrong >= TRIES:
                self._wrong, self._closed_until = 0, self.clock() + PAUSE

    # --- is it a request of ours

    def refusal(self, method: str, headers: Mapping[str, str], session: Session | None, sent: str) -> str | None:
        """Why a request is not taken; `sent`: the form's token."""
        if method not in ("GET", "HEAD"):
            origin = headers.get("origin")
            if origin is None or not hmac.compare_digest(origin.encode(), self.origin(headers).encode()):
                return "Origin: the form does not come from this page"
            if session is not None and not hmac.compare_digest(sent.encode(), session.csrf.encode()):
                return "the form's token is not this session's: load the page again"
        elif headers.get("sec-fetch-site", "none") in ("cross-site", "same-site"):
            embedded = headers.get("sec-fetch-dest", "document") != "document"
            if embedded or headers.get("sec-fetch-mode", "navigate") != "navigate":
                return "Sec-Fetch-Site: another page asks for this"
        return None

    def origin(self, headers: Mapping[str, str]) -> str:
        return f"{self.scheme}://{headers.get('host', '').lower()}"

    def is_here(self, host: str | None) -> bool:
        return host is not None and host.lower() in self.hosts


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
