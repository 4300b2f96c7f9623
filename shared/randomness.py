"""Everything random comes from named keys, so that a killed run resumes to the same bits."""

import hashlib
import json

import torch


def seed_of(*keys: str | int) -> int:
    """A 63-bit seed from (run seed, phase, round, site, ...): equal keys, equal seed, on every machine."""
    digest = hashlib.blake2b(json.dumps(keys).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(device: torch.device | str, *keys: str | int) -> torch.Generator:
    return torch.Generator(device=device).manual_seed(seed_of(*keys))
