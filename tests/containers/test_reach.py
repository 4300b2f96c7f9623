"""What a site can reach, asked from inside its container: the fleet API and the proxy's health, and nothing else."""

import json
import socket

import pytest
from containers.deployed import PORT, PROXY, SERVICES, SITES, Deployed

ASK = """
import http.client, json, socket, ssl, sys
todo = json.loads(sys.argv[1])
trust = ssl.create_default_context(cafile=todo["ca"])
said = []
for method, path in todo["requests"]:
    channel = http.client.HTTPSConnection(todo["host"], todo["port"], timeout=10, context=trust)
    channel.request(method, path, headers={"Content-Type": "application/protobuf"})
    said.append(channel.getresponse().status)
reached = []
for host, port in todo["connect"]:
    try:
        socket.create_connection((host, port), timeout=3).close()
        reached.append([host, port])
    except OSError:
        pass
print(json.dumps([said, reached]))
"""
CLOSED = [
    ("POST", "/v1/control/list-nodes"),
    ("POST", "/v1/control/start-run"),
    ("POST", "/v1/control/register-node"),
    ("POST", "/v1/control/stream-logs"),
    ("POST", "/v1/runtime/acquire-task"),
    ("POST", "/v1/runtime/pull-messages"),
    ("GET", "/docs"),
    ("GET", "/redoc"),
    ("GET", "/openapi.json"),
    ("GET", "/"),
    ("GET", "/api/2.0/mlflow/experiments/search"),
    ("GET", "/v1/fleet/pull-messages"),
    ("POST", "/health"),
    # ways around a rule that looks at the path
    ("POST", "/v1/fleet/../control/list-nodes"),
    ("POST", "/v1/fleet/%2e%2e/control/list-nodes"),
    ("POST", "/v1/fleet/..%2fcontrol/list-nodes"),
    ("POST", "/v1/fleet//../control/list-nodes"),
    ("POST", "//v1/control/list-nodes"),
    ("POST", "/v1/%63ontrol/list-nodes"),
    ("POST", "/V1/control/list-nodes"),
    ("POST", "/v1/control/list-nodes?/v1/fleet/pull-messages"),
    ("POST", "/v1/control/list-nodes%3f/v1/fleet/pull-messages"),
    ("POST", "/v1/control/list-nodes;/../../fleet/pull-messages"),
    ("POST", "/v1/fleet/pull-messages%0d%0aX:%20y"),
    ("POST", "/v1/fleet/pull-messages/../../control/list-nodes"),
    ("POST", "https://superlink:8000/v1/control/list-nodes"),
]
PORTS = {"superlink": 8000, "executor": 9099, "mlflow": 5000, "postgres": 5432}


def ask(deployed: Deployed, container: str, **todo: object) -> tuple[list[int], list[list[object]]]:
    printed = deployed.engine.docker("exec", container, "python", "-P", "-c", ASK, json.dumps(todo))
    said, reached = json.loads(printed)
    return said, reached


@pytest.mark.parametrize("site", SITES)
def test_a_site_reaches_the_fleet_api_and_nothing_else(deployed: Deployed, site: str) -> None:
    engine = deployed.engine
    inner = [
        (engine.address(deployed.container(service), f"lacuna-test_{network}"), PORTS[service])
        for service, network in (
            ("superlink", "inside"),
            ("executor", "inside"),
            ("executor", "records"),
            ("mlflow", "records"),
            ("postgres", "records"),
        )
    ]
    inner += [(engine.address(deployed.container("proxy"), "lacuna-test_inside"), PORT)]
    for other in SITES:
        inner += [(engine.address(deployed.gate(other), deployed.network(other)), PORT)]
        inner += [(engine.address(deployed.site(other), deployed.alone(other)), 9094)] if other != site else []
    named = [(service, PORTS[service]) for service in PORTS]
    at_proxy = [(PROXY, port) for port in (80, 443, 5000, 5432, 8000, 9094, 9099)]
    outside = [("192.0.2.1", 443), ("1.1.1.1", 53)]
    own = socket.create_server(("0.0.0.0", 0))  # of this machine, at each address that a container might know it by
    machine = [
        (engine.gateway(network), own.getsockname()[1])
        for network in ("bridge", deployed.alone(site), deployed.network(site))
    ]
    said, reached = ask(
        deployed,
        deployed.site(site),
        ca="/state/federation/ca.crt",
        host=PROXY,
        port=PORT,
        requests=[
            *CLOSED,
            ("POST", "/v1/fleet/pull-messages"),
            ("POST", "/v1/fleet/send-node-heartbeat"),
            ("GET", "/health"),
        ],
        connect=[*inner, *named, *at_proxy, *outside, *machine],
    )
    own.close()
    answers = dict(zip([path for _, path in CLOSED], said, strict=False))
    assert {path: status for path, status in answers.items() if status not in (400, 404)} == {}
    assert set(said[-3:-1]) <= {401, 415}  # the SuperLink itself, which has got no message that it knows
    assert said[-1] == 200
    assert reached == []


def test_the_control_api_would_answer_whoever_reached_it(deployed: Deployed) -> None:
    """Why all this: from inside it lists the sites for anybody. If this fails, Flower asks who it is: good news."""
    look = """
import http.client, ssl
trust = ssl.create_default_context(cafile="/srv/federation/server/ca.crt")
channel = http.client.HTTPSConnection("superlink", 8000, context=trust)
channel.request("POST", "/v1/control/list-nodes", headers={"Content-Type": "application/protobuf"})
print(channel.getresponse().status)
"""
    assert deployed.coordinator("python", "-P", "-c", look).splitlines()[-1] == "200"


def test_the_published_port_is_the_proxys_and_no_other_is_open(deployed: Deployed) -> None:
    for service in SERVICES:
        published = deployed.engine.docker("port", deployed.container(service)).splitlines()
        assert [line.split(" ")[0] for line in published] == (["8443/tcp"] if service == "proxy" else [])
