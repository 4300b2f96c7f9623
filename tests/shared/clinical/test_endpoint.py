"""A prompt goes to this machine, the site's own network, or where the site said so, and nowhere else."""

import logging
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.model.embeddings import WIDTH, EmbeddingsServer, vector_of

from shared.base.errors import ConfigError, DataError, LacunaError
from shared.clinical import Chart, Encoder, TextSettings, make_encoder
from shared.clinical.egress import allowed_addresses, parse_url
from shared.clinical.probes import PROBES, fingerprint, same_encoder

CHART = Chart(diagnosis="AD", mmse=22)


def encoder_of(url: str, **more: Any) -> Encoder:
    return make_encoder("openai_compatible", WIDTH, TextSettings(url=url, model="tiny", timeout=5.0, **more))


def tokens_of(encoder: Encoder) -> torch.Tensor:
    return encoder.encode([CHART], ["FDG"], [("T1", "AV45")])[0][0]


class Names:
    """What names are at; counts look-ups. A name that is not here is looked up for real only if it is a number."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answers: Sequence[Sequence[str]]) -> None:
        self.asked: list[str] = []
        self._answers = list(answers)
        real = socket.getaddrinfo

        def look_up(host: str, port: int, *rest: Any, **more: Any) -> Any:
            if host.replace(".", "").isdigit() or ":" in host:
                return real(host, port, *rest, **more)
            self.asked.append(host)
            ips = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
            families = [socket.AF_INET6 if ":" in ip else socket.AF_INET for ip in ips]
            return [(f, socket.SOCK_STREAM, 6, "", (ip, port)) for f, ip in zip(families, ips, strict=True)]

        monkeypatch.setattr(socket, "getaddrinfo", look_up)


def test_one_short_prompt_a_piece_is_asked_in_one_batch(server: EmbeddingsServer) -> None:
    encoder = encoder_of(server.url)
    assert server.requests == []
    tokens = tokens_of(encoder)
    ((path, headers, asked),) = server.requests
    assert path == "/v1/embeddings"
    assert asked["model"] == "tiny"
    assert sorted(asked["input"]) == ["AD patient", "Generate FDG PET", "MMSE=22", "from AV45 PET and T1-weighted MRI"]
    assert "dimensions" not in asked
    assert "Authorization" not in headers
    given = torch.tensor(vector_of("MMSE=22", WIDTH))
    assert torch.allclose(tokens[3], given / given.square().mean().sqrt(), atol=1e-6)
    assert (tokens[4:] == 0).all()
    tokens_of(encoder)
    assert len(server.requests) == 1


def test_dimensions_and_the_key_are_sent_and_the_key_is_never_shown(server: EmbeddingsServer, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("sk-very-secret\n")
    key.chmod(0o644)
    with pytest.raises(ConfigError, match="mode 0644") as refused:
        encoder_of(server.url, key_file=key)
    assert "secret" not in str(refused.value)
    key.chmod(0o600)
    encoder = encoder_of(server.url, key_file=key, dimensions=WIDTH)
    tokens_of(encoder)
    _, headers, asked = server.requests[0]
    assert headers["Authorization"] == "Bearer sk-very-secret"
    assert asked["dimensions"] == WIDTH
    assert "secret" not in repr(vars(encoder)) + encoder.id
    key.write_text("two\nlines")
    with pytest.raises(ConfigError, match="one line of printable ASCII") as refused:
        encoder_of(server.url, key_file=key)
    assert "two" not in str(refused.value)


def test_it_is_off_until_the_site_names_a_server_and_a_model() -> None:
    with pytest.raises(ConfigError, match="off until the site names both"):
        make_encoder("openai_compatible", WIDTH)
    with pytest.raises(ConfigError, match=r"text.dimensions=7: the network takes 24"):
        make_encoder("openai_compatible", WIDTH, TextSettings(url="http://127.0.0.1/v1", model="m", dimensions=7))


@pytest.mark.parametrize(
    "ip",
    [
        "8.8.8.8",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "2001:db8::1",
        "::ffff:8.8.8.8",
        "fe80::1",
        "224.0.0.1",
        "192.0.0.8",
        "172.32.0.1",
    ],
)
def test_an_address_outside_is_refused_before_anything_is_sent(ip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Names(monkeypatch, [[ip]])
    with pytest.raises(ConfigError, match="outside this site's network"):
        encoder_of("https://embeddings.test/v1")
    literal = f"[{ip}]" if ":" in ip else ip
    with pytest.raises(ConfigError, match="outside this site's network"):
        encoder_of(f"https://{literal}/v1")


@pytest.mark.parametrize("ip", ["10.1.2.3", "172.31.0.1", "192.168.7.7", "fd00::1", "::ffff:10.0.0.1", "127.8.0.1"])
def test_the_sites_own_network_is_allowed(ip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Names(monkeypatch, [[ip]])
    assert [one.ip for one in allowed_addresses(parse_url("https://embeddings.test/v1"))] == [ip]


def test_all_addresses_must_be_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    Names(monkeypatch, [["10.0.0.1", "8.8.8.8"]])
    with pytest.raises(ConfigError, match=r"is at 8\.8\.8\.8, outside"):
        encoder_of("https://embeddings.test/v1")


def test_a_host_outside_needs_both_the_list_and_the_word(monkeypatch: pytest.MonkeyPatch) -> None:
    Names(monkeypatch, [["8.8.8.8"]])
    place = parse_url("https://embeddings.test/v1")
    for allowed, word in (((), True), (("other.test",), True), (("embeddings.test",), False)):
        with pytest.raises(ConfigError, match=r"text\.allow-phi-egress=true"):
            allowed_addresses(place, allowed_hosts=allowed, allow=word)
    assert allowed_addresses(place, allowed_hosts=("Embeddings.test",), allow=True)[0].ip == "8.8.8.8"
    with pytest.raises(ConfigError, match="must be https"):
        allowed_addresses(parse_url("http://embeddings.test/v1"), allowed_hosts=("embeddings.test",), allow=True)


def test_another_machine_needs_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    Names(monkeypatch, [["10.0.0.1"]])
    with pytest.raises(ConfigError, match="must be https"):
        encoder_of("http://embeddings.test/v1")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://127.0.0.1/",
        "127.0.0.1/v1",
        "http://",
        "http://[::1/v1",
        "http://a:b@127.0.0.1/",
        "http://127.0.0.1/v1?key=x",
        "http://127.0.0.1:99999/",
    ],
)
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"text.url"):
        encoder_of(url)


def test_the_connection_goes_to_the_address_that_was_checked(
    server: EmbeddingsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that points elsewhere a moment later is looked up anew, and refused: never connected to unchecked."""
    names = Names(monkeypatch, [["127.0.0.1"], ["127.0.0.1"], ["8.8.8.8"]])
    connected: list[str] = []
    real = socket.create_connection

    def connect(address: tuple[str, int], *rest: Any, **more: Any) -> socket.socket:
        connected.append(address[0])
        return real(address, *rest, **more)

    monkeypatch.setattr(socket, "create_connection", connect)
    encoder = encoder_of(f"http://embeddings.test:{server.port}/v1")
    tokens_of(encoder)
    assert names.asked == ["embeddings.test"] * 2
    assert connected == ["127.0.0.1"]
    assert server.requests[0][1]["Host"] == f"embeddings.test:{server.port}"
    with pytest.raises(ConfigError, match=r"8\.8\.8\.8"):
        encoder.encode([Chart(mmse=3)], ["T1"], [("FDG",)])
    assert connected == ["127.0.0.1"]


