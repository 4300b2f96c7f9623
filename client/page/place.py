"""What `lacuna-site open` was told: where everything lies that its pages show. Nothing of it comes from a browser."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.base.errors import ConfigError, DataError
from shared.base.files import read_bounded
from shared.base.vocabulary import Modality
from shared.data.modalities import MODALITIES
from shared.page.decided import Decided
from shared.page.handles import key_of

PAGE, FILLED = "page", "filled"  # folders of STATE
BUNDLE, MOST_BUNDLE = "bundle.json", 2**22


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    state: Path
    cohorts: tuple[Path, ...] = ()
    bundles: tuple[Path, ...] = ()
    trust: Path | None = None  # the coordinator's public key; without it nothing is filled in
    push: str | None = None  # the PACS
    auth_file: Path | None = None
    out: Path | None = None  # what is filled in; None: STATE/filled

    def __post_init__(self) -> None:
        if not self.state.is_dir():
            raise ConfigError(f"--state {self.state}: no folder there")
        for cohort in self.cohorts:
            if not cohort.is_dir():
                raise ConfigError(f"--cohort {cohort}: no folder there")
        if self.bundles and self.trust is None:
            raise ConfigError("--trust: name the coordinator's public key; a bundle signed by another is refused")

    @property
    def filled(self) -> Path:
        return self.out or self.state / FILLED

    @property
    def key(self) -> bytes:
        return key_of(self.state / PAGE)

    @property
    def decided(self) -> Decided:
        return Decided(self.state / PAGE)

    def named(self) -> Iterator[tuple[str, Path]]:
        """The bundles by the names that a form has."""
        for number, folder in enumerate(self.bundles):
            yield str(number), folder

    def makes(self) -> frozenset[Modality]:
        """What some bundle can make."""
        return frozenset(m for folder in self.bundles for m in said_by(folder)["modalities"] if m in MODALITIES)


def said_by(folder: Path) -> dict[str, Any]:
    """What a bundle says of itself, for a form; its signature is verified when it is used."""
    try:
        record = dict(json.loads(read_bounded(folder / BUNDLE, "bundle", MOST_BUNDLE)))
        return {
            "method": str(record["method"]),
            "modalities": [str(m) for m in record["modalities"]],
            "run": str(record["provenance"].get("run")),
        }
    except (ValueError, TypeError, KeyError, AttributeError, DataError) as error:
        raise DataError(f"bundle {folder.name}: can't be read: {error}") from None
