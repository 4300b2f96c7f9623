"""STATE/site.toml, what this hospital decides about its own site; it never leaves.

[site]
cohorts = ["/data/strokes"]     folders that `lacuna-site prepare` has prepared
device = "auto"                 auto | cpu | cuda
image = "lacuna-client:0.1.0"   for `lacuna-site up`: the client image
built = "federation"            for `up`: federation (which signed it, STATE/images) | here (by this hospital, unsigned)
gpu = "auto"                    for `up`: auto | all | none
memory = "16g"                  for `up`: the most that the container may use
passphrase = "/run/word"        for `up`: the file with the passphrase of the site's key, outside of STATE
pacs = ["pacs.example:443"]     for `up`: what the container reaches besides the server

[policy]                        client/site/policy.py
[text]                          a text encoder of its own, shared/clinical/settings.py
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from shared.base.errors import ConfigError, DataError
from shared.base.files import read_bounded
from shared.base.names import Address
from shared.base.options import build, require

SETTINGS, TABLES = "site.toml", ("site", "policy", "text")
DEVICES, GPUS, BUILT = ("auto", "cpu", "cuda"), ("auto", "all", "none"), ("federation", "here")
_IMAGE = re.compile(r"[a-z0-9][A-Za-z0-9._/:@-]{0,255}")
_MEMORY = re.compile(r"[1-9][0-9]{0,5}[mg]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    cohorts: tuple[str, ...] = ()
    device: str = "auto"
    image: str | None = None
    built: str = "federation"
    gpu: str = "auto"
    memory: str = "16g"
    passphrase: str | None = None
    pacs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(self.device in DEVICES, "device", self.device, f"one of {', '.join(DEVICES)}")
        require(self.gpu in GPUS, "gpu", self.gpu, f"one of {', '.join(GPUS)}")
        require(self.built in BUILT, "built", self.built, f"one of {', '.join(BUILT)}")
        require(bool(_MEMORY.fullmatch(self.memory)), "memory", self.memory, "like 16g or 900m")
        require(self.image is None or bool(_IMAGE.fullmatch(self.image)), "image", self.image, "an image's name")
        require(len(set(self.cohorts)) == len(self.cohorts), "cohorts", self.cohorts, "each once")
        there = self.passphrase is None or (Path(self.passphrase).is_absolute() and ":" not in self.passphrase)
        require(there, "passphrase", self.passphrase, "a file, by its path from the root, /...")
        for address in self.pacs:
            Address.parse(address, "pacs")
        for cohort in self.cohorts:
            require(Path(cohort).is_absolute(), "cohorts", cohort, "a path from the root, /...")
            require(":" not in cohort, "cohorts", cohort, "without a colon")

    def having(self, given: Mapping[str, Any]) -> "Settings":
        """The settings with what was given on the command line instead; None was not given."""
        return replace(self, **{key: value for key, value in given.items() if value is not None})


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteFile:
    """The file's tables as they were written; empty where it or one of them is not there."""

    site: Mapping[str, Any] = field(default_factory=dict)
    policy: Mapping[str, Any] = field(default_factory=dict)
    text: Mapping[str, Any] = field(default_factory=dict)


def read_file(state: Path) -> SiteFile:
    """Read STATE/site.toml, for whoever asks for one of its tables; ConfigError for a table that is not ours."""
    path = state / SETTINGS
    if not path.exists():
        return SiteFile()
    try:
        record = tomllib.loads(read_bounded(path, "site").decode("utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: can't be read: is no TOML: {error}") from None
    except DataError as error:
        raise ConfigError(f"{path}: can't be read: {error}") from None
    for name, table in sorted(record.items()):
        if name not in TABLES:
            raise ConfigError(f"{path}: [{name}] is unknown; it has [site], [policy] and [text]")
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: {name}={table!r}: {name} must be a table, [{name}]")
    return SiteFile(**record)


def load(state: Path) -> Settings:
    """Read [site], with defaults for what it does not say; ConfigError for a key that is not ours."""
    table = read_file(state).site
    try:
        return build(Settings, table, "site")
    except ConfigError as error:
        raise ConfigError(f"{state / SETTINGS}: {error}") from None
