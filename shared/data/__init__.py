"""A cohort on disk to batches: modalities, volumes, intensities, cohort, slices, missing patterns, phantoms."""
