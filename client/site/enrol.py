"""A site's half of provisioning: its key pair, made here and never sent; its request to join; the kit that answers.

    STATE/site.toml                               what the site decides; written once, with every key explained
    STATE/enrolment/site.json site.key site.pub   who we are; the key as `flower-supernode` takes it
                    NAME.request.json             what goes to the coordinator
                    next.key next.pub             the pair that replaces it, once a kit for it is joined
    STATE/federation/                             what the kit brought, and its head, kit.json

A kit is installed whole or not at all. What it says about running the site must be, byte for byte, what this site's
own copy of Lacuna writes: a coordinator decides what is trained, never what runs here.
"""

from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path

from client.site.policy import template
from client.site.settings import SETTINGS
from shared.base.errors import ConfigError, DataError
from shared.base.files import Change, canonical, locked, parse_canonical, private_folder, read_bounded, read_secret
from shared.base.names import check_name
from shared.base.options import build, plain
from shared.trust import kit, manifest
from shared.trust.certificates import Lifetime, lifetime, parse_authorities, utc, warnings
from shared.trust.keys import (
    fingerprint,
    new_site_key,
    parse_fingerprint,
    parse_site_key,
    public_pem,
    read_public_key,
    site_line,
    spoken,
)
from shared.trust.kit import Head, Kit, Versions
from shared.trust.manifest import Manifest

ENROLMENT, FEDERATION = "enrolment", "federation"
SITE = f"{ENROLMENT}/site.json"
KEY, PUBLIC = f"{ENROLMENT}/site.key", f"{ENROLMENT}/site.pub"
NEXT_KEY, NEXT_PUBLIC = f"{ENROLMENT}/next.key", f"{ENROLMENT}/next.pub"
HEAD = f"{FEDERATION}/kit.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolled:
    request: Path
    fingerprint: str  # of the key in it


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    head: Head
    manifest: Manifest
    folder: Path
    notes: tuple[str, ...]


def init_site(state: Path, site: str, *, again: bool = False, word: bytes | None = None) -> Enrolled:
    """Make the site's key pair and its request. `again`: another pair, in use once a kit for it is joined.

    `word`: a passphrase, with which the key is encrypted.
    """
    check_name(site, "site")
    private_folder(state)
    with locked(state):
        if (state / SITE).exists():
            own = _own_name(state)
            if own != site:
                raise ConfigError(f"site={site!r}: {state} is the state of site {own!r}; another site has its own")
            if not again:
                raise ConfigError(
                    f"site={site!r}: has a key pair already, {state / KEY}; --again makes another to replace it"
                )
        secret = new_site_key(word)
        key = parse_site_key(secret, "site key", word)
        first = not (state / SITE).exists()
        change = Change(state)
        change.write(SITE, canonical({"schema": 1, "site": site}))
        change.write(KEY if first else NEXT_KEY, secret, mode=0o600)
        change.write(PUBLIC if first else NEXT_PUBLIC, site_line(key.public_key()).encode("ascii") + b"\n")
        request = f"{ENROLMENT}/{site}.request.json"
        change.write(request, kit.write_request(site, key, Versions(lacuna=version("lacuna"), flwr=version("flwr"))))
        if not (state / SETTINGS).exists():
            change.write(SETTINGS, template().encode())
        change.commit()
        return Enrolled(request=state / request, fingerprint=fingerprint(key.public_key()))


