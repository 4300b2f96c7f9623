"""What methods are built of. House rules: zero padding, group norm, nothing in place, no buffers beside parameters, so
that per-sample gradients are exact and every tensor can be averaged (docs/methods/diffusion.md, "House rules for
networks").
"""
