"""The audit of the private engine, a test of code and not of data: invariants, canaries, how often they are wrong."""
