"""Tests of the one real engine: invariants, canaries, and how often they are wrong."""
