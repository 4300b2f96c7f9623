"""One site, beside its data."""
