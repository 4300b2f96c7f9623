"""Options that several verbs of `lacuna-site` have."""

from pathlib import Path
from typing import Annotated

import typer

from shared.base.errors import ConfigError

Bundle = Annotated[Path, typer.Option(help="Folder of the bundle.")]
Trust = Annotated[
    Path | None,
    typer.Option(help="The coordinator's public key; a bundle signed by another is refused.", show_default=False),
]
AnySigner = Annotated[
    bool, typer.Option("--any-signer", help="Take a whole bundle whoever signed it; forgery is then not excluded.")
]
Without = Annotated[
    list[str] | None,
    typer.Option(help="A modality of the subject's that is not to be used; repeat it.", show_default=False),
]
Device = Annotated[str, typer.Option(help="auto | cpu | cuda")]
Force = Annotated[
    bool, typer.Option("--force", help="Go on with an input far from what the bundle was trained on; recorded.")
]
Kind = Annotated[
    str | None, typer.Option(help="mean | multistep | ddim | ancestral. Default: the bundle's.", show_default=False)
]


def load(folder: Path, trust: Path | None, any_signer: bool):  # type: ignore[no-untyped-def]
    from shared.model import bundle

    if trust is None and not any_signer:
        raise ConfigError("--trust: name the coordinator's public key, or say --any-signer to take any whole bundle")
    return bundle.load(folder, trusted=None if trust is None else bundle.read_public_key(trust))


def sampler_of(kind: str | None):  # type: ignore[no-untyped-def]
    from shared.plan.config import load_sampler

    return None if kind is None else load_sampler(kind)
