"""Nothing calls out: every name that any process of server or site looked up, from its start over a whole run."""

import time

from containers.conftest import Scene
from containers.deployed import PROXY, SERVICES, SITES, wait

OWN = {  # what each part may ask for
    "superlink": set(),
    "executor": {"superlink", "mlflow"},
    "mlflow": {"postgres"},
    "postgres": set(),
    "proxy": {"superlink"},
    "coordinator": {"superlink", "mlflow"},
    "keeper": set(),
    "site": {PROXY},
    "gate": {PROXY},
}
CANARY = "canary.invalid"


def kind(container: str) -> str:
    return next(part for part in OWN if f"-{part}-" in f"{container}-")


def test_server_and_sites_look_up_their_own_names_alone(scene: Scene) -> None:
    names = scene.lookups.names()
    deployed = scene.deployed
    for container in [
        *(deployed.container(s) for s in SERVICES),
        *(part(s) for s in SITES for part in (deployed.site, deployed.gate)),
    ]:
        assert container in names, "it was not listened to"
    assert any("coordinator" in container for container in names)
    strange = {c: asked - OWN[kind(c)] for c, asked in names.items() if asked - OWN[kind(c)]}
    assert strange == {}
    for site in SITES:  # the recorder hears
        assert names[deployed.site(site)] == names[deployed.gate(site)] == {PROXY}
    assert "superlink" in names[deployed.container("executor")]


def test_they_call_each_other_alone(scene: Scene) -> None:
    """An address needs no name: whom they called was inside the federation's own networks."""
    for container, addresses in scene.lookups.calls().items():
        foreign = {a for a in addresses if not (a.startswith(("172.", "192.168.", "10.", "127.")) or a == "::1")}
        assert foreign == set(), container


def test_the_recorder_would_have_heard_it(scene: Scene) -> None:
    deployed = scene.deployed
    container = deployed.site("north")
    code = f"import socket\ntry: socket.getaddrinfo('{CANARY}', 443)\nexcept OSError: pass"
    deployed.engine.docker("exec", container, "python", "-P", "-c", code)
    wait(lambda: CANARY in scene.lookups.names()[container], 10, "the lookup is heard")
    (scene.lookups.folder / f"{container}.jsonl").write_text("")  # no trace of it for whoever looks later
    time.sleep(0.1)
