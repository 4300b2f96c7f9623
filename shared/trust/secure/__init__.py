"""Secure aggregation: keys, shares and masks of a round, so that its coordinator sees sums alone (decision 0036)."""
