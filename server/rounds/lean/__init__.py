"""Fewer bytes both ways: what the plan says of an update's scale, and what of the weights a site has yet to be sent."""
