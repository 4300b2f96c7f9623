"""Who gets in, and what a browser is not tricked into: asked over HTTP of a page that really listens."""

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.page.pages import Browser, entered, listening

from shared.base.errors import ConfigError
from shared.page import people
from shared.page.ask import Answer, Ask, Person, Route
from shared.page.door import IDLE, LINK, PAUSE, TRIES, Door
from shared.page.look import Look
from shared.page.serve import Served, Where

DONE: list[str] = []


def start(ask: Ask) -> Answer:
    return LOOK.sorry(ask, "hello", status=200)


def act(ask: Ask) -> Answer:
    DONE.append(ask.person.name)
    return Answer(body=b"done", kind="text/plain")


def fails(ask: Ask) -> Answer:
    raise RuntimeError("secret /data/sub-07")


def file(ask: Ask) -> Answer:
    return Answer(body=Path(__file__), kind="text/plain")


LOOK = Look(folder=Path(__file__).parent, title="a test", ways=[("/", "Subjects")])
ROUTES = [
    Route(method="GET", path="/", handler=start),
    Route(method="GET", path="/file", handler=file),
    Route(method="GET", path="/fails", handler=fails),
    Route(method="POST", path="/act", handler=act, role="decide"),
    Route(method="POST", path="/send", handler=act, role="send", most=100),
]


@pytest.fixture
def served() -> Iterator[Served]:
    DONE.clear()
    with listening(ROUTES, LOOK) as found:
        yield found


def test_nobody_gets_in_without_the_link(served: Served) -> None:
    for path in ("/", "/file", "/fails"):
        assert httpx.get(served.url + path.lstrip("/")).status_code == 403
    answer = httpx.post(served.url + "act", headers={"Origin": served.url.rstrip("/")}, data={"csrf": ""})
    assert answer.status_code == 403
    assert not DONE


def test_the_link_lets_in_once_and_a_newer_one_ends_it(served: Served) -> None:
    old, link = served.link(), served.link()
    assert httpx.get(old).status_code == 403
    first = httpx.get(link)
    assert first.status_code == 200
    cookie = first.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert httpx.get(link).status_code == 403
    assert httpx.get(served.url + "enter/" + "a" * 43).status_code == 403


def test_a_form_needs_the_sessions_token_and_this_pages_origin(served: Served) -> None:
    me = entered(served)
    good, here = me.csrf, {"Origin": me.url}
    assert me.http.post("/act", data={"csrf": good}, headers=here).status_code == 200
    other = entered(served)
    refused = [
        me.http.post("/act", data={"csrf": good}),  # no Origin at all
        me.http.post("/act", data={"csrf": good}, headers={"Origin": "https://evil.example"}),
        me.http.post("/act", data={"csrf": good}, headers={"Origin": "null"}),
        me.http.post("/act", data={"csrf": good}, headers={"Origin": me.url.replace("http:", "https:")}),
        me.http.post("/act", data={"csrf": good}, headers={"Origin": me.url + "0"}),
        me.http.post("/act", data={}, headers=here),
        me.http.post("/act", data={"csrf": other.csrf}, headers=here),
        me.http.post("/act", content=f'{{"csrf": "{good}"}}', headers={**here, "Content-Type": "application/json"}),
    ]
    assert [answer.status_code for answer in refused] == [403] * len(refused)
    assert len(DONE) == 1
    assert me.http.post("/act", content="", headers={**here, "X-CSRF": good}).status_code == 200  # as htmx sends it


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "", "localhost"])
def test_a_name_that_somebody_pointed_at_us_is_refused(served: Served, host: str) -> None:
    me = entered(served)
    answer = me.http.get("/", headers={"Host": host.format(port=served.port)})
    assert answer.status_code in (400, 421)
    assert "hello" not in answer.text


def test_two_hosts_are_refused(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port)) as wire:
        wire.sendall(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nHost: evil\r\n\r\n".encode())
        assert wire.recv(200).split()[1] in (b"400", b"421")


def test_what_another_page_embeds_is_refused(served: Served) -> None:
    me = entered(served)
    for site in ("cross-site", "same-site"):
        embedded = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
        assert me.http.get("/file", headers=embedded).status_code == 403
        framed = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}
        assert me.http.get("/file", headers=framed).status_code == 403
    linked = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert me.http.get("/file", headers=linked).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/static/../page.py",
        "/static/..%2f..%2fapp.py",
        "/static/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/static//etc/passwd",
        "/static/",
        "/static",
        "/static/LICENSES.md",
        "/static/page.css%00.js",
        "/static/....//app.py",
        "/..%5c..%5cetc/passwd",
    ],
)
def test_nothing_but_the_listed_files_is_served(served: Served, path: str) -> None:
    with socket.create_connection(("127.0.0.1", served.port)) as wire:  # httpx would tidy the path up
        wire.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nConnection: close\r\n\r\n".encode())
        said = b"".join(iter(lambda: wire.recv(65536), b""))
    assert said.split()[1] in (b"404", b"403", b"307")
    assert b"root:" not in said
    assert b"import" not in said


def test_a_body_over_its_bound_is_not_taken(served: Served) -> None:
    me = entered(served)
    headers = {"Origin": me.url, "X-CSRF": me.csrf, "Content-Type": "application/x-www-form-urlencoded"}
    assert me.http.post("/send", content=b"a" * 101, headers=headers).status_code == 413
    endless = me.http.post("/send", content=iter([b"a" * 60] * 2000), headers=headers)  # no length given
    assert endless.status_code == 413
    assert not DONE
    assert me.http.post("/send", content=b"a" * 100, headers=headers).status_code == 200


