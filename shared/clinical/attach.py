"""The site's own encoder into a network that was built without one."""

from torch import nn

from shared.clinical import make_encoder
from shared.clinical.encoder import Encoder, Unset
from shared.clinical.settings import TextSettings
from shared.errors import ConfigError


def reads_chart(net: nn.Module) -> bool:
    """Does this network hear clinical text at all?"""
    return getattr(net, "encoder", None) is not None


def attach(net: nn.Module, encoder: Encoder) -> None:
    """In place. It is a plain attribute: no weights of its own in the network's state, nothing of it travels."""
    was = getattr(net, "encoder", None)
    if was is None:
        raise ConfigError("text: this network reads no chart, and takes no encoder")
    if was.width != encoder.width:
        raise ConfigError(f"text width={encoder.width} ({encoder.id}): the network takes tokens of {was.width}")
    object.__setattr__(net, "encoder", encoder)  # past nn.Module, which would list a module's weights as its own


def attach_own(net: nn.Module, settings: TextSettings) -> None:
    """What the network waits for, made from these settings; nothing where it waits for none."""
    was = getattr(net, "encoder", None)
    if isinstance(was, Unset):
        attach(net, make_encoder(was.kind, was.width, settings))
