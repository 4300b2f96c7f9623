"""Encoders and networks: which methods hear text, and a site's own encoder into a network that waits for it.

A network that hears is `Hearing`: its encoder is a plain attribute, whose own weights are not in the network's state,
and nothing of which travels.
"""

from typing import Protocol

from torch import nn

from shared.base.errors import ConfigError
from shared.clinical import OWN, make_encoder
from shared.clinical.encoder import Encoder, Hearing, Unset
from shared.clinical.probes import fingerprint, id_of, same_encoder
from shared.clinical.settings import TextSettings, from_environment


class TextOptions(Protocol):
    """What every method says of its text (shared/methods/contract.py)."""

    @property
    def text(self) -> str: ...

    @property
    def text_width(self) -> int: ...

    @property
    def text_fingerprint(self) -> str: ...


def reads_text(method: TextOptions) -> bool:
    return method.text != "none"


def planned_fingerprint(method: TextOptions, settings: TextSettings | None = None) -> str:
    """Take the fingerprint of the coordinator's encoder, for the plan: all sites' have to be like it."""
    return fingerprint(make_encoder(method.text, method.text_width, settings or from_environment()))


def attach(net: nn.Module, encoder: Encoder) -> None:
    """Put a site's encoder into a network that hears text; the network itself is changed."""
    if not isinstance(net, Hearing):
        raise ConfigError("text: this network hears no text, and takes no encoder")
    if net.encoder.width != encoder.width:
        raise ConfigError(f"text_width={net.encoder.width}: the encoder {encoder.id} gives tokens of {encoder.width}")
    object.__setattr__(net, "encoder", encoder)  # past nn.Module, which would list a module's weights as its own


def attach_own(net: nn.Module, method: TextOptions, settings: TextSettings | None = None) -> None:
    """Attach what the network waits for, outside of a federation: by these settings or the environment's.

    Where they name none it is left waiting, and says so when it is asked. ConfigError for one that the network was not
    trained with.
    """
    settings = settings or from_environment()
    if not (isinstance(net, Hearing) and isinstance(net.encoder, Unset)):
        return
    if method.text not in OWN or (settings.folder is None and settings.url is None):
        return
    encoder = make_encoder(method.text, method.text_width, settings)
    own = fingerprint(encoder)
    if method.text_fingerprint and not same_encoder(method.text_fingerprint, own):
        wanted = id_of(method.text_fingerprint)
        raise ConfigError(f"text={method.text}: the encoder {id_of(own)} is not the one of its training: {wanted}")
    attach(net, encoder)


def attach_stand_in(net: nn.Module) -> None:
    """For work on made-up images, where it matters only which pieces are there: nobody's tokens instead of a site's."""
    if isinstance(net, Hearing) and isinstance(net.encoder, Unset):
        attach(net, make_encoder("builtin", net.encoder.width))
