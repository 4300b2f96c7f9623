"""Building blocks. House rules (seed_systems.md §7.7): zero padding, group norm, nothing in place, no buffers beside
parameters: so that per-sample gradients are exact and every tensor can be averaged.
"""
