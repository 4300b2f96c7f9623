"""Code at a site is the hospital's own: a run's bundle may carry configuration, and nothing that could run.

A bundle (Flower's FAB) is a zip. Flower unpacks it and puts the folder first on the import path, so a file in it would
win over the installed package of the same name. What may be in one is listed here; everything else is PlanRefused
before Flower has opened it.
"""

import hashlib
import io
import re
import tomllib
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from shared.base import doors
from shared.base.errors import PlanRefused

CONFIGURATION, CONTENT = "pyproject.toml", ".info/CONTENT"
COMPONENTS = {"serverapp": doors.SERVER_APP, "clientapp": doors.CLIENT_APP}
MOST = 2**16  # bytes of a bundle, and of each file in it
KEYS = {  # what each table of pyproject.toml may hold; each that names code to run is among the others
    "": ("project", "tool"),
    "project": ("name", "version", "description", "license", "dependencies", "requires-python"),
    "tool": ("flwr",),
    "tool.flwr": ("app",),
    "tool.flwr.app": ("publisher", "components", "config", "fab-format-version", "flwr-version-target"),
    "tool.flwr.app.components": tuple(COMPONENTS),
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")  # these become part of a path at Flower's
_VERSION = re.compile(r"[0-9]+(\.[0-9]+){0,3}")
_FLWR = re.compile(r"flwr\s*([<>=!~]=?=?\s*[0-9.*]+\s*,?\s*)*")  # no extras, no address, no marker


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle without code, by what Flower calls it."""

    publisher: str
    name: str
    version: str

    @property
    def id(self) -> str:
        return f"{self.publisher}/{self.name}"


def check(content: bytes, sha256: str) -> Bundle:
    """Give the bundle, if it has this hash and only configures Lacuna's own apps; else PlanRefused, with the rule."""
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise _refused(f"has the hash {found[:16]}, and the run names {_shown(sha256[:16])}")
    if len(content) > MOST:
        raise _refused(f"is {len(content)} bytes; one that only configures has at most {MOST}")
    files = _files(content)
    _check_content(files.get(CONTENT), files.get(CONFIGURATION))
    return _check_configuration(files[CONFIGURATION])


def _files(content: bytes) -> dict[str, bytes]:
    """Read the two files that may be in it, once all names and sizes are known to be allowed."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            names = [entry.orig_filename for entry in entries]
            strange = sorted({name for name in names if name not in (CONFIGURATION, CONTENT)})
            if strange:
                raise _refused(f"carries {_list(strange)}; it may carry {CONFIGURATION} alone: no code, no other file")
            if sorted(names) != sorted((CONFIGURATION, CONTENT)):
                raise _refused(f"must hold {CONFIGURATION} and {CONTENT}, each once")
            for entry in entries:
                if entry.file_size > MOST:
                    raise _refused(f"{entry.orig_filename} unpacks to {entry.file_size} bytes; at most {MOST}")
                if entry.external_attr >> 16 & 0o170000 not in (0, 0o100000):
                    raise _refused(f"{entry.orig_filename} is a link or no plain file")
            return {entry.orig_filename: _read(archive, entry) for entry in entries}
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        OSError,
        ValueError,
        RuntimeError,
        NotImplementedError,
        IndexError,
    ) as error:
        raise _refused(f"can't be read as a zip ({type(error).__name__})") from None


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    with archive.open(entry) as file:
        read = file.read(MOST + 1)
    if len(read) != entry.file_size:
        raise _refused(f"{entry.orig_filename} is not of the size that it says")
    return read


def _check_content(listed: bytes | None, configuration: bytes | None) -> None:
    """Check Flower's own list of what is inside: the one file, with its hash and its size in bits."""
    assert listed is not None
    assert configuration is not None
    wanted = f"{CONFIGURATION},{hashlib.sha256(configuration).hexdigest()},{8 * len(configuration)}"
    if listed.decode("utf-8", "replace").strip() != wanted:
        raise _refused(f"{CONTENT} does not list {CONFIGURATION} with its hash, and that alone")


def _check_configuration(content: bytes) -> Bundle:
    try:
        record = tomllib.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _refused(f"{CONFIGURATION} can't be read ({type(error).__name__})") from None
    for path, allowed in KEYS.items():
        table = _table(record, path)
        others = sorted(table.keys() - set(allowed))
        if others:
            raise _refused(f"{CONFIGURATION}: {_list(others, path)} is not among what a bundle may say")
    project, app = _table(record, "project"), _table(record, "tool.flwr.app")
    for kind, wanted in COMPONENTS.items():
        named = _table(record, "tool.flwr.app.components").get(kind)
        if named != wanted:
            raise _refused(f"{kind}={_shown(named)}: a site runs its own {wanted} and nothing else")
    if "config" in app:
        _table(record, "tool.flwr.app.config")
    dependencies = project.get("dependencies", [])
    if not isinstance(dependencies, list):
        raise _refused(f"dependencies={_shown(dependencies)}: must be a list")
    for dependency in dependencies:
        if not isinstance(dependency, str) or not _FLWR.fullmatch(dependency):
            raise _refused(
                f"dependencies: {_shown(dependency)}: only flwr may be among them; the site installs nothing"
            )
    for key, value, rule in (
        ("name", project.get("name"), _NAME),
        ("version", project.get("version"), _VERSION),
        ("publisher", app.get("publisher"), _NAME),
    ):
        if not isinstance(value, str) or not rule.fullmatch(value):
            raise _refused(f"{key}={_shown(value)}: must match {rule.pattern}")
    return Bundle(publisher=app["publisher"], name=project["name"], version=project["version"])


def _table(record: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    table: Any = record
    for key in path.split(".") if path else ():
        table = table.get(key)
        if not isinstance(table, dict):
            raise _refused(f"{CONFIGURATION}: [{path}] is missing or no table")
    assert isinstance(table, dict)
    return table


def _list(names: Iterable[str], table: str = "") -> str:
    names = list(names)
    shown = ", ".join(_shown(f"{table}.{name}" if table else name) for name in names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _shown(value: object) -> str:
    """Quote the sender's text for our log: on one line, and short."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _refused(why: str) -> PlanRefused:
    return PlanRefused(f"bundle: {why}")
