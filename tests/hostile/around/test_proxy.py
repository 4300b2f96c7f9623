"""The one open port: how much anybody may ask of it, before it is known who asks."""

import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from server.federation import federation as disk
from server.federation import provision

CONF = Path(__file__).resolve().parents[3] / "deploy" / "proxy.conf"
MB = 2**20


def one(pattern: str) -> str:
    (found,) = re.findall(pattern, CONF.read_text(), re.MULTILINE)
    return str(found)


def test_an_address_has_so_many_connections_and_requests_and_all_together_leave_room() -> None:
    workers = int(one(r"^worker_processes (\d+);"))
    connections = int(one(r"^ +worker_connections (\d+);"))
    assert int(one(r"^ +limit_conn callers (\d+);")) <= 64
    everybody = int(one(r"^ +limit_conn everybody (\d+);"))
    assert 2 * everybody <= workers * connections  # a caller's connection, and the one to the SuperLink
    rate, burst = (
        int(one(r"zone=requests:1m rate=(\d+)r/s;")),
        int(one(r"^ +limit_req zone=requests burst=(\d+) nodelay;")),
    )
    assert rate <= 100
    assert burst <= 200
    for zone in ("callers", "requests"):
        assert re.search(rf"limit_(conn|req)_zone \$binary_remote_addr zone={zone}:", CONF.read_text())


def test_a_request_is_bounded_and_whoever_dawdles_is_left() -> None:
    assert 5 * MB < int(one(r"client_max_body_size (\d+)m;")) * MB <= 16 * MB  # Flower's objects, and little more
    for name in ("client_header_timeout", "client_body_timeout", "send_timeout", "keepalive_timeout"):
        assert int(one(rf"^ +{name} (\d+)s;")) <= 120


def test_nginx_takes_the_configuration(tmp_path: Path) -> None:
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None:
        pytest.skip("nginx is absent: apt install nginx-light; tests/containers asks the proxy's own")
    new = provision.NewFederation(name="f", address="fl.test:443", modalities=["T1", "T2"], methods=["amm_diff"])
    provision.init(tmp_path / "federation", new, now=datetime.now(UTC))
    keys = (tmp_path / "federation" / disk.SERVER).parent
    conf = tmp_path / "nginx.conf"
    conf.write_text(CONF.read_text().replace("/etc/lacuna", str(keys)).replace("/tmp/", f"{tmp_path}/"))
    done = subprocess.run([nginx, "-t", "-c", str(conf)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