def test_proxies_of_the_environment_are_not_used(server: EmbeddingsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    tokens_of(encoder_of(server.url))
    assert len(server.requests) == 1


def test_a_redirect_is_not_followed(server: EmbeddingsServer) -> None:
    other = EmbeddingsServer()
    try:
        server.answer = lambda handler, _: handler.say(307, b"", Location=f"{other.url}/embeddings") or True
        with pytest.raises(DataError, match="status 307; must be 200"):
            tokens_of(encoder_of(server.url))
        assert other.requests == []
        assert len(server.requests) == 1
    finally:
        other.close()


def test_tls_is_verified_by_name_for_any_other_machine(
    tls_server: EmbeddingsServer, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is on this machine; a connection made to 10.0.0.7 is brought to it."""
    real = socket.create_connection
    monkeypatch.setattr(
        socket, "create_connection", lambda address, *a, **k: real(("127.0.0.1", tls_server.port), *a, **k)
    )
    Names(monkeypatch, [["10.0.0.7"]])
    url = f"https://embeddings.test:{tls_server.port}/v1"
    tokens_of(encoder_of(url, ca_file=certificate[0]))
    assert len(tls_server.requests) == 1
    with pytest.raises(DataError, match=r"did not answer \(SSLCertVerificationError\)"):
        tokens_of(encoder_of(url))  # an authority that the system does not know
    with pytest.raises(DataError, match=r"did not answer \(SSLCertVerificationError\)"):
        tokens_of(encoder_of(url.replace("embeddings.test", "another.test"), ca_file=certificate[0]))
    assert len(tls_server.requests) == 1


def test_tls_on_this_machine_needs_no_authority(tls_server: EmbeddingsServer) -> None:
    tokens_of(encoder_of(tls_server.url))
    assert len(tls_server.requests) == 1


BODIES = (
    b"",
    b"{}",
    b"[]",
    b'{"data": 1}',
    b'{"data": [{"index": 0, "embedding": [1.0]}]}',
    b"\xff" * 9,
    b'{"data": [{"index": 0, "embedding": ["MMSE=22"]}]}',
    b"[" * 100_000,
)


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_a_wrong_answer_is_told_without_a_word_of_what_was_asked_or_answered(
    server: EmbeddingsServer, body: bytes, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    server.answer = lambda handler, _: handler.say(200, body) or True
    with pytest.raises(DataError, match="answer is not 4 embeddings") as failed:
        tokens_of(encoder_of(server.url))
    _silent(failed.value, caplog.text + "".join(capfd.readouterr()))


@pytest.mark.parametrize("how", ["refused", "cut off", "no number", "status", "too wide"])
def test_a_server_that_fails_is_told_without_the_prompt(
    server: EmbeddingsServer, how: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    url = server.url
    if how == "refused":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    elif how == "cut off":
        server.answer = lambda handler, _: handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{") > 0
    elif how == "no number":
        server.answer = lambda handler, asked: handler.say(200, _answer([[float("nan")] * WIDTH] * 4)) or True
    elif how == "status":
        server.answer = lambda handler, asked: handler.say(400, str(asked).encode()) or True
    else:
        server.answer = lambda handler, asked: handler.say(200, _answer([[1.0] * 7] * 4)) or True
    with pytest.raises(LacunaError) as failed:
        tokens_of(encoder_of(url))
    _silent(failed.value, caplog.text + "".join(capfd.readouterr()))


def _answer(rows: list[list[float]]) -> bytes:
    import json

    return json.dumps({"data": [{"index": i, "embedding": row} for i, row in enumerate(rows)]}).encode()


def _silent(error: BaseException, logs: str) -> None:
    """Neither in what is printed nor in any error that it was raised from."""
    told, seen = logs, error
    while seen is not None:
        told += repr(seen) + repr(vars(seen))
        seen = seen.__cause__ or seen.__context__
    for word in ("MMSE", "22", "AD patient", "FDG PET", "AV45"):
        assert word not in told.replace("from AV45", "AV45"), word


def test_a_server_that_drips_is_given_up(server: EmbeddingsServer) -> None:
    import time

    def drip(handler: Any, _: object) -> bool:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n")
        for _ in range(40):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)
        return True

    server.answer = drip
    encoder = make_encoder("openai_compatible", WIDTH, TextSettings(url=server.url, model="tiny", timeout=0.3))
    with pytest.raises(DataError, match="did not answer"):
        tokens_of(encoder)


def test_the_cache_is_used_and_forgotten_when_the_server_changes_its_model(
    server: EmbeddingsServer, tmp_path: Path
) -> None:
    tokens = tokens_of(encoder_of(server.url, state=tmp_path))
    asked = len(server.prompts)
    again = encoder_of(server.url, state=tmp_path)
    probed = len(server.prompts) - asked
    assert 0 < probed < 3 * len(PROBES)
    assert torch.equal(tokens_of(again), tokens)
    assert len(server.prompts) == asked + probed, "from the cache"
    before = fingerprint(again)
    server.turn = 1.0
    assert not same_encoder(before, fingerprint(again)), "asked anew, whatever is kept"
    later = encoder_of(server.url, state=tmp_path)
    assert not torch.allclose(tokens_of(later), tokens, atol=0.1)
