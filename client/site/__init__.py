"""What a hospital decides about its own site, and what left it."""
