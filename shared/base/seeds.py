"""Seeds from named keys. Apart from shared/base/randomness.py, for who draws without torch: `lacuna phantom`."""

import hashlib
import json


def seed_of(*keys: str | int) -> int:
    """A 63-bit seed from (run seed, phase, round, site, ...): equal keys, equal seed, on every machine."""
    digest = hashlib.blake2b(json.dumps(keys).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
