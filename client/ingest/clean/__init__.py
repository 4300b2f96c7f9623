"""What names a person is taken out."""
