"""Rounds whose coordinator sees sums of sites alone: their circles, what is asked for them, and what the sums say."""
