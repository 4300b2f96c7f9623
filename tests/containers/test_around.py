"""What stands around a round, in the containers that it stands around in: limits, passwords, keys."""

import json

import pytest
from containers.deployed import PORT, PROXY, Deployed

FLOOD = """
import http.client, json, ssl, sys, time
from concurrent.futures import ThreadPoolExecutor
host, port, many = json.loads(sys.argv[1])
trust = ssl.create_default_context(cafile="/state/federation/ca.crt")
def ask(n):
    said = []
    channel = http.client.HTTPSConnection(host, port, timeout=30, context=trust)
    for _ in range(n):
        try:
            channel.request("GET", "/health")
            answer = channel.getresponse()
            answer.read()
            said.append(answer.status)
        except (OSError, http.client.HTTPException):
            channel.close()
    return said
began = time.monotonic()
with ThreadPoolExecutor(8) as pool:
    said = [status for some in pool.map(ask, [many // 8] * 8) for status in some]
counts = {str(status): said.count(status) for status in set(said)}
print(json.dumps({**counts, "seconds": time.monotonic() - began}))
"""
HELD = """
import json, socket, ssl, sys, time
host, port, many = json.loads(sys.argv[1])
trust = ssl.create_default_context(cafile="/state/federation/ca.crt")
held, said = [], []
for _ in range(many):
    held.append(trust.wrap_socket(socket.create_connection((host, port), timeout=20), server_hostname=host))
    held[-1].sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 9\\r\\n\\r\\n")
time.sleep(2)
for one in held:
    one.settimeout(0.2)
    try:
        said.append(one.recv(12).split()[1].decode())
    except (OSError, IndexError):
        pass
print(json.dumps({status: said.count(status) for status in set(said)}))
"""
FIGURES = """
import json, sys, urllib.request, urllib.error, base64, configparser
found = configparser.ConfigParser(interpolation=None)
found.read("/tmp/.mlflow/credentials")
name, word = (found["mlflow"]["mlflow_tracking_" + key] for key in ("username", "password"))
def ask(path, header):
    request = urllib.request.Request("http://mlflow:5000" + path, headers=header)
    try:
        return urllib.request.urlopen(request, timeout=20).status
    except urllib.error.HTTPError as error:
        return error.code
true = {"Authorization": "Basic " + base64.b64encode((name + ":" + word).encode()).decode()}
false = {"Authorization": "Basic " + base64.b64encode(b"lacuna:password1234").decode()}
search = "/api/2.0/mlflow/experiments/search?max_results=1"
print(json.dumps([ask("/health", {}), ask(search, {}), ask(search, false), ask("/", {}), ask(search, true)]))
"""


def run_in(deployed: Deployed, container: str, code: str, *words: str) -> object:
    return json.loads(deployed.engine.docker("exec", container, "python", "-P", "-c", code, *words))


def test_nginx_takes_its_configuration(deployed: Deployed) -> None:
    deployed.engine.docker("exec", deployed.container("proxy"), "nginx", "-t", "-q")


def test_a_flood_of_requests_is_answered_in_part_and_then_normally(deployed: Deployed) -> None:
    said = run_in(deployed, deployed.site("north"), FLOOD, json.dumps([PROXY, PORT, 3200]))
    assert isinstance(said, dict)
    passed, seconds = said.get("200", 0), said["seconds"]
    assert 200 <= passed <= 200 + 100 * seconds + 20
    assert said.get("503", 0) > 0 or 3200 / seconds < 110, "a machine that can't ask so fast"
    calm = run_in(deployed, deployed.site("east"), FLOOD, json.dumps([PROXY, PORT, 8]))
    assert isinstance(calm, dict)
    assert calm["200"] == 8  # another address has its own share


def test_an_address_holds_no_more_than_so_many_connections(deployed: Deployed) -> None:
    said = run_in(deployed, deployed.site("south"), HELD, json.dumps([PROXY, PORT, 60]))
    assert isinstance(said, dict)
    assert said.get("503", 0) >= 60 - 32


def test_mlflow_answers_whoever_says_the_password_alone(deployed: Deployed) -> None:
    assert run_in(deployed, deployed.container("executor"), FIGURES) == [200, 401, 401, 401, 200]


@pytest.mark.parametrize("service", ["superlink", "executor", "mlflow", "postgres", "proxy"])
def test_no_container_has_a_secret_in_its_environment_or_its_flags(deployed: Deployed, service: str) -> None:
    found = deployed.engine.docker("inspect", "--format", "{{json .Config}}", deployed.container(service))
    words = [
        path.read_text().split("=")[-1].split(":")[-1].strip()
        for path in (deployed.folder / "federation" / "passwords").iterdir()
    ]
    assert len(words) == 3
    assert not any(word in found for word in words)


def test_the_coordinators_verbs_see_no_key_of_the_ca(deployed: Deployed) -> None:
    look = "print([len(open(f'/srv/federation/{n}').read()) for n in ('ca/ca.key', 'server/server.key')])"
    said = deployed.coordinator("python", "-P", "-c", look)
    assert "[0, 0]" in said
    kept = deployed.compose("run", "--rm", "-T", "keeper", "lacuna", "federation", "rotate", "server")
    assert "a new server key and certificate" in kept
    deployed.compose("restart", "superlink", "executor", "proxy")
    deployed.compose("up", "-d", "--wait", "--wait-timeout", "300")
