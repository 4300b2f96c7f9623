"""The round itself: who takes part, what is admitted, how it is averaged, what is released."""