def test_every_answer_bears_the_policy(served: Served) -> None:
    me = entered(served)
    for answer in (me.http.get("/"), me.http.get("/nowhere"), me.http.get("/static/page.css"), httpx.get(served.url)):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert "server" not in answer.headers
    assert me.http.get("/").headers["cache-control"] == "no-store"


def test_no_page_has_script_or_style_inside() -> None:
    root = Path(__file__).parents[3]
    templates = [*root.glob("shared/page/*.j2"), *root.glob("client/page/*.j2"), *root.glob("server/page/*.j2")]
    assert templates
    for path in templates:
        text = path.read_text()
        assert " style=" not in text, path
        assert "<style" not in text, path
        assert "|safe" not in text.replace(" ", ""), path
        assert not [word for word in text.split() if word.lower().startswith(("onclick=", "onload=", "onerror="))]


def test_an_error_of_ours_says_so_and_any_other_says_nothing(served: Served) -> None:
    answer = entered(served).http.get("/fails")
    assert answer.status_code == 500
    assert "sub-07" not in answer.text
    assert "Traceback" not in answer.text


def test_read_only_lets_nobody_decide() -> None:
    DONE.clear()
    with listening(ROUTES, LOOK, Where(readonly=True)) as served:
        me = entered(served)
        assert me.http.get("/").status_code == 200
        assert me.post("/act").status_code == 403
        assert me.post("/send").status_code == 403
    assert not DONE


def test_leaving_ends_the_session(served: Served) -> None:
    me = entered(served)
    assert me.post("/leave").status_code == 303
    assert me.http.get("/").status_code == 403


def test_links_and_sessions_end_with_time() -> None:
    now = [0.0]
    door = Door(hosts=frozenset(), clock=lambda: now[0])
    someone = Person(name="kim", roles=frozenset())
    token = door.link(someone)
    now[0] = LINK + 1
    assert door.enter(token) is None
    cookie = door.admit(someone)
    now[0] += IDLE - 1
    assert door.session(cookie) is not None
    now[0] += IDLE + 1
    assert door.session(cookie) is None


def test_wrong_passwords_close_the_door_for_a_while() -> None:
    now = [0.0]
    door = Door(hosts=frozenset(), clock=lambda: now[0])
    for _ in range(TRIES):
        assert not door.waits()
        door.told(False)
    assert door.waits()
    now[0] = PAUSE + 1
    assert not door.waits()


# --- seen from other machines


def test_beyond_this_machine_it_needs_tls_and_passwords(tmp_path: Path) -> None:
    for listen in ("0.0.0.0:8443", "[::]:8443", "10.0.0.7:8443", "pacs.example:1"):
        with pytest.raises(ConfigError, match="needs TLS"):
            Where(listen=listen)
        with pytest.raises(ConfigError, match="needs --passwords"):
            Where(listen=listen, certificate=tmp_path / "c", key=tmp_path / "k")
    for listen in ("nowhere", "127.0.0.1:", "127.0.0.1:70000", ":80"):
        with pytest.raises(ConfigError, match="ADDRESS:PORT"):
            Where(listen=listen)


def test_a_password_and_its_roles(tmp_path: Path) -> None:
    DONE.clear()
    file = tmp_path / "people"
    people.add(file, "kim", "correct horse battery", ["decide"])
    people.add(file, "lee", "another long password", ["look"])
    assert "horse" not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    with listening(ROUTES, LOOK, Where(passwords=file)) as served:
        me, origin = Browser(served), {"Origin": served.url.rstrip("/")}
        assert me.http.get("/").status_code == 303
        for name, password in (("kim", "wrong"), ("nobody", "correct horse battery"), ("lee", "correct horse battery")):
            answer = me.http.post("/login", data={"name": name, "password": password}, headers=origin)
            assert answer.status_code == 403
            assert not me.http.cookies
        right = {"name": "kim", "password": "correct horse battery"}
        assert me.http.post("/login", data=right).status_code == 403  # from another page
        assert me.http.post("/login", data=right, headers=origin).status_code == 200
        assert me.post("/act").status_code == 200
        assert me.post("/send").status_code == 403
        assert DONE == ["kim"]


def test_a_password_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "people"
    people.add(file, "kim", "correct horse battery", ["look"])
    file.chmod(0o640)
    with pytest.raises(ConfigError, match="mode 0640"):
        people.read(file)
    file.chmod(0o600)
    file.write_text("kim:look:plain\n")
    with pytest.raises(ConfigError, match="line 1"):
        people.read(file)
    with pytest.raises(ConfigError, match="must be 12"):
        people.add(file, "kim", "short", ["look"])


def test_over_tls_the_cookie_is_secure(tmp_path: Path) -> None:
    certificate, key = _self_signed(tmp_path)
    with listening(ROUTES, LOOK, Where(certificate=certificate, key=key)) as served:
        assert served.url.startswith("https://")
        trusting = ssl.create_default_context(cafile=str(certificate))
        answer = httpx.get(served.link(), verify=trusting)
        assert answer.status_code == 200
        assert "secure" in answer.headers["set-cookie"].lower()
        assert "strict-transport-security" in answer.headers


def _self_signed(folder: Path) -> tuple[Path, Path]:
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "c.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "k.pem").write_bytes(private)
    return folder / "c.pem", folder / "k.pem"


def test_two_pages_have_two_cookies() -> None:
    with listening(ROUTES, LOOK) as one, listening(ROUTES, LOOK) as two:
        me = Browser(one)
        me.enter(one.link())
        assert set(me.http.cookies) == {f"lacuna-{one.port}"}
        assert httpx.get(two.url, cookies={f"lacuna-{two.port}": "x"}).status_code == 403
