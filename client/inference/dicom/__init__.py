"""Made volumes back into the hospital's archive, as marked DICOM series."""