def join(state: Path, path: Path, *, signer: str | None = None, now: datetime) -> Joined:
    """Verify a kit and install it. `signer`: the signing key's fingerprint, from the coordinator's own mouth.

    Once a kit is installed its key is trusted, and those that follow it; `signer` then overrules it.
    """
    where = f"kit {path}"
    if not (state / SITE).exists():
        raise ConfigError(f"{state}: no site was made here; `lacuna-site init {state} --site NAME` comes first")
    with locked(state):
        before = _installed(state)
        trusted = _trusted(state, signer, before)
        opened = kit.read_kit(read_bounded(path, where), where, trusted=trusted)
        secret = _own_key(state, opened.head, where)
        agreed = _check(opened, before, where, now)
        change, known = Change(state), _sites_notes(state, opened)
        for name, content in opened.files.items():
            change.write(f"{FEDERATION}/{name}", content)
        change.write(HEAD, canonical(plain(opened.head)))
        if secret is not None:
            change.write(KEY, secret, mode=0o600)
            change.write(PUBLIC, opened.head.public_key.encode("ascii") + b"\n")
            change.remove(NEXT_KEY)
            change.remove(NEXT_PUBLIC)
        notes = _notes(opened, before, trusted, switched=secret is not None) + known
        change.commit()
        return Joined(head=opened.head, manifest=agreed, folder=state / FEDERATION, notes=notes)


def lifetimes(state: Path) -> dict[str, Lifetime]:
    """Name each CA certificate that this site trusts, with its lifetime."""
    path = state / FEDERATION / kit.AUTHORITIES
    found = parse_authorities(read_bounded(path, "certificate"), str(path))
    return {
        f"{path}:{i}": lifetime(
            certificate,
            f"the federation's CA ({certificate.subject.rfc4514_string()}, {path})",
            "ask the coordinator for a new kit and `lacuna-site join` it",
        )
        for i, certificate in enumerate(found)
    }


def installed(state: Path) -> Head:
    """Read the head of the kit that is installed; DataError when there is none, or it is damaged."""
    return build(Head, parse_canonical(read_bounded(state / HEAD, "site"), str(state / HEAD)), HEAD)


def name_of(state: Path) -> str | None:
    """The site whose state it is; None where none was made there."""
    return _own_name(state) if (state / SITE).exists() else None


def expiry_warnings(state: Path, now: datetime) -> list[str]:
    return warnings(lifetimes(state), now)


# --- parts ----------------------------------------------------------------------------------------------------------


def _own_name(state: Path) -> str:
    record = parse_canonical(read_bounded(state / SITE, "site"), str(state / SITE))
    return check_name(str(record.get("site")), "site")


def _installed(state: Path) -> Head | None:
    if not (state / HEAD).exists():
        return None
    return installed(state)


def _trusted(state: Path, signer: str | None, installed: Head | None) -> str:
    if signer is not None:
        return parse_fingerprint(signer, "fingerprint")
    if installed is None:
        raise ConfigError(
            "fingerprint: missing; ask the coordinator for that of the signing key, by telephone and not by the way "
            "that the kit came, and give it as --fingerprint 'xxxx xxxx ...'"
        )
    return fingerprint(read_public_key(state / FEDERATION / kit.SIGNING))


def _own_key(state: Path, head: Head, where: str) -> bytes | None:
    """The next private key, if the kit is for it; None if it is for the one in use; DataError if it is for neither."""
    own = _own_name(state)
    if head.site != own:
        raise DataError(f"{where}: is for site {head.site!r}; this is {own!r}")
    for path in (KEY, NEXT_KEY):
        if (state / path).exists():
            secret = read_secret(state / path, "site key")
            if site_line(parse_site_key(secret, f"site key {state / path}").public_key()) == head.public_key:
                return secret if path == NEXT_KEY else None
    raise DataError(
        f"{where}: is for another key, {spoken(head.fingerprint)}, than this site's: made for an old request"
    )


