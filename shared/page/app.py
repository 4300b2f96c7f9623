"""Routes, a door and a look become a web application. [the only starlette]

Every request goes the same way: is the address ours, did a page of ours send it, who is it, may they; only then is the
body read, to its bound, and a handler asked, in a thread. Every answer bears the same headers. A handler that fails
says a line to its reader where the error is one of ours, else nothing but that it failed.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route as Path_
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.base.errors import LacunaError
from shared.page import people
from shared.page.ask import Answer, Ask, NotFound, Person, Route, see
from shared.page.door import Door, Session
from shared.page.look import KINDS, Look
from shared.page.people import Known
from shared.page.words import LANGUAGES, preferred

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self' data:",  # the viewer's own letters are a picture inside of it
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # with no-referrer a browser says of our own forms that they come from nowhere
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), usb=()",
    "Cache-Control": "no-store",
}
LANGUAGE, MOST_FIELDS, MOST_LINE = "lacuna-language", 200, 4096
NOBODY = Person(name="", roles=frozenset())
log = logging.getLogger("lacuna.page")


@dataclass(frozen=True, kw_only=True)
class Page:
    """One room's page. `known`: who has a password; nobody: the link alone lets in."""

    routes: Sequence[Route]
    look: Look
    door: Door
    known: Mapping[str, Known]
    cookie: str
    secure: bool = False

    def app(self) -> ASGIApp:
        every = [
            Path_("/enter/{token}", self._enter, methods=["GET"]),
            Path_("/static/{name}", self._static, methods=["GET"]),
            Path_("/login", self._login, methods=["GET", "POST"]),
            Path_("/leave", self._leave, methods=["POST"]),
            *(Path_(route.path, self._endpoint(route), methods=[route.method]) for route in self.routes),
        ]
        lost = {404: self._lost, 405: self._lost}
        return Guarded(Starlette(routes=every, exception_handlers=lost), self.door, secure=self.secure)

    # --- the ways in

    async def _enter(self, request: Request) -> Response:
        cookie = self.door.enter(request.path_params["token"])
        if cookie is None:
            return self._sorry(request, "This link was used already, or is too old: the terminal gives another.", 403)
        return self._let_in(request, cookie)

    def _let_in(self, request: Request, cookie: str) -> Response:
        """A page that leads on: a redirect from elsewhere would not carry a SameSite=Strict cookie."""
        answer = self._answer(self.look.page(_ask(request, NOBODY), "enter.html.j2"))
        answer.set_cookie(self.cookie, cookie, httponly=True, samesite="strict", secure=self.secure, path="/")
        return answer

    async def _login(self, request: Request) -> Response:
        ask = _ask(request, NOBODY)
        if not self.known:
            return self._sorry(request, "Open this page by the link that the terminal shows.", 403)
        if request.method == "GET":
            return self._answer(self.look.page(ask, "login.html.j2", wrong=False, waits=False))
        refusal = self.door.refusal("POST", request.headers, None, "")
        body = await _body(request, 2**12)
        if refusal is not None or body is None:
            return self._sorry(request, refusal or "too large", 403)
        form, waits = _form(body), self.door.waits()
        name, password = form.get("name", ("",))[0], form.get("password", ("",))[0]
        person = None if waits else await run_in_threadpool(people.check, self.known, name, password)
        if not waits:
            self.door.told(person is not None)
        if person is None:
            return self._answer(self.look.page(ask, "login.html.j2", status=403, wrong=not waits, waits=waits))
        return self._let_in(request, self.door.admit(person))

    async def _leave(self, request: Request) -> Response:
        session = self._session(request)
        body = await _body(request, 2**12)
        refusal = self.door.refusal("POST", request.headers, session, _token(request, _form(body or b"")))
        if refusal is not None:
            return self._sorry(request, refusal, 403)
        self.door.leave(request.cookies.get(self.cookie))
        answer = self._answer(see("/login"))
        answer.delete_cookie(self.cookie, path="/")
        return answer

    async def _static(self, request: Request) -> Response:
        path = self.look.files.get(request.path_params["name"])
        if path is None:
            return self._sorry(request, "There is nothing under this address.", 404)
        return FileResponse(path, media_type=KINDS[path.suffix], headers={"Cache-Control": "max-age=3600"})

    # --- the room's own pages

    def _endpoint(self, route: Route) -> Any:
        async def endpoint(request: Request) -> Response:
            session = self._session(request)
            if session is None:
                return self._answer(see("/login")) if self.known else await self._login(request)
            body = await _body(request, route.most)
            if body is None:
                return self._sorry(request, f"At most {route.most} bytes are taken here.", 413, session)
            form = {} if route.raw else _form(body)
            refusal = self.door.refusal(request.method, request.headers, session, _token(request, form))
            if refusal is not None:
                return self._sorry(request, refusal, 403, session)
            if not session.person.may(route.role):
                return self._sorry(request, f"This needs the role {route.role}, which you do not have.", 403, session)
            ask = _ask(request, session.person, form=form, body=body if route.raw else b"", csrf=session.csrf)
            try:
                return self._answer(await run_in_threadpool(route.handler, ask), ask)
            except NotFound:
                return self._sorry(request, "There is nothing under this address.", 404, session)
            except LacunaError as error:
                return self._sorry(request, str(error), 409, session)
            except Exception:
                log.exception("%s %s", route.method, route.path)  # the route, never the address
                return self._sorry(request, "That failed, and the terminal says more.", 500, session)

        return endpoint

    async def _lost(self, request: Request, error: Exception) -> Response:
        status = int(getattr(error, "status_code", 404))
        return self._sorry(request, "There is nothing under this address.", status, self._session(request))

    def _session(self, request: Request) -> Session | None:
        return self.door.session(request.cookies.get(self.cookie))

    def _sorry(self, request: Request, said: str, status: int, session: Session | None = None) -> Response:
        person, csrf = (NOBODY, "") if session is None else (session.person, session.csrf)
        return self._answer(self.look.sorry(_ask(request, person, csrf=csrf), said, status=status))

    def _answer(self, answer: Answer, ask: Ask | None = None) -> Response:
        headers = dict(answer.headers)
        if isinstance(answer.body, Path):
            return FileResponse(answer.body, media_type=answer.kind, headers=headers)
        made = Response(answer.body, answer.status, headers, media_type=answer.kind)
        if ask is not None and ask.query.get("lang") in LANGUAGES:
            made.set_cookie(LANGUAGE, ask.language, httponly=True, samesite="strict", secure=self.secure, path="/")
        return made


