"""Who takes part: members, kits, certificates, rotation."""
