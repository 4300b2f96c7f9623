"""What a round is, at both ends: its settings, its messages, its training."""
