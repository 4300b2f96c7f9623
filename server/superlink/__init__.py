"""A run on Flower's server: submitted, watched, stopped, resumed."""