def _check(opened: Kit, installed: Head | None, where: str, now: datetime) -> Manifest:
    head = opened.head
    if installed is not None and installed.federation != head.federation:
        raise DataError(f"{where}: is of federation {head.federation!r}; this state is in {installed.federation!r}")
    if installed is not None and head.revision < installed.revision:
        raise DataError(f"{where}: is revision {head.revision}, older than the installed {installed.revision}")
    if opened.files[kit.SIGNING] != public_pem(opened.signer):
        raise DataError(f"{where}: {kit.SIGNING} is not the key that signed the kit")
    own = kit.read_sites(opened.files[kit.SITES], f"{where}: {kit.SITES}").get(head.site)
    if own is None or site_line(own) != head.public_key:
        raise DataError(f"{where}: {kit.SITES} does not name this site with its own key")
    agreed = manifest.verify(opened.files[manifest.MANIFEST], opened.files[manifest.SIGNATURE], opened.signer, where)
    if agreed.federation != head.federation:
        raise DataError(f"{where}: {manifest.MANIFEST} is of federation {agreed.federation!r}, not {head.federation!r}")
    _check_intensities(agreed, where)
    _check_own_files(opened, where)
    authorities = parse_authorities(opened.files[kit.AUTHORITIES], f"{where}: {kit.AUTHORITIES}")
    if not any(a.not_valid_before_utc <= now < a.not_valid_after_utc for a in authorities):
        ends = max(a.not_valid_after_utc for a in authorities)
        raise DataError(
            f"{where}: {kit.AUTHORITIES} holds until {utc(ends)}, and the clock here says {utc(now)}: set the clock, "
            "or ask for a new kit"
        )
    return agreed


def _check_intensities(agreed: Manifest, where: str) -> None:
    from shared.data.intensities import RULES, rules_version

    own = rules_version(agreed.modalities)
    rules = {name: plain(RULES[name]) for name in agreed.modalities if name in RULES}
    if agreed.intensities.version != own or dict(agreed.intensities.rules) != rules:
        raise DataError(
            f"{where}: {manifest.MANIFEST} has other intensity rules ({agreed.intensities.version}, here "
            f"{own}); the federation runs Lacuna {agreed.lacuna}, here is {version('lacuna')}"
        )


def _check_own_files(opened: Kit, where: str) -> None:
    """Check that what would run here is this site's own text, with two names filled in."""
    head = opened.head
    address = kit.read_address(opened.files[kit.ADDRESSES], where)
    for name, own in kit.site_files(head.site, head.federation, address).items():
        if opened.files[name] != own:
            theirs, ours = opened.files[name].split(b"\n"), own.split(b"\n")
            line = 1 + sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(theirs, ours, strict=False)))
            raise DataError(
                f"{where}: {name} line {line} is not what this site's own Lacuna {version('lacuna')} writes (the "
                f"coordinator has {head.versions.lacuna}): use the same version, and if it is the same ask why"
            )


def _notes(opened: Kit, installed: Head | None, trusted: str, *, switched: bool) -> tuple[str, ...]:
    notes = []
    if fingerprint(opened.signer) != trusted:
        notes.append(
            f"the signing key is now {spoken(fingerprint(opened.signer))}; the one trusted so far vouches for it"
        )
    if installed is not None and installed.manifest != opened.head.manifest:
        notes.append(
            f"the federation's manifest changed: {opened.head.manifest[:12]}, before {installed.manifest[:12]}"
        )
    if switched:
        notes.append("the site's new key is in use from its next start")
    return tuple(notes)


def _sites_notes(state: Path, opened: Kit) -> tuple[str, ...]:
    """Whom this site would hide its updates with, where that is not what it was: only here could a site be made up."""
    path, own = state / FEDERATION / kit.SITES, opened.head.site
    before = kit.read_sites(read_bounded(path, kit.SITES), kit.SITES) if path.exists() else {}
    now = kit.read_sites(opened.files[kit.SITES], kit.SITES)
    told = [
        f"{'another key of site' if site in before else 'site'} {site}: {spoken(fingerprint(key))}; compare it with "
        "them where runs are secure: among sites that were made up nothing is hidden"
        for site, key in sorted(now.items())
        if site != own and (site not in before or site_line(before[site]) != site_line(key))
    ]
    gone = [f"site {site} is no longer in the federation" for site in sorted(before.keys() - now.keys())]
    return (*told, *gone)
