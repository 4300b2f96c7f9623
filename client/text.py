"""The site's text encoder, once it is known to be the one that the run was planned with.

Settings of the site's own (folders, hosts) stay in its log: of what goes wrong there the coordinator learns the fact.
"""

import functools
import logging

from client.site import Site
from shared.clinical import OWN, Encoder, TextSettings, make_encoder
from shared.clinical.attach import ReadsText, reads_text
from shared.clinical.probes import fingerprint, id_of, same_encoder
from shared.errors import LacunaError, PlanRefused
from shared.methods import Method

log = logging.getLogger("lacuna.site")


def check_text(site: Site, method: Method) -> Encoder | None:
    """What the method's network hears with, asked anew; None where it hears nothing.

    PlanRefused where it is not the plan's: the numbers of networks that hear different tokens must not be averaged.
    """
    if not reads_text(method):
        return None
    encoder = _opened(site, method)
    if not method.text_fingerprint:
        return encoder
    own = _asked(site, method, encoder)
    if not same_encoder(method.text_fingerprint, own):
        raise PlanRefused(
            f"{site.name}: its text encoder ({id_of(own)}) is not the plan's ({id_of(method.text_fingerprint)}), and "
            "what was trained with different ones must not be averaged"
        )
    return encoder


def _opened(site: Site, method: ReadsText) -> Encoder:
    if method.text in OWN and not method.text_fingerprint:
        raise PlanRefused(f"{site.name}: text={method.text}: the plan has no text_fingerprint to compare encoders by")
    try:
        return _open(method.text, method.text_width, site.text)
    except (LacunaError, OSError) as error:
        raise _refused(site, method, error) from None


@functools.lru_cache(maxsize=8)
def _open(kind: str, width: int, settings: TextSettings) -> Encoder:
    """A language model is loaded once in a process."""
    return make_encoder(kind, width, settings)


def _asked(site: Site, method: ReadsText, encoder: Encoder) -> str:
    try:
        return fingerprint(encoder)
    except (LacunaError, OSError) as error:
        raise _refused(site, method, error) from None


def _refused(site: Site, method: ReadsText, error: Exception) -> PlanRefused:
    log.error("site %s: text=%s: %s", site.name, method.text, error)
    return PlanRefused(f"{site.name}: text={method.text}: its encoder can't be used; the site's own log says why")
