"""The whole way to a cohort: carried out, written down, reviewed by a person."""
