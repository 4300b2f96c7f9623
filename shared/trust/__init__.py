"""Keys, certificates, signed folders, and what may be claimed of privacy."""
