"""Options that several verbs of `lacuna-site` have, written once."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.base.errors import ConfigError

if TYPE_CHECKING:
    from client.inference.job import Asked
    from shared.diffusion.samplers import Sampler
    from shared.model.bundle import Bundle as Loaded

Bundle = Annotated[Path, typer.Option(help="Folder of the bundle.")]
Device = Annotated[str, typer.Option(help="auto | cpu | cuda")]
Kind = Annotated[
    str | None, typer.Option(help="mean | multistep | ddim | ancestral. Default: the bundle's.", show_default=False)
]
Modalities = Annotated[
    list[str] | None, typer.Option(help="Only these; repeat it. Default: all that are found.", show_default=False)
]
Why = Annotated[str, typer.Option(help="The reason, for whoever reads the decision later.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """Whose bundles are taken."""

    trust: Annotated[
        Path | None,
        typer.Option(
            help="The coordinator's public key; a bundle signed by another is refused, and one that the coordinator's "
            "recalled.json, which lies beside the key, has recalled.",
            show_default=False,
        ),
    ] = None
    any_signer: Annotated[
        bool, typer.Option("--any-signer", help="Take a whole bundle whoever signed it; forgery is then not excluded.")
    ] = False

    def load(self, folder: Path) -> "Loaded":
        from shared.model import bundle
        from shared.trust.leaving import check_not_recalled

        if self.trust is None and not self.any_signer:
            raise ConfigError(
                "--trust: name the coordinator's public key, or say --any-signer to take any whole bundle"
            )
        if self.trust is None:
            return bundle.load(folder, trusted=None)
        key = bundle.read_public_key(self.trust)
        loaded = bundle.load(folder, trusted=key)
        check_not_recalled(loaded.record["files"][bundle.WEIGHTS]["sha256"], self.trust, key, f"bundle {folder}")
        return loaded


@dataclass(frozen=True, slots=True, kw_only=True)
class Filling:
    """What is to be made of a subject, and how."""

    target: Annotated[
        list[str] | None, typer.Option(help="Default: all that the subject lacks; repeat it.", show_default=False)
    ] = None
    without: Annotated[
        list[str] | None,
        typer.Option(help="A modality of the subject's that is not to be used; repeat it.", show_default=False),
    ] = None
    sampler: Kind = None
    samples: Annotated[
        int | None, typer.Option(min=1, help="Monte-Carlo samples; 2 or more give an uncertainty.", show_default=False)
    ] = None
    seed: Annotated[int, typer.Option(help="Same seed, same volume.")] = 0
    device: Device = "auto"
    force: Annotated[
        bool, typer.Option("--force", help="Go on with an input far from what the bundle was trained on; recorded.")
    ] = False

    def asked(self, **more: Any) -> "Asked":
        from client.inference.job import Asked
        from shared.data.modalities import parse

        return Asked(
            targets=[parse(name) for name in self.target] if self.target else None,
            without=[parse(name) for name in self.without or []],
            sampler=sampler_of(self.sampler),
            samples=self.samples,
            seed=self.seed,
            device=self.device,
            force=self.force,
            **more,
        )


def sampler_of(kind: str | None) -> "Sampler | None":
    from shared.plan.settings import load_sampler

    return None if kind is None else load_sampler(kind)
