"""One subject's images into one space."""
