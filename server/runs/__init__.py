"""A run's folder, and a run carried out here."""
