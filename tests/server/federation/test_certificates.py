"""How long certificates hold, and real handshakes between the made server and a client that trusts a kit's CA."""

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.flower.federations import NOW, enter, handshake, make, site, tls_server

from client.site import enrol
from server.federation import provision, rotation
from server.federation.federation import expiry_warnings
from shared.base.errors import ConfigError

THEN = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


def test_an_end_is_warned_of_from_thirty_days_ahead(tmp_path: Path) -> None:
    folder = make(tmp_path / "federation", now=THEN, server_days=100, ca_days=400)
    assert expiry_warnings(folder, THEN) == []
    assert expiry_warnings(folder, THEN + timedelta(days=69, hours=23)) == []
    (said,) = expiry_warnings(folder, THEN + timedelta(days=70))
    assert said.startswith("the server's certificate (server/server.crt) expires in 30 days, at 2027-03-01 12:00 UTC: ")
    assert "rotate server" in said
    (said,) = expiry_warnings(folder, THEN + timedelta(days=100))
    assert "expired at 2027-03-01 12:00 UTC" in said
    assert len(expiry_warnings(folder, THEN + timedelta(days=380))) == 2
    assert any("not valid before" in said for said in expiry_warnings(folder, THEN - timedelta(days=1)))


def test_a_site_is_not_admitted_under_an_expired_ca(tmp_path: Path) -> None:
    folder = make(tmp_path / "federation", server_days=10, ca_days=10)
    later = NOW + timedelta(days=11)
    with pytest.raises(ConfigError, match="rotate ca` first"):
        provision.admit(folder, site(tmp_path / "north", "north"), now=later)
    rotation.rotate_ca(folder, now=later)
    assert provision.admit(folder, tmp_path / "north" / "enrolment" / "north.request.json", now=later).kit.exists()


# --- handshakes


def test_a_site_trusts_the_server_by_its_kit_alone(federation: Path, tmp_path: Path) -> None:
    enter(federation, tmp_path / "north", "north")
    trusted = tmp_path / "north" / "federation" / "ca.crt"
    other = make(tmp_path / "other", name="other")
    with tls_server(federation / "server" / "server.crt", federation / "server" / "server.key") as port:
        for name in ("localhost", "127.0.0.1", "superlink"):
            assert handshake(port, trusted, name) == b"here"
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            handshake(port, trusted, "elsewhere.example.org")
        with pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch"):
            handshake(port, trusted, "127.0.0.2")
        with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer certificate"):
            handshake(port, other / "ca" / "ca.crt")
    with (
        tls_server(other / "server" / "server.crt", other / "server" / "server.key") as port,
        pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer certificate"),
    ):
        handshake(port, trusted)


def test_a_ca_of_the_same_name_is_not_the_same_ca(federation: Path, tmp_path: Path) -> None:
    enter(federation, tmp_path / "north", "north")
    twin = make(tmp_path / "twin")
    with (
        tls_server(twin / "server" / "server.crt", twin / "server" / "server.key") as port,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        handshake(port, tmp_path / "north" / "federation" / "ca.crt")


def test_an_expired_server_certificate_is_refused(tmp_path: Path) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=40)
    folder = make(tmp_path / "federation", now=long_ago, server_days=30)
    with (
        tls_server(folder / "server" / "server.crt", folder / "server" / "server.key") as port,
        pytest.raises(ssl.SSLCertVerificationError, match="certificate has expired"),
    ):
        handshake(port, folder / "ca" / "ca.crt")
    rotation.rotate_server(folder, now=datetime.now(UTC))
    with tls_server(folder / "server" / "server.crt", folder / "server" / "server.key") as port:
        assert handshake(port, folder / "ca" / "ca.crt") == b"here"


def test_a_rotation_of_the_ca_cuts_off_nobody_who_joined_in_time(federation: Path, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    early, late = tmp_path / "early", tmp_path / "late"
    for state in (early, late):
        enter(federation, state, state.name)

    def reaches(state: Path) -> bool:
        with tls_server(federation / "server" / "server.crt", federation / "server" / "server.key") as port:
            try:
                return handshake(port, state / "federation" / "ca.crt") == b"here"
            except ssl.SSLCertVerificationError:
                return False

    rotation.rotate_ca(federation, now=now)
    assert (reaches(early), reaches(late)) == (True, True)  # neither has joined its new kit
    enrol.join(early, federation / "kits" / "early.kit", now=now)
    assert (reaches(early), reaches(late)) == (True, True)
    rotation.rotate_server(federation, now=now)
    assert (reaches(early), reaches(late)) == (True, False)
    for state in (early, late):
        enrol.join(state, federation / "kits" / f"{state.name}.kit", now=now)
    assert (reaches(early), reaches(late)) == (True, True)
