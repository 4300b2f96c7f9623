"""Bundles as a hostile coordinator could send them. Each has code or a name that would leave a mark where it ran."""

import hashlib
import io
import stat
import zipfile
import zlib
from collections.abc import Callable, Mapping

PROJECT = """[project]
name = "lacuna-run"
version = "0.1.0"
description = "A run"
license = { text = "Apache-2.0" }
dependencies = ["flwr"]

[tool.flwr.app]
publisher = "lacuna"

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"

[tool.flwr.app.config]
folder = ""
"""


def mark(path: object) -> str:
    """Python that leaves a mark when it runs, whatever is imported from it."""
    return f"open({str(path)!r}, 'a').write('ran ')\nfrom flwr.clientapp import ClientApp\napp = ClientApp()\n"


def bundle(files: Mapping[str, str | bytes], *, project: str | bytes = PROJECT, listed: str | None = None) -> bytes:
    """As Flower packs it: pyproject.toml, these files, and the list of all."""
    every = {"pyproject.toml": project, **files}
    content = {name: text.encode() if isinstance(text, str) else text for name, text in every.items()}
    lines = [f"{name},{hashlib.sha256(data).hexdigest()},{8 * len(data)}" for name, data in content.items()]
    return packed({**content, ".info/CONTENT": ("\n".join(lines) if listed is None else listed).encode()})


