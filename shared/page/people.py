"""The password file of a page that other machines may see: a line for each person, and no password in it.

    # name:roles:Argon2id
    kim:look,decide:$argon2id$v=19$m=65536,t=3,p=4$...

`lacuna-site person FILE NAME --role look --role decide` asks for a password and writes the line.
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from shared.base.errors import ConfigError
from shared.base.files import read_secret, write_bytes
from shared.page.ask import ROLES, Person, Role

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LEAST, MOST = 12, 1000  # characters of a password
MEMORY = 2**16  # KiB that a guess takes: OWASP's least is 19 MiB
HEAD = "# name:roles:Argon2id, written by `lacuna-site person` and `lacuna person`\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    person: Person
    secret: str  # Argon2id in PHC's form


def read(path: Path) -> dict[str, Known]:
    """Everybody in the file; ConfigError for one that others may read, and for a line that is none."""
    found: dict[str, Known] = {}
    text = read_secret(path, "password file").decode("utf-8", "replace")
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        roles, _, secret = rest.partition(":")
        if not NAME.fullmatch(name) or not secret.startswith("$argon2id$") or name in found:
            raise ConfigError(f"password file {path} line {number}: must be name:roles:$argon2id$..., each name once")
        found[name] = Known(person=Person(name=name, roles=roles_of(roles.split(","))), secret=secret)
    return found


def add(path: Path, name: str, password: str, roles: Iterable[str]) -> None:
    """Write a person's line, or write it anew."""
    if not NAME.fullmatch(name):
        raise ConfigError(f"name={name!r}: must be letters, digits, dots and dashes, at most 64")
    if not LEAST <= len(password) <= MOST:
        raise ConfigError(f"password: {len(password)} characters; must be {LEAST} to {MOST}")
    known = read(path) if path.exists() else {}
    kept = Argon2id(salt=os.urandom(16), length=32, iterations=3, lanes=4, memory_cost=MEMORY)
    secret = kept.derive_phc_encoded(password.encode())
    known[name] = Known(person=Person(name=name, roles=roles_of(roles)), secret=secret)
    lines = [
        f"{key}:{','.join(r for r in ROLES if r in one.person.roles)}:{one.secret}\n" for key, one in known.items()
    ]
    write_bytes(path, (HEAD + "".join(lines)).encode(), mode=0o600)


def check(known: Mapping[str, Known], name: str, password: str) -> Person | None:
    """Who it is; it takes as long for a name that nobody has."""
    one = known.get(name)
    secret = one.secret if one is not None else _NOBODY
    try:
        Argon2id.verify_phc_encoded(password[:MOST].encode("utf-8", "surrogatepass"), secret)
    except (InvalidKey, ValueError):
        return None
    return None if one is None else one.person


def roles_of(words: Iterable[str]) -> frozenset[Role]:
    """Whoever may decide may look, and whoever may send may look."""
    asked = {word.strip() for word in words} - {""}
    for word in sorted(asked):
        if word not in ROLES:
            raise ConfigError(f"role={word!r}: must be one of {', '.join(ROLES)}")
    return frozenset(role for role in ROLES if role in asked or role == "look")


_NOBODY = (  # of a password that nobody knows
    "$argon2id$v=19$m=65536,t=3,p=4$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
)
