"""Somebody leaves: a site's note of the runs that its subject was in, and the signed list of recalled bundles.

FEDERATION/recalled.json   for every site, to lie beside the key that it trusts (shared/trust/leaving.py)
"""

from datetime import datetime
from pathlib import Path

from server.federation.federation import SIGNING_PUBLIC, Federation, load, opened
from shared.base.errors import ConfigError
from shared.base.files import Change, read_bounded
from shared.model import bundle
from shared.trust import certificates
from shared.trust.keys import parse_site_line, read_public_key
from shared.trust.leaving import RECALLED, Note, Recall, Recalled, read_note, read_recalled, write_recalled


def read_site_note(folder: Path, path: Path) -> Note:
    """Of a site that was ever admitted, also one that was revoked since."""
    sites = load(folder).sites
    keys = {entry.site: parse_site_line(entry.public_key, entry.site) for entry in sites.values()}
    return read_note(read_bounded(path, "note"), f"note {path}", keys)


def recall(folder: Path, model: Path, *, why: str, now: datetime) -> Path:
    """Put the weights of a bundle on the list; gives the list's file, which goes to every site."""
    weights, signer = bundle.weights_of(model)
    with opened(folder) as federation:
        known = {read_public_key(folder / SIGNING_PUBLIC).public_bytes_raw(), *(one.old for one in federation.follows)}
        if signer.public_bytes_raw() not in known:
            raise ConfigError(f"bundle {model}: signed by key {bundle.key_id(signer)}, which is not this federation's")
        found = listed(federation)
        more = {weights: Recall(why=" ".join(why.split()), at=certificates.utc(now))}
        change = Change(folder)
        content = Recalled(federation=found.federation, weights={**more, **found.weights})
        change.write(RECALLED, write_recalled(content, federation.signing_key()))
        change.commit()
    return folder / RECALLED


def listed(federation: Federation) -> Recalled:
    path = federation.folder / RECALLED
    if not path.exists():
        return Recalled(federation=federation.state.federation)
    return read_recalled(read_bounded(path, RECALLED), str(path), read_public_key(federation.folder / SIGNING_PUBLIC))
