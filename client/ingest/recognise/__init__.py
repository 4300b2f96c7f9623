"""From files to series, and what each series is."""
