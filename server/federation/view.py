"""What the coordinator's folder holds, as facts for a program and as lines for a person; nothing secret is read."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from server.federation.federation import SIGNING_PUBLIC, lifetimes, opened
from shared.base.options import plain
from shared.trust.certificates import utc
from shared.trust.keys import fingerprint, read_public_key, spoken


def facts(folder: Path, now: datetime) -> dict[str, Any]:
    with opened(folder) as federation:
        agreed = plain(federation.manifest)
        return {
            "federation": federation.state.federation,
            "address": federation.state.address,
            "revision": federation.state.revision,
            "signing_key": fingerprint(read_public_key(folder / SIGNING_PUBLIC)),
            "manifest": {"hash": federation.manifest.digest, **{key: agreed[key] for key in _SHOWN}},
            "certificates": [
                {"file": path, "name": life.name, "ends": utc(life.ends), "warning": life.warning(now)}
                for path, life in lifetimes(folder).items()
            ],
            "sites": [
                {key: value for key, value in plain(entry).items() if key not in ("schema", "public_key", "retired")}
                for entry in federation.sites.values()
            ],
        }


_SHOWN = ("version", "modalities", "methods", "min_holders", "quorum", "grid")


def lines(said: Mapping[str, Any]) -> Iterator[str]:
    agreed = said["manifest"]
    yield f"federation {said['federation']}, revision {said['revision']}; sites reach it at {said['address']}"
    yield f"signing key   {spoken(said['signing_key'])}   (to be told to sites by telephone)"
    yield f"manifest      version {agreed['version']}, {agreed['hash'][:16]}"
    yield (
        f"              {', '.join(agreed['modalities'])}; {', '.join(agreed['methods'])}; at least "
        f"{agreed['min_holders']} holders, {agreed['quorum']} sites"
    )
    for certificate in said["certificates"]:
        yield f"certificate   until {certificate['ends']}   {certificate['name']}"
    yield ""
    yield f"{'site':<24}{'status':<10}{'since':<22}{'compared':<10}fingerprint of its key"
    for site in said["sites"]:
        since = site["revoked"] or site["admitted"]
        compared = "yes" if site["compared"] else "NO"
        yield f"{site['site']:<24}{site['status']:<10}{since:<22}{compared:<10}{spoken(site['fingerprint'])}"
        if site["why"]:
            yield f"{'':<24}{site['why']}"
    if not said["sites"]:
        yield "(none yet: `lacuna federation admit REQUEST`)"
