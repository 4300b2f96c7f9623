"""Cohorts without a hospital: made brains, scanners and missing patterns."""