class Guarded:
    """Nothing is answered under another name than ours, and every answer has our headers."""

    def __init__(self, inner: ASGIApp, door: Door, *, secure: bool) -> None:
        self._inner, self._door = inner, door
        self._headers = {**HEADERS, **({"Strict-Transport-Security": "max-age=31536000"} if secure else {})}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return

        async def headed(message: Message) -> None:
            if message["type"] == "http.response.start":
                has = {name.lower() for name, _ in message["headers"]}
                more = [(k.lower().encode(), v.encode()) for k, v in self._headers.items()]
                message["headers"] = [*message["headers"], *((k, v) for k, v in more if k not in has)]
            await send(message)

        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 or not self._door.is_here(hosts[0]):
            refused = Response("This page is not known under that name.\n", 421, media_type="text/plain")
            await refused(scope, receive, headed)
            return
        await self._inner(scope, receive, headed)


# --- from a request


def _ask(request: Request, person: Person, **more: Any) -> Ask:
    query = dict(parse_qsl(request.url.query[:MOST_LINE], keep_blank_values=True, max_num_fields=MOST_FIELDS))
    chosen = query.get("lang", request.cookies.get(LANGUAGE, ""))
    return Ask(
        person=person,
        where=dict(request.path_params),
        query=query,
        path=request.url.path,
        language=chosen if chosen in LANGUAGES else preferred(request.headers.get("accept-language", "")),
        part=request.headers.get("hx-request") == "true",
        **more,
    )


async def _body(request: Request, most: int) -> bytes | None:
    """The body, if it is no larger; what is larger is not read to its end."""
    try:
        if int(request.headers.get("content-length", "0")) > most:
            return None
    except ValueError:
        return None
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            return None
        parts.append(part)
    return b"".join(parts)


def _form(body: bytes) -> dict[str, tuple[str, ...]]:
    """A form's fields; what is no form has none."""
    try:
        pairs = parse_qsl(body.decode("utf-8"), keep_blank_values=True, max_num_fields=MOST_FIELDS)
    except ValueError:
        return {}
    found: dict[str, tuple[str, ...]] = {}
    for name, value in pairs:
        found[name] = (*found.get(name, ()), value)
    return found


def _token(request: Request, form: Mapping[str, tuple[str, ...]]) -> str:
    return str(request.headers.get("x-csrf") or form.get("csrf", ("",))[0])
