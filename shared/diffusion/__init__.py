"""Noise schedules, conversions and samplers of Gaussian diffusion; they know nothing of networks or images."""
