"""Where a site's own text encoder is. These settings are read where they are used, and never travel.

`builtin`, `label_embedding` and `none` need none of them. Each is looked for in the node config (`text-folder`), then
in STATE/site.toml (`folder` in its section `[text]`), then in the environment (`LACUNA_TEXT_FOLDER`). A coordinator,
and a simulation with all its sites, take them from the environment alone. Lists are written with commas.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.base.errors import ConfigError
from shared.base.options import require

VARIABLE = "LACUNA_TEXT_"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSettings:
    folder: Path | None = None  # hf_dir: config.json, *.safetensors and the tokenizer's files
    url: str | None = None  # openai_compatible: the base, such as https://10.0.0.7/v1
    model: str | None = None
    dimensions: int | None = None  # asked of the server; None: the model's own
    timeout: float = 30.0
    key_file: Path | None = None  # holds the server's key; mode 0600
    ca_file: Path | None = None  # who signs the server's certificate; None: the system's authorities
    allowed_hosts: tuple[str, ...] = ()  # beyond loopback and private addresses, and with allow_phi_egress alone
    allow_phi_egress: bool = False
    state: Path | None = None  # the site's own disk, for the encrypted cache; None: nothing is kept

    def __post_init__(self) -> None:
        require(self.timeout > 0, "timeout", self.timeout, "above 0 seconds")
        require(self.dimensions is None or self.dimensions >= 1, "dimensions", self.dimensions, "1 or more")
        plain = self.model is None or (self.model.isascii() and self.model.isprintable() and self.model != "")
        require(plain, "model", self.model, "printable ASCII")


def text_settings(given: Mapping[str, Any], state: Path | None) -> TextSettings:
    """Make a site's settings of what it says itself, then the environment; `state` is where its cache is kept."""
    return _build({**_from_environment(), **given}, state)


def from_environment() -> TextSettings:
    """Read a coordinator's settings. It keeps no cache: it has the probes to ask, and no patient."""
    return _build(_from_environment(), None)


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if str(value).casefold() not in ("true", "false"):
        raise ValueError
    return str(value).casefold() == "true"


def _names(value: Any) -> tuple[str, ...]:
    listed = value if isinstance(value, list | tuple) else str(value).split(",")
    return tuple(str(name).strip() for name in listed if str(name).strip())


_FORMS: Mapping[str, tuple[Callable[[Any], Any], str]] = {
    "folder": (Path, "a folder"),
    "url": (str, "a URL"),
    "model": (str, "a name"),
    "dimensions": (int, "a whole number"),
    "timeout": (float, "a number of seconds"),
    "key-file": (Path, "a file"),
    "ca-file": (Path, "a file"),
    "allowed-hosts": (_names, "host names"),
    "allow-phi-egress": (_flag, "true or false"),
}


def _from_environment() -> dict[str, Any]:
    return {
        name.removeprefix(VARIABLE).lower().replace("_", "-"): value
        for name, value in os.environ.items()
        if name.startswith(VARIABLE)
    }


def _build(values: Mapping[str, Any], state: Path | None) -> TextSettings:
    found = {}
    for key, value in values.items():
        if key not in _FORMS:
            raise ConfigError(f"text.{key}: unknown key; must be one of {', '.join(_FORMS)}")
        form, rule = _FORMS[key]
        try:
            found[key.replace("-", "_")] = form(value)
        except (ValueError, TypeError):
            raise ConfigError(f"text.{key}={value!r}: must be {rule}") from None
    return TextSettings(state=state, **found)