def packed(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    return out.getvalue()


def says(key: str, value: str) -> bytes:
    """Another value for one line of the configuration."""
    lines = [f"{key} = {value}" if line.startswith(f"{key} = ") else line for line in PROJECT.splitlines()]
    assert lines != PROJECT.splitlines()
    return bundle({}, project="\n".join(lines))


def _twice() -> bytes:
    out = io.BytesIO(bundle({}))
    with zipfile.ZipFile(out, "a") as archive:
        entry = zipfile.ZipInfo("pyproject.toml", (2026, 1, 1, 0, 0, 0))
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the name is there already
            archive.writestr(entry, PROJECT.replace("client.app:app", "client.round.work:app"))
    return out.getvalue()


def _link() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        link = zipfile.ZipInfo("pyproject.toml")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr(".info/CONTENT", "")
    return out.getvalue()


def _bomb() -> bytes:
    """Megabytes that are small on the way."""
    return bundle({}, project=PROJECT.encode() + b"#" + b"a" * 4_000_000)


def _lying_size() -> bytes:
    """The zip says 100 bytes where a hundred thousand come out."""
    content = bytearray(bundle({}, project=PROJECT.encode() + b"#" + b"a" * 60_000))
    real = (len(PROJECT.encode()) + 60_001).to_bytes(4, "little")
    assert real in content
    return bytes(content.replace(real, (100).to_bytes(4, "little")))


def _name_after(nul: bytes) -> bytes:
    """A name that reads as pyproject.toml up to a zero byte."""
    good = bundle({})
    short, long = b"pyproject.toml", nul
    assert len(short) == len(long)
    return good.replace(short, long)


def _encrypted() -> bytes:
    content = bytearray(bundle({}))
    for at in (content.index(b"PK\x03\x04") + 6, content.index(b"PK\x01\x02") + 8):
        content[at] |= 1
    return bytes(content)


# what is sent -> what the refusal must say
HOSTILE: Mapping[str, tuple[Callable[[], bytes], str]] = {
    "a python file": (
        lambda: bundle({"work.py": mark("m")}),
        r"carries 'work\.py'; it may carry pyproject\.toml alone",
    ),
    "a package that shadows ours": (
        lambda: bundle({"client/__init__.py": "", "client/app.py": mark("m")}),
        r"carries 'client/__init__\.py', 'client/app\.py'",
    ),
    "a library that shadows torch": (lambda: bundle({"torch.py": mark("m")}), r"carries 'torch\.py'"),
    "sitecustomize": (lambda: bundle({"sitecustomize.py": mark("m")}), r"carries 'sitecustomize\.py'"),
    "a .pth file": (lambda: bundle({"evil.pth": "import os"}), r"carries 'evil\.pth'"),
    "a compiled module": (lambda: bundle({"client.so": b"\x7fELF"}), r"carries 'client\.so'"),
    "a pickle": (lambda: bundle({"weights.pkl": b"\x80"}), r"carries 'weights\.pkl'"),
    "a text file": (lambda: bundle({"README.md": "hello"}), r"carries 'README\.md'"),
    "a path above": (lambda: bundle({"../client/app.py": mark("m")}), r"carries '\.\./client/app\.py'"),
    "an absolute path": (lambda: bundle({"/tmp/evil.py": mark("m")}), r"carries '/tmp/evil\.py'"),
    "a backslash": (lambda: bundle({"client\\app.py": mark("m")}), r"carries 'client\\\\app\.py'"),
    "our file by another way": (lambda: bundle({"./pyproject.toml": PROJECT}), r"carries '\./pyproject\.toml'"),
    "a name on two lines": (lambda: bundle({"a\nINFO: all is well.py": ""}), r"carries 'a\\nINFO"),
    "a name past a zero byte": (lambda: _name_after(b"pyproject\0toml"), r"carries 'pyproject\\x00toml'"),
    "the configuration twice": (_twice, r"must hold pyproject\.toml and \.info/CONTENT, each once"),
    "no configuration": (lambda: packed({".info/CONTENT": b""}), r"each once"),
    "nothing": (lambda: packed({}), r"each once"),
    "a link": (_link, r"is a link or no plain file"),
    "a bomb": (_bomb, r"unpacks to 4000\d+ bytes; at most 65536"),
    "a size that lies": (_lying_size, r"can't be read as a zip|is not of the size"),
    "an encrypted one": (_encrypted, r"can't be read as a zip"),
    "not a zip": (lambda: b"#!/bin/sh\ntouch /tmp/ran\n", r"can't be read as a zip"),
    "no bytes": (lambda: b"", r"can't be read as a zip"),
    "a zip cut short": (lambda: bundle({})[:-30], r"can't be read as a zip"),
    "a damaged one": (
        lambda: bundle({}).replace(PROJECT[:0].encode() or b"PK\x03\x04", b"PK\x03\x05", 1),
        r"can't be read as a zip",
    ),
    "a large one": (
        lambda: bundle({"x": zlib.compress(b"") + bytes(range(256)) * 400}) + b"0" * 70_000,
        r"at most 65536",
    ),
    "a list that names more": (
        lambda: bundle({}, listed="pyproject.toml,0,0\nclient/app.py,0,0"),
        r"CONTENT does not list",
    ),
    "another client": (
        lambda: says("clientapp", '"client.round.work:app"'),
        r"clientapp='client\.round\.work:app': a site runs its own",
    ),
    "a client of the standard library": (lambda: says("clientapp", '"os:system"'), r"clientapp='os:system'"),
    "a client that is a list": (lambda: says("clientapp", '["client.app:app"]'), r"clientapp=\['client\.app:app'\]"),
    "another server": (lambda: says("serverapp", '"evil:app"'), r"serverapp='evil:app'"),
    "an agent": (
        lambda: bundle(
            {}, project=PROJECT.replace("[tool.flwr.app.config]", 'agentapp = "x:y"\n[tool.flwr.app.config]')
        ),
        r"'tool\.flwr\.app\.components\.agentapp' is not among",
    ),
    "a dependency": (lambda: says("dependencies", '["flwr", "evil"]'), r"'evil': only flwr"),
    "flwr from elsewhere": (lambda: says("dependencies", '["flwr @ https://evil.example/flwr.whl"]'), r"only flwr"),
    "flwr with extras": (lambda: says("dependencies", '["flwr[simulation]"]'), r"only flwr"),
    "dependencies that are no list": (lambda: says("dependencies", '"evil"'), r"must be a list"),
    "a build system": (
        lambda: bundle({}, project=PROJECT + '[build-system]\nrequires = ["evil"]\n'),
        r"'build-system' is not among",
    ),
    "a tool's own table": (lambda: bundle({}, project=PROJECT + "[tool.uv]\nx = 1\n"), r"'tool\.uv' is not among"),
    "scripts": (
        lambda: bundle(
            {}, project=PROJECT.replace("[tool.flwr.app]\n", '[project.scripts]\na = "b"\n[tool.flwr.app]\n')
        ),
        r"'project\.scripts' is not among",
    ),
    "optional dependencies": (
        lambda: bundle({}, project=PROJECT + '[project.optional-dependencies]\na = ["b"]\n'),
        r"'project\.optional-dependencies' is not among",
    ),
    "a name that is a path": (lambda: says("name", '"../../x"'), r"name='\.\./\.\./x': must match"),
    "a publisher that is a path": (lambda: says("publisher", '".."'), r"publisher='\.\.': must match"),
    "a version that is a path": (lambda: says("version", '"1/../../x"'), r"version='1/\.\./\.\./x': must match"),
    "no publisher": (lambda: bundle({}, project=PROJECT.replace('publisher = "lacuna"', "")), r"publisher=None"),
    "components that are no table": (
        lambda: bundle({}, project=PROJECT.split("[tool.flwr.app.components]")[0] + 'components = "x"\n'),
        r"\[tool\.flwr\.app\.components\] is missing or no table",
    ),
    "no TOML": (lambda: bundle({}, project="=="), r"pyproject\.toml can't be read"),
    "no text": (lambda: bundle({}, project=b"\xff\xfe"), r"pyproject\.toml can't be read"),
    "a deep one": (lambda: bundle({}, project="a = " + "[" * 30_000), r"pyproject\.toml can't be read"),
}
