"""What no volume may be, wherever it comes from. Apart, for who needs no NIfTI: trial.py starts in half the time."""

MAX_OBLIQUE = 40.0  # degrees; beyond it an axial slice means nothing
SPACING_LIMITS = (0.05, 20.0)  # mm
