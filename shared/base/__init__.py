"""What every other room stands on: words, errors, records, randomness, and the one way to write to a disk."""
