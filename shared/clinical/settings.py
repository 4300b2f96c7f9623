"""Where a site's own text encoder is. These settings are read where they are used, and never travel.

`builtin`, `label_embedding` and `none` need none of them.
"""

from dataclasses import dataclass
from pathlib import Path

from shared.options import require


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
