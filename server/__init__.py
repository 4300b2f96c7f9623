"""The round, seen from above."""
