"""The site's text encoder, once it is known to be the one that the run was planned with.

Settings of the site's own (folders, hosts) stay in its log: of what goes wrong there the coordinator learns the fact.
"""

import functools
import logging
from collections.abc import Sequence

from torch import Tensor

from client.site.site import Site
from shared.base.errors import LacunaError, PlanRefused
from shared.base.vocabulary import Modality
from shared.clinical import OWN, Chart, Encoder, TextSettings, make_encoder
from shared.clinical.attach import reads_text
from shared.clinical.probes import fingerprint, id_of, same_encoder
from shared.methods import Method

log = logging.getLogger("lacuna.site")


def check_text(site: Site, method: Method) -> Encoder | None:
    """Open the method's text encoder and ask it anew whether it is the plan's; None where the method hears no text.

    PlanRefused where it is not the plan's: the numbers of networks that hear different tokens must not be averaged.
    """
    if not reads_text(method):
        return None
    if method.text in OWN and not method.text_fingerprint:
        raise PlanRefused(f"{site.name}: text={method.text}: the plan has no text_fingerprint to compare encoders by")
    try:
        encoder = _open(method.text, method.text_width, site.text)
        own = fingerprint(encoder) if method.text_fingerprint else ""
    except (LacunaError, OSError) as error:
        raise _refused(site, method.text, error) from None
    if method.text_fingerprint and not same_encoder(method.text_fingerprint, own):
        raise PlanRefused(
            f"{site.name}: its text encoder ({id_of(own)}) is not the plan's ({id_of(method.text_fingerprint)}), and "
            "what was trained with different ones must not be averaged"
        )
    return Discreet(site, method.text, encoder)


class Discreet:
    """A site's encoder whose errors stay in its log: an error's text leaves, and may name a host or a folder."""

    def __init__(self, site: Site, kind: str, encoder: Encoder) -> None:
        self.id, self.width = encoder.id, encoder.width
        self._site, self._kind, self._encoder = site, kind, encoder

    def encode(
        self, charts: Sequence[Chart], targets: Sequence[Modality], available: Sequence[tuple[Modality, ...]]
    ) -> tuple[Tensor, Tensor]:
        try:
            return self._encoder.encode(charts, targets, available)
        except (LacunaError, OSError) as error:
            raise _refused(self._site, self._kind, error) from None


@functools.lru_cache(maxsize=8)
def _open(kind: str, width: int, settings: TextSettings) -> Encoder:
    """Make an encoder; kept, so that a language model is loaded once in a process."""
    return make_encoder(kind, width, settings)


def _refused(site: Site, kind: str, error: Exception) -> PlanRefused:
    log.error("site %s: text=%s: %s", site.name, kind, error)
    return PlanRefused(f"{site.name}: text={kind}: its encoder can't be used; the site's own log says why")
